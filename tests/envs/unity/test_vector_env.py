"""Scenes of the stand-in player as vector envs: real processes, the real protocol."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlgym
from rlgym.config import TrainConfig, default_config, from_dict
from rlgym.errors import ConfigError, ContractError, UserError, WorldError
from rlgym.training.evaluation import evaluate
from rlgym.training.logging import read_metrics
from rlgym.vector.check.conformance import check


@pytest.fixture
def scene():
    """Make a vector env of a scene; all are closed at the end."""
    made = []

    def make(name, num_envs=None, **settings):
        env = rlgym.make_vec("unity:standin", num_envs, scene=name, timeout=30, **settings)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def random_steps(env, count, seed=0):
    """Step at random, within the masks; yields what each step returned."""
    env.action_space.seed(seed)
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    for _ in range(count):
        actions = env.action_space.sample()
        if env.mask_size:
            discrete = actions["discrete"] if isinstance(actions, dict) else actions
            start = 0
            for branch, size in enumerate(env.behavior_spec.branches):
                allowed = info["action_mask"][:, start : start + size].numpy()
                discrete[:, branch] = (allowed * rng.random(allowed.shape)).argmax(1)
                start += size
        result = env.step(actions)
        info = result[-1]
        yield result


VECTOR = spaces.Box(-np.inf, np.inf, (8,), np.float32)


def test_each_agent_of_each_player_is_a_slot(scene):
    env = scene("3dball", agents=3, num_players=2)
    assert env.num_envs == 6 and env.num_groups == 2 and env.group_slice(1) == slice(3, 6)
    assert env.single_observation_space == VECTOR
    assert env.single_action_space == spaces.Box(-1, 1, (2,), np.float32)
    returns, lengths = [], []
    for obs, reward, terminated, truncated, info in random_steps(env, 120):
        assert obs.shape == (6, 8) and info["active"].all() and not truncated.any()
        assert torch.equal(terminated, reward < 0)  # +0.1 a step, -1 on the fall
        returns += info["episode_return"][terminated].tolist()
        lengths += info["episode_length"][terminated].tolist()
    assert len(returns) > 20
    assert returns == pytest.approx([0.1 * (length - 1) - 1 for length in lengths], abs=1e-4)
    assert env.scalars()["unity/3DBall/Falls"] == len(returns)
    assert env.scalars() == {}  # since the last call
    assert not any(env.health.values())


@pytest.mark.slow
def test_time_running_out_truncates(scene):
    env = scene("camera", agents=2, image=12)
    ends = [torch.stack(result[2:4]) for result in random_steps(env, 20)]
    assert torch.stack(ends)[[9, 19]].tolist() == [[[False, False], [True, True]]] * 2
    assert int(torch.stack(ends).sum()) == 4


@pytest.mark.parametrize(
    ("name", "settings", "obs", "actions"),
    [
        (
            "grid",
            {},
            {"obs_0": (6,), "obs_1": (2,)},
            spaces.MultiDiscrete([5]),
        ),
        ("camera", {"image": 16}, {"obs_0": (3, 16, 16), "obs_1": (1,)}, None),
        ("buffer", {}, {"obs_0": (6, 4), "obs_1": (1,)}, spaces.Box(-1, 1, (2,), np.float32)),
        (
            "hybrid",
            {},
            {"": (7,)},
            spaces.Dict(
                continuous=spaces.Box(-1, 1, (2,), np.float32),
                discrete=spaces.MultiDiscrete([3, 2]),
            ),
        ),
    ],
)
def test_every_kind_of_observation_and_action(scene, name, settings, obs, actions):
    env = scene(name, agents=2, **settings)
    assert {leaf.key: leaf.shape for leaf in env.obs_layout.leaves} == obs
    assert actions is None or env.single_action_space == actions
    for result in random_steps(env, 15):
        assert all(torch.isfinite(result[1]))
    assert not any(env.health.values())


@pytest.mark.slow
def test_images_are_the_players_pixels_in_either_order(scene):
    pictures = []
    for layout in ("hwc", "chw"):
        env = scene("camera", agents=2, image=24, layout=layout)
        obs, _ = env.reset(seed=0)
        assert obs["obs_0"].dtype == torch.uint8
        pictures.append(obs["obs_0"].clone())
    assert torch.equal(*pictures)
    square = pictures[0][:, :, :, :].amax(1) >= 200  # the bright square is somewhere, and whole
    assert (square.flatten(1).sum(1) == (24 // 6) ** 2).all()


def test_masks_say_what_is_allowed(scene):
    env = scene("grid", agents=4)
    _, info = env.reset(seed=0)
    at_edge = torch.zeros(4, dtype=torch.bool)
    for obs, *_, info in random_steps(env, 60):
        x = obs["obs_0"][:, 0]
        assert torch.equal(info["action_mask"][:, 1], x > 0)  # 1 = left: off the board at x = 0
        at_edge |= x == 0
    assert at_edge.any() and "unity/Grid/Forbidden" not in env.scalars()


def test_the_contract_holds_where_agents_decide_together(scene):
    findings = check(lambda: scene("3dball", agents=2, num_players=2), steps=60)
    assert [finding.rule for finding in findings] == ["seeds", "snapshot"]  # Unity has no replay


@pytest.mark.slow
def test_the_contract_holds_where_agents_decide_when_they_like(scene):
    findings = check(lambda: scene("staggered", agents=4, output="numpy"), steps=60)
    assert [finding.rule for finding in findings] == ["seeds", "snapshot"]


def test_staggered_agents_get_their_rewards_and_ends(scene):
    env = scene("staggered", agents=5)
    assert not env.world.everyone
    sums, pending = torch.zeros(5), torch.zeros(5, dtype=torch.bool)
    ended, idle = 0, 0
    for _, reward, terminated, truncated, info in random_steps(env, 300):
        idle += int((~info["active"]).sum())
        sums += reward
        pending |= info["active"]
        for row in torch.nonzero(terminated | truncated).flatten().tolist():
            assert pending[row]
            length = int(info["episode_length"][row])
            assert float(info["episode_return"][row]) == pytest.approx(float(sums[row]), abs=1e-4)
            assert length > 0
            sums[row], pending[row] = 0.0, False
            ended += 1
    assert ended > 5 and idle > 300
    assert env.scalars()["unity/3DBall/Falls"] >= ended


@pytest.mark.slow
def test_staggered_agents_can_be_made_to_step_together(scene):
    env = scene("staggered", agents=4, sync="all")
    infos = [
        {key: value.clone() for key, value in step[-1].items()} for step in random_steps(env, 60)
    ]
    active = torch.stack([info["active"] for info in infos])
    # only a body that has fallen and not decided again takes no part
    assert active.float().mean() > 0.9 and all(info["active"].any() for info in infos)


@pytest.mark.slow
def test_agents_that_do_not_come_back_leave_empty_slots(scene):
    env = scene("3dball", agents=6, leave=0.3)
    active = [int(info["active"].sum()) for *_, info in random_steps(env, 40)]
    assert active[0] == 6 and 0 < active[-1] < 6
    assert not any(env.health.values())


@pytest.mark.slow
def test_agents_that_come_late_need_slots(scene):
    with pytest.raises(WorldError, match="num_agents=4"):
        list(random_steps(scene("3dball", agents=4, late="1@300"), 80))
    env = scene("3dball", agents=4, late="1@300", num_agents=5)
    active = [int(info["active"].sum()) for *_, info in random_steps(env, 80)]
    assert active[0] == 3 and active[-1] == 4 and env.num_envs == 5
    with pytest.raises(ConfigError, match="standin has 4 agents of"):
        scene("3dball", agents=4, num_agents=3)


@pytest.mark.slow
def test_slots_that_stay_empty_do_not_hold_a_score_up(scene):
    env = scene("3dball", agents=2, num_agents=3, max_steps=20)
    result = evaluate(Still(), env, 6)
    assert result.episodes == 4 and result.cut == 0  # two of each agent; the third never comes


class Still:
    """A policy that does nothing."""

    device = torch.device("cpu")

    def initial_state(self, num_envs):
        return None

    def act(self, obs, **kwargs):
        return torch.zeros(len(obs), 2), None, None


def test_groups_share_their_rewards(scene):
    env = scene("groups", agents=6)
    assert env.reward_term_names == ("own", "group")
    seen = 0.0
    for _, reward, _, _, info in random_steps(env, 30):
        own, group = (info["reward_terms"][name] for name in ("own", "group"))
        there = ~torch.isnan(own)
        assert torch.allclose(reward[there], (own + group)[there])
        seen += float(group[there].abs().sum())
    assert seen > 0
    alone = scene("groups", agents=6, group_reward_weight=0.0)
    for _, reward, _, _, info in random_steps(alone, 10):
        assert torch.allclose(reward, torch.nan_to_num(info["reward_terms"]["own"]))


def test_the_number_of_slots_is_the_scenes(scene):
    assert scene("3dball", 4, agents=2, num_players=2).num_envs == 4
    with pytest.raises(ContractError, match="leave num_envs out, or give 4"):
        scene("3dball", 8, agents=2, num_players=2)


def test_wrong_settings_are_named(tmp_path):
    build = tmp_path / "Game.x86_64"
    cases = [
        ("unity:standin", {"num_players": 0}, "num_players is 0"),
        ("unity:standin", {"sync": "none"}, "choose from auto, all, any"),
        ("unity:editor", {"num_players": 2}, "there is one editor"),
        ("unity:standin", {"args": "--level 3"}, "give a list"),
        (f"unity:{build}", {"time_scal": 3}, "did you mean 'time_scale'"),
        ("unity:standin", {"frame_m": 3}, "did you mean 'frame_ms'"),
        (f"unity:{build}", {}, "no player at"),
    ]
    for world, settings, text in cases:
        with pytest.raises(UserError, match=text):
            rlgym.make_vec(world, **settings)
    with pytest.raises(WorldError, match="use make_vec"):
        rlgym.make("unity:standin")


def test_settings_leave_the_number_of_slots_to_the_scene():
    for algo in ("ppo", "sac"):
        assert default_config("unity:standin", algo).num_envs == 0
        assert from_dict({"env_id": "unity:standin", "algo": {"name": algo}}).num_envs == 0
    assert from_dict({"env_id": "unity:standin", "num_envs": 24}).num_envs == 24
    with pytest.raises(ConfigError, match="num_envs must be at least 1"):
        from_dict({"env_id": "CartPole-v1", "num_envs": 0})


@pytest.mark.slow
def test_doctor_and_play_look_at_scenes(tmp_path):
    from rlgym.cli.doctor import answer
    from rlgym.cli.view import settings_of, watch

    file = tmp_path / "answer.json"
    asked = {"world": "unity:standin", "kwargs": {"agents": 2, "scene": "staggered"}, "seed": 0}
    answer(json.dumps({**asked, "steps": 20, "seconds": 5.0, "answer": str(file)}))
    report = json.loads(file.read_text())["report"]
    assert report["agents"] == 2 and report["decisions"] == "when an agent likes"
    config = settings_of("unity:standin", "random", {"agents": 2, "max_steps": 5}, False)
    frames = watch("unity:standin", config, "random", "best", "human", 0)
    returned = [frame.returned for frame, _ in zip(frames, range(8), strict=False)]
    frames.close()
    assert returned[5] == pytest.approx(0.5)
    with pytest.raises(WorldError, match="rlgym play shows it"):
        rlgym.make_vec("unity:standin", render_mode="rgb_array")


def test_a_file_may_not_start_a_program():
    from rlgym.registry import require_trust

    require_trust("unity:standin", "config.yaml")
    require_trust("unity:editor", "config.yaml")
    with pytest.raises(UserError, match=r"start the program /x/Game\.x86_64 .*--trust"):
        require_trust("unity:/x/Game.x86_64", "config.yaml")
    config = TrainConfig(env_id="unity:/x/Game.x86_64", num_envs=0)
    with pytest.raises(UserError, match="--trust"):
        rlgym.train(config)


SMALL = {
    "algo": {"num_steps": 32, "minibatch_size": 64, "epochs": 1},
    "network": {"hidden": [8]},
    "eval": {"episodes": 2},
    "console": "off",
}


def test_a_run_trains_is_scored_and_goes_on(tmp_path):
    lessons = [
        {"value": 1.0, "completion_criteria": {"measure": "progress", "threshold": 0.3}},
        {"value": 0.8},
    ]
    env = {"scene": "3dball", "agents": 3, "num_players": 2, "max_steps": 30}
    env["parameters"] = {"scale": {"curriculum": lessons}, "gravity": 5.0}
    run = rlgym.train(
        "unity:standin", env=env, preset=None, run_dir=tmp_path / "a", total_steps=768, **SMALL
    )
    assert run.config.num_envs == 6 and run.result is not None and run.result.episodes == 2
    lines = read_metrics(tmp_path / "a")
    assert [line["unity/lesson/scale"] for line in lines if "train/loss" in line] == [0, 1, 1, 1]
    assert lines[0]["unity/Parameter/gravity"] == 5.0 and lines[0]["health/restarts"] == 0
    more = rlgym.resume(tmp_path / "a", 960, console="off")
    last = [line for line in read_metrics(tmp_path / "a") if "train/loss" in line][-1]
    assert more.state.env_steps == 960 and more.health["unreplayed"] == 6
    assert last["unity/lesson/scale"] == 1 and last["unity/Parameter/scale"] == pytest.approx(0.8)


@pytest.mark.slow
def test_nothing_is_replayed_and_it_is_said(scene):
    env = scene("3dball", agents=2)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    snapshot = env.snapshot()
    obs, info = env.restore(snapshot)
    assert not info["replayed"].any() and env.health["unreplayed"] == 2
    assert obs.shape == (2, 8)
    with pytest.raises(ContractError, match="use num_envs 2"):
        scene("3dball", agents=3).restore(snapshot)


@pytest.mark.slow
def test_reseeding_begins_the_same_episodes(scene):
    env = scene("3dball", agents=2, reseed=True)
    first = env.reset(seed=4)[0].clone()
    other = env.reset(seed=5)[0].clone()
    again = env.reset(seed=4)[0].clone()
    assert torch.equal(first, again) and not torch.equal(first, other)
