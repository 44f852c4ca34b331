"""Each rule of the contract, broken on purpose, is found under its own name."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import rlgym
from rlgym.envs.toy.counter import Counter
from rlgym.envs.toy.masked import Masked
from rlgym.errors import ContractError, WorldError
from rlgym.registry import WorldSpec
from rlgym.vector.check.conformance import check
from rlgym.vector.sync import SyncVectorEnv


class Altered(SyncVectorEnv):
    """A sync env whose results pass through `alter` before the user sees them."""

    def alter(self, result, rows):
        return result

    def step(self, actions):
        return self.alter(super().step(actions), slice(0, self.num_envs))

    def recv(self, group=0):
        return self.alter(super().recv(group), self.group_slice(group))


class SteppedBeforeReset(SyncVectorEnv):
    def _require_idle(self, group):
        self._require_open()


class SaysNextStep(SyncVectorEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.metadata["autoreset_mode"] = AutoresetMode.NEXT_STEP


class SpaceOfOneSlot(SyncVectorEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.observation_space = self.single_observation_space


class NoHealth(SyncVectorEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.health["timeouts"]


class OverlappingGroups(SyncVectorEnv):
    def group_slice(self, group):
        return slice(0, self.num_envs) if group else slice(0, 1)


class DoubleReward(Altered):
    def alter(self, result, rows):
        return (result[0], result[1].double(), *result[2:])


class FlagsAsNumbers(Altered):
    def alter(self, result, rows):
        return (*result[:2], result[2].float(), *result[3:])


class ColumnReward(Altered):
    def alter(self, result, rows):
        return (result[0], result[1][:, None], *result[2:])


class NoFinalObs(Altered):
    def alter(self, result, rows):
        del result[4]["final_obs"]
        return result


class NumpyUnderTorch(Altered):
    def alter(self, result, rows):
        return (result[0].numpy(), *result[1:])


class ShiftedObs(Altered):
    def alter(self, result, rows):
        result[0].sub_(5000.0)
        return result


class NaNReward(Altered):
    def alter(self, result, rows):
        result[1][0] = torch.nan
        return result


class WrongReturn(Altered):
    def alter(self, result, rows):
        result[4]["episode_return"].add_(1.0)
        return result


class WrongLength(Altered):
    def alter(self, result, rows):
        result[4]["episode_length"].add_(1)
        return result


class LateReset(Altered):
    def alter(self, result, rows):
        done = result[2] | result[3]
        result[0][done] = result[4]["final_obs"][done]
        return result


class InactiveButMoving(Altered):
    def alter(self, result, rows):
        result[4]["active"][~(result[2] | result[3])] = False
        return result


class LostAsTerminated(Altered):
    def alter(self, result, rows):
        result[4]["active"][result[2] | result[3]] = False
        return result


class NothingAllowed(Altered):
    def alter(self, result, rows):
        result[4]["action_mask"][:] = False
        return result


class MaskUpsideDown(Altered):
    def alter(self, result, rows):
        result[4]["action_mask"].logical_not_()
        result[4]["action_mask"][:, :] |= ~result[4]["action_mask"].any(1, keepdim=True)
        return result


class NewBuffers(Altered):
    def alter(self, result, rows):
        return (result[0].clone(), *result[1:])


class SharedNumpy(Altered):
    def alter(self, result, rows):
        return (self.arrays.obs[rows], *result[1:])


class OneSeedForAll(SyncVectorEnv):
    def _reset_slots(self, seeds, options):
        super()._reset_slots([seeds[0]] * self.num_envs, options)


class ForgetsListOfSeeds(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed[::-1] if isinstance(seed, list) else seed, options=options)


class TakesAnyNumberOfSeeds(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(
            seed=seed[: self.num_envs] if isinstance(seed, list) else seed, options=options
        )


class IgnoresSeed(SyncVectorEnv):
    def _reset_slots(self, seeds, options):
        super()._reset_slots([None] * self.num_envs, options)


class AlwaysTheSame(SyncVectorEnv):
    def _reset_slots(self, seeds, options):
        self._last = seeds if seeds[0] is not None else self._last
        super()._reset_slots(self._last, options)


class SwappedGroups(SyncVectorEnv):
    def recv(self, group=0):
        obs, *rest = super().recv(group)
        return (obs.flip(0), *rest)


class ReceivesNothing(SyncVectorEnv):
    def recv(self, group=0):
        return super().recv(group) if self._pending[group] else self._publish(group)


class ResetsWhilePending(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        self._pending = [False] * self.num_groups
        return super().reset(seed=seed, options=options)


class SendsTwice(SyncVectorEnv):
    def _require_idle(self, group):
        self._pending[group] = False
        super()._require_idle(group)


class TakesFewerActions(SyncVectorEnv):
    def step(self, actions):
        return super().step(torch.cat([actions, actions])[: self.num_envs])


class SnapshotSteps(SyncVectorEnv):
    def snapshot(self, **kwargs):
        snapshot = super().snapshot(**kwargs)
        self.step(np.zeros(self.num_envs, np.int64))
        return snapshot


class SnapshotWithObjects(SyncVectorEnv):
    def snapshot(self, **kwargs):
        return super().snapshot(**kwargs) | {"extra": [1, 2]}


class RestoresTheStart(SyncVectorEnv):
    def restore(self, snapshot):
        obs, info = super().restore(snapshot)
        self.reset(seed=0)
        return obs, info


class DoesNotCountLosses(SyncVectorEnv):
    def restore(self, snapshot):
        result = super().restore(snapshot)
        self.health["unreplayed"] = 0
        return result


class MarksNothing(SyncVectorEnv):
    def snapshot(self, *, at_mark=False, timeout=None):
        return super().snapshot()


class NumpyWithoutMasks(Altered):
    def alter(self, result, rows):
        del result[4]["_final_obs"]
        return result


class FlatNumpy(Altered):
    def alter(self, result, rows):
        return (self.obs_layout.flatten(result[0]), *result[1:])


class OpenAfterClose(SyncVectorEnv):
    def _require_open(self):
        pass


VIOLATIONS = [
    ("before_reset", SteppedBeforeReset, "raise StateError"),
    ("attributes", SaysNextStep, "not SAME_STEP"),
    ("attributes", SpaceOfOneSlot, "use batch_space"),
    ("attributes", NoHealth, "lacks timeouts"),
    ("groups", OverlappingGroups, "equal parts"),
    ("outputs", DoubleReward, "reward is float64: give float32"),
    ("outputs", FlagsAsNumbers, "terminated is float32: give bool"),
    ("outputs", ColumnReward, r"reward has shape \[4, 1\]"),
    ("outputs", NoFinalObs, "info lacks final_obs"),
    ("outputs", NumpyUnderTorch, "obs is ndarray"),
    ("long_run", ShiftedObs, "is not in Box"),
    ("long_run", NaNReward, "reward is not finite"),
    ("statistics", WrongReturn, "the rewards sum to"),
    ("statistics", WrongLength, "active steps"),
    ("final_obs", LateReset, "SAME_STEP"),
    ("active", InactiveButMoving, "repeat the previous one"),
    ("active", LostAsTerminated, "a lost slot is truncated"),
    ("buffers", NewBuffers, "same buffers"),
    ("seeds", OneSeedForAll, "is not slot 0"),
    ("seeds", ForgetsListOfSeeds, "list of seeds"),
    ("seeds", TakesAnyNumberOfSeeds, "5 seeds for 4 slots was accepted"),
    ("seeds", IgnoresSeed, "the same seed and actions"),
    ("reset_without_seed", AlwaysTheSame, "let the generators go on"),
    ("send_recv", SwappedGroups, "another obs than step"),
    ("order", ReceivesNothing, "recv before send was accepted"),
    ("order", ResetsWhilePending, "reset while a step is pending was accepted"),
    ("order", SendsTwice, "send twice was accepted"),
    ("wrong_actions", TakesFewerActions, "3 actions for 4 slots was accepted"),
    ("snapshot", SnapshotSteps, "it must change nothing"),
    ("snapshot", SnapshotWithObjects, "numpy arrays only"),
    ("snapshot", RestoresTheStart, "steps after restore"),
    ("mark", MarksNothing, "at the mark"),
    ("close", OpenAfterClose, "after close was accepted"),
]


@pytest.mark.parametrize(("rule", "kind", "message"), VIOLATIONS)
def test_violation_is_found(rule, kind, message):
    findings = check(lambda: kind(Counter, 4, num_groups=2), steps=40, raise_on_failure=False)
    found = [finding for finding in findings if finding.rule == rule]
    assert found, findings
    assert any(re.search(message, finding.message) for finding in found), found
    assert all("\n" not in str(finding) for finding in findings)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(NothingAllowed, "forbids every choice"), (MaskUpsideDown, "that the mask allows")],
)
def test_masks(kind, message, capsys):
    findings = check(
        lambda: kind(Masked, 4, num_groups=2, max_restarts=10**6), steps=30, raise_on_failure=False
    )
    assert any(f.rule == "action_mask" and message in f.message for f in findings), findings


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        ("numpy_output", NumpyWithoutMasks, "_final_obs"),
        ("buffers", SharedNumpy, "return copies"),
    ],
)
def test_numpy_violations(rule, kind, message):
    findings = check(
        lambda: kind(Counter, 4, num_groups=2, output="numpy"), steps=30, raise_on_failure=False
    )
    assert any(f.rule == rule and message in f.message for f in findings), findings


def test_numpy_observations_are_nested_as_gymnasium_nests_them():
    def env():
        world = WorldSpec("rlgym/TupleObs-v0")
        return FlatNumpy(world, 4, num_groups=2, output="numpy")

    findings = check(env, steps=30, raise_on_failure=False)
    assert any(f.rule == "numpy_output" and "batch_space" in f.message for f in findings), findings


def test_losses_that_are_not_counted():
    world = WorldSpec("rlgym/Unreplayable-v0")
    findings = check(lambda: DoesNotCountLosses(world, 4), steps=20, raise_on_failure=False)
    assert any("does not count" in finding.message for finding in findings)


def test_an_unknown_id_is_an_error_of_its_own():
    with pytest.raises(WorldError, match="unknown world"):
        check("no/Such-v0", raise_on_failure=False)


def test_errors_are_raised_together():
    with pytest.raises(ContractError, match="error: statistics: episode_return is"):
        check(lambda: WrongReturn(Counter, 4), steps=30)


def test_gymnasiums_own_vector_env_is_not_ours():
    env = gymnasium.make_vec("CartPole-v1", 2)
    with pytest.raises(ContractError, match=r"make it with rlgym\.make_vec"):
        check(env)


# ---------------------------------------------------------------------- worlds
class NeverEnds(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


class OldInterface(NeverEnds):
    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, {}


class TextSpace(NeverEnds):
    observation_space = spaces.Text(5)


class Remembers(Counter):
    """Keeps a count across episodes, so that an episode depends on those before it."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes = 0 if seed is not None else self.episodes + 1
        return super().reset(seed=seed, options=options)

    def _observe(self):
        return np.array([self.episodes, self.t], np.float32)


class LeaksReward(Counter):
    """The first reward of an episode holds some of the one before, as in Bullet worlds."""

    leak = 0.0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        reward, self.leak = reward + (self.leak if self.t == 1 else 0.0), reward
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("world", "severity", "message"),
    [
        ("rlgym/Crash-v0", "error", "told to crash"),
        ("rlgym/NaN-v0", "error", "not finite"),
        ("rlgym/Liar-v0", "error", r"shape \[3\], its space says \[2\]"),
        ("rlgym/Unreplayable-v0", "warning", "np_random"),
        (NeverEnds, "warning", "no time limit"),
        (NeverEnds, "note", "no bounds"),
        (OldInterface, "error", "old Gym interface"),
        (TextSpace, "error", "no fixed shape"),
        (Remembers, "warning", "cannot be replayed"),
        (LeaksReward, "warning", "forget everything"),
        (Counter, "note", "normalize-obs"),
    ],
)
def test_worlds(world, severity, message):
    findings = check(world, steps=40, raise_on_failure=False)
    assert any(f.severity == severity and re.search(message, f.message) for f in findings), findings


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("outside", "is outside Box"),
        ("shape", "has shape"),
        ("dtype", "does not fit"),
        ("missing", "has shape"),
        ("reward", "return one float"),
        ("flag", "return a bool"),
    ],
)
@pytest.mark.parametrize("at_step", [0, 2])
def test_liars(lie, message, at_step):
    from rlgym.envs.toy.faults import Liar

    findings = check(lambda: Liar(lie, at_step), steps=20, raise_on_failure=False)
    assert any(f.severity == "error" and message in f.message for f in findings), findings


def test_a_world_that_is_handed_over_stays_usable():
    world = rlgym.make("CartPole-v1")
    assert check(world, steps=50) == []
    world.reset(seed=0)
    world.step(0)
