"""Toy worlds: what the best policy earns, what chance earns, and that they replay."""

import gymnasium
import numpy as np
import pytest

import rlgym
from rlgym.envs import toy
from rlgym.envs.toy.counter import Counter
from rlgym.envs.toy.faults import FAULTS, LIES, Faulty, Liar
from rlgym.envs.toy.masked import Masked
from rlgym.envs.toy.truncation import TruncationTrap
from rlgym.vector.check.world_check import check_world

SOLVABLE = [name for name, (entry, *_) in toy.WORLDS.items() if not entry.startswith("faults")]


def episode(env, policy, seed=None):
    """Return of one episode, its length and how it ended."""
    obs, info = env.reset(seed=seed)
    total, steps = 0.0, 0
    while True:
        obs, reward, terminated, truncated, info = env.step(policy(obs, info))
        total, steps = total + reward, steps + 1
        if terminated or truncated:
            return total, steps, (terminated, truncated)


@pytest.mark.parametrize("name", SOLVABLE)
def test_worlds_are_sound(name):
    findings = check_world(lambda: rlgym.make(f"rlgym/{name}-v0"), steps=30)
    findings = [f for f in findings if f.severity != "note"]
    assert findings == []


@pytest.mark.parametrize("kind", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
def test_identity_pays_for_repeating(kind):
    env = rlgym.make(f"rlgym/Identity{kind}-v0")
    total, steps, ended = episode(env, lambda obs, _: obs, seed=0)
    assert total == pytest.approx(20.0)
    assert (steps, ended) == (20, (False, True))
    env.action_space.seed(0)
    total, *_ = episode(env, lambda *_: env.action_space.sample())
    assert total < 16


def test_memory_cannot_be_solved_without_memory():
    env = rlgym.make("rlgym/Memory-v0")
    answers = []
    for action in (0, 1):
        totals = [episode(env, lambda *_, a=action: a, seed=s)[0] for s in range(200)]
        answers.append(np.mean(totals))
    assert sum(answers) == 1.0  # each cue is asked for once or the other way
    assert 0.4 < answers[0] < 0.6
    questions = []
    for seed in range(8):
        env.reset(seed=seed)
        for _ in range(4):
            obs, *_ = env.step(0)
        questions.append(obs.tolist())
    assert questions == [[0.0, 0.0, 1.0]] * 8  # nothing tells the cue
    cue = {}

    def remember(obs, _):
        if obs[:2].any():
            cue["seen"] = int(obs[:2].argmax())
        return cue["seen"]

    assert all(episode(env, remember, seed=s)[0] == 1.0 for s in range(20))


@pytest.mark.parametrize("choices", [(5,), (3, 4)])
def test_masked(choices):
    env = Masked(choices)
    obs, info = env.reset(seed=0)
    bounds = np.cumsum(choices)[:-1]
    for _ in range(50):
        parts = zip(np.split(obs, bounds), np.split(info["action_mask"], bounds), strict=True)
        best = np.array([np.where(allowed, score, -1).argmax() for score, allowed in parts])
        obs, reward, *_, info = env.step(best if len(choices) > 1 else int(best[0]))
        assert reward == 1.0
    forbidden = np.flatnonzero(~info["action_mask"][: choices[0]])
    while not len(forbidden):
        obs, info = env.reset()
        forbidden = np.flatnonzero(~info["action_mask"][: choices[0]])
    allowed = [int(part.argmax()) for part in np.split(info["action_mask"], bounds)]
    action = np.array([forbidden[0], *allowed[1:]]) if len(choices) > 1 else int(forbidden[0])
    with pytest.raises(ValueError, match="forbidden by the action mask"):
        env.step(action)
    env.strict = False
    assert env.step(action)[1] < 1.0


def test_mixed_and_dict_and_tuple_are_solved_by_the_rule():
    mixed = rlgym.make("rlgym/Mixed-v0")
    rule = lambda obs, _: {"gear": int(obs[:3].argmax()), "throttle": obs[3:]}  # noqa: E731
    assert episode(mixed, rule, seed=0)[0] == pytest.approx(20.0)
    tree = rlgym.make("rlgym/DictObs-v0")
    rule = lambda obs, _: int(  # noqa: E731
        obs["goal"]["flags"].sum() if obs["goal"]["mode"] else obs["reading"].argmax()
    )
    assert episode(tree, rule, seed=0)[0] == 20.0
    pair = rlgym.make("rlgym/TupleObs-v0")
    rule = lambda obs, _: (obs[1][0], obs[1][1]["bits"])  # noqa: E731
    assert episode(pair, rule, seed=0)[0] == 20.0


@pytest.mark.parametrize("channels_first", [False, True])
def test_dot(channels_first):
    env = gymnasium.make("rlgym/Dot-v0", channels_first=channels_first)

    def look(obs, _):
        picture = obs[0] if channels_first else obs[:, :, 0]
        row, column = np.argwhere(picture == 255)[0]
        return int(row >= 8) * 2 + int(column >= 8)

    assert episode(env, look, seed=3)[0] == 20.0
    assert env.unwrapped.render().shape == (16, 16, 3)


def test_privileged_holds_the_bonus():
    env = rlgym.make("rlgym/Privileged-v0")
    bonus = float(env.reset(seed=1)[0]["privileged"][0])
    total, *_ = episode(env, lambda obs, _: int(obs["hint"][0] > 0), seed=1)
    assert total == pytest.approx(20 * (1 + bonus), rel=1e-5)


@pytest.mark.parametrize(
    ("end", "flags"), [("truncated", (False, True)), ("terminated", (True, False))]
)
def test_truncation_trap(end, flags):
    env = TruncationTrap(end)
    lengths = []
    for seed in range(300):
        total, steps, ended = episode(env, lambda *_: 0, seed=seed)
        assert (total, ended) == (steps, flags)
        lengths.append(steps)
    assert np.mean(lengths) == pytest.approx(5.0, rel=0.15)  # 1 / probability
    with pytest.raises(ValueError, match='"truncated" or "terminated"'):
        TruncationTrap("never")


def test_counter_tells_where_it_is():
    env = Counter(length=3)
    obs, _ = env.reset(seed=42)
    name = int(np.random.default_rng(42).integers(1000))
    assert obs.tolist() == [name, 0]
    total, steps, ended = episode(env, lambda *_: 1, seed=42)
    assert steps == 3 + name % 3
    assert total == sum(t + 0.5 for t in range(1, steps + 1))
    assert ended == ((True, False) if name % 2 == 0 else (False, True))


def test_reward_terms_sum_to_the_reward():
    env = rlgym.make("rlgym/RewardTerms-v0")
    env.reset(seed=0)
    _, reward, *_, info = env.step(np.array([0.5], np.float32))
    assert set(info["reward_terms"]) == set(env.unwrapped.metadata["reward_terms"])
    assert sum(info["reward_terms"].values()) == reward == 0.375


def test_faults_happen_once_and_where_told(tmp_path):
    world = Faulty("crash", 2, only_seed=7, once_file=str(tmp_path / "crashed"))
    for seed, crashes in ((6, False), (7, True)):
        world.life = 0
        world.reset(seed=seed)
        world.step(0)
        if crashes:
            with pytest.raises(RuntimeError, match="told to crash at step 2"):
                world.step(0)
        else:
            world.step(0)
    world.life = 1
    world.step(0)  # the file is there: not again
    for kind, known in ((Faulty, FAULTS), (Liar, LIES)):
        with pytest.raises(ValueError, match=known[0]):
            kind("nonsense")


def test_registering_twice_changes_nothing():
    before = dict(gymnasium.registry)
    toy.register()
    assert gymnasium.registry == before
