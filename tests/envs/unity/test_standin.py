"""The stand-in: its scenes, its life cycle, and the physics of its ball."""

from typing import Any

import numpy as np
import pytest

from rlgym.envs.unity.standin.academy import Academy, Coming
from rlgym.envs.unity.standin.agents import SceneOptions
from rlgym.envs.unity.standin.ball import FRAME, HALF, Balls
from rlgym.envs.unity.standin.channels import Channels
from rlgym.envs.unity.standin.scenes import SCENES, build

SPEAKING = sorted(set(SCENES) - {"silent", "empty", "huge"})


# ----- Scenes, in this process --------------------------------------------------------------------
def make_academy(
    scene: str, coming: Coming | None = None, seed: int = 0, **options: Any
) -> Academy:
    channels, rng = Channels(), np.random.default_rng(seed)
    populations = build(scene, SceneOptions(**options), channels, rng)
    return Academy(populations, rng, coming or Coming())


def next_message(academy: Academy) -> Any:
    """The next message; whoever asked acts at random in it."""
    while not academy.ask():
        academy.act()
    made = academy.output(b"")
    for crowd in academy.crowds:
        k = len(crowd.asking)
        population = crowd.population
        crowd.continuous[crowd.asking] = academy.rng.uniform(-1, 1, (k, population.continuous))
        if population.branches:
            crowd.discrete[crowd.asking] = academy.rng.integers(0, population.branches)
        crowd.asking = []
    academy.act()
    return made.unity_output


def infos_of(output: Any) -> list[Any]:
    return [info for infos in output.rl_output.agentInfos.values() for info in infos.value]


@pytest.mark.parametrize("scene", SPEAKING)
def test_the_life_of_agents_is_unitys(scene: str) -> None:
    academy = make_academy(scene)
    started, ended, described = set(), set(), []
    for _ in range(120):
        output = next_message(academy)
        described += [
            brain.brain_name for brain in output.rl_initialization_output.brain_parameters
        ]
        ids = [(info.id, info.done) for info in infos_of(output)]
        assert ids, "a message that says nothing"
        assert len(set(ids)) == len(ids)
        for agent, done in ids:
            assert agent not in ended, "an id came back after its end"
            (ended if done else started).add(agent)
    assert sorted(described) == sorted(c.population.behavior for c in academy.crowds)
    assert all(name.count("?team=") == 1 for name in described)
    if scene not in ("noise", "duel"):  # the one never ends, the other rarely
        assert ended


def test_ends_between_decisions_make_messages_without_a_question() -> None:
    academy = make_academy("3dball")
    kinds = set()
    for _ in range(150):
        done = [info.done for info in infos_of(next_message(academy))]
        kinds.add("ends" if all(done) else "asks" if not any(done) else "both")
    assert kinds == {"ends", "asks", "both"}


def test_staggered_agents_ask_in_turn_and_in_any_order() -> None:
    academy = make_academy("staggered", agents=10)
    ids = [[info.id for info in infos_of(next_message(academy)) if not info.done] for _ in range(5)]
    assert [sorted(x % 5 for x in one) for one in ids] == [[i, i] for i in range(5)]
    orders = {tuple(info.id for info in infos_of(next_message(academy))) for _ in range(40)}
    assert any(list(one) != sorted(one) for one in orders)


def test_a_limit_of_steps_interrupts_and_a_fall_does_not() -> None:
    academy = make_academy("3dball", max_steps=15)
    ends = [info for _ in range(120) for info in infos_of(next_message(academy)) if info.done]
    limits = [info for info in ends if info.max_step_reached]
    falls = [info for info in ends if not info.max_step_reached]
    assert limits and all(info.reward == pytest.approx(0.1) for info in limits)
    assert falls and all(info.reward == -1 for info in falls)


def test_a_reset_keeps_the_ids_and_forgets_the_rewards() -> None:
    academy = make_academy("3dball")
    before = {info.id for info in infos_of(next_message(academy))}
    assert next_message(academy)
    academy.reset()
    infos = [info for info in infos_of(next_message(academy)) if not info.done]
    assert {info.id for info in infos} == before
    assert all(info.reward == 0 for info in infos)


def test_too_few_actions_break_the_player_as_they_break_unity() -> None:
    academy = make_academy("grid")
    academy.ask()
    made = academy.output(b"")
    reply = type(made)().unity_input.rl_input
    with pytest.raises(IndexError, match="0 actions for 9 agents"):
        academy.take(reply)


def test_agents_may_come_late_leave_for_ever_and_return_with_a_reset() -> None:
    academy = make_academy("memory", Coming(late=2, late_frame=3, leave=1.0))
    counts = [len([i for i in infos_of(next_message(academy)) if not i.done]) for _ in range(9)]
    assert counts == [6, 6, 6, 8, 8, 2, 2, 2, 0]  # each stays for five steps
    academy.reset()
    assert len([i for i in infos_of(next_message(academy)) if not i.done]) == 8


def test_masks_forbid_what_leaves_the_board_and_are_left_out_where_all_is_allowed() -> None:
    academy = make_academy("grid", agents=50)
    masks = [list(info.action_mask) for info in infos_of(next_message(academy)) if not info.done]
    assert {len(mask) for mask in masks} == {0, 5}
    assert all(not mask[0] and any(mask) for mask in masks if mask)


def test_groups_end_together_and_say_what_the_group_earned() -> None:
    academy = make_academy("groups", agents=6)
    for _ in range(11):
        infos = infos_of(next_message(academy))
        whole = [info for info in infos if info.done and info.max_step_reached]
    assert sorted(info.group_id for info in whole) == [1, 1, 1, 2, 2, 2]
    assert all(info.group_reward in (0.0, 1.0) for info in whole)
    by_group = {info.group_id: info.group_reward for info in whole}
    assert all(info.group_reward == by_group[info.group_id] for info in whole)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_images_declare_their_order(layout: str) -> None:
    academy = make_academy("camera", agents=1, layout=layout, stack=2)
    image = infos_of(next_message(academy))[0].observations[0]
    assert list(image.shape) == ([84, 84, 6] if layout == "hwc" else [6, 84, 84])
    assert list(image.dimension_properties) == ([2, 2, 1] if layout == "hwc" else [1, 2, 2])
    assert image.compressed_data.count(b"\x89PNG") == 2
    assert list(image.compressed_channel_mapping) == list(range(6))


# ----- The physics of the ball --------------------------------------------------------------------
def make_balls(n: int = 1, **values: float) -> Balls:
    channels = Channels()
    channels._values.update(values)
    balls = Balls(n, channels, np.random.default_rng(0))
    balls.reset(np.arange(n))
    return balls


def still(balls: Balls) -> np.ndarray:
    return np.zeros((balls.num_agents, 2), np.float32)


def test_a_ball_falls_freely_until_it_touches() -> None:
    balls = make_balls(gravity=5.0)
    balls.tilt[:], balls.position[:] = 0, [[0.0], [4.0], [0.0]]
    for _ in range(10):
        balls.act(still(balls), still(balls))
    assert balls.velocity[1, 0] == pytest.approx(-5.0 * 10 * FRAME)
    for _ in range(90):
        balls.act(still(balls), still(balls))
    assert balls.position[:, 0] == pytest.approx([0, HALF + 0.5, 0])
    assert balls.velocity[:, 0] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_rolling_ball_takes_five_sevenths_of_the_pull() -> None:
    balls = make_balls(gravity=7.0)
    angle = 0.2  # about z: the plate leans so that the ball rolls towards -x
    balls.tilt[:] = [[0.0], [angle]]
    up = np.array([-np.sin(angle), np.cos(angle), 0])
    balls.position[:, 0], balls.velocity[:] = up * (HALF + 0.5), 0
    for _ in range(20):
        balls.act(still(balls), still(balls))
    along = np.array([np.cos(angle), np.sin(angle), 0])
    speed = float(balls.velocity[:, 0] @ along)
    assert speed == pytest.approx(-5 / 7 * 7.0 * np.sin(angle) * 20 * FRAME)
    assert float(balls.velocity[:, 0] @ up) == pytest.approx(0, abs=1e-9)


def test_balancing_can_be_done_and_doing_nothing_is_not_enough() -> None:
    balls = make_balls(12)
    falls = 0
    for frame in range(600):
        if frame % 5 == 0:  # a hand-made controller: lean against place and speed
            o = balls.observe(np.arange(12))[0]
            wish = 0.05 * np.stack([o[:, 2] + o[:, 5], -o[:, 4] - o[:, 7]], 1)
            action = (10 * (wish - o[:, :2])).astype(np.float32)
        balls.act(action, action)
        falls += int(balls.done.sum())
    assert falls == 0
    idle, alive = make_balls(12), np.ones(12, bool)
    for _ in range(300):
        idle.act(still(idle), still(idle))
        alive &= ~idle.done
    assert not alive.any()
