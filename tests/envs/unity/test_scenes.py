"""Each scene is solved, through the whole pipeline, by a rule that knows it.

A rule earns the most that can be had only when every slot, action, mask, axis and reward arrives
where it belongs; a learner would forgive too much, and take minutes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import rlgym
from rlgym.errors import ConfigError
from rlgym.vector.contract import VectorEnv

Rule = Callable[[Any], Any]


@contextmanager
def playing(**kwargs: Any) -> Iterator[VectorEnv]:
    env = rlgym.make_vec("unity:standin", **kwargs)
    try:
        yield env
    finally:
        env.close()


def scores(env: VectorEnv, rule: Callable[[Any, Any], Any], steps: int) -> torch.Tensor:
    """Mean reward of each slot per step, after what the rule says for (obs, info)."""
    obs, info = env.reset(seed=0)
    total = torch.zeros(env.num_envs)
    for _ in range(steps):
        obs, reward, _, _, info = env.step(rule(obs, info))
        total += reward
    return total / steps


def column(choice: torch.Tensor) -> torch.Tensor:
    return choice.reshape(-1, 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"layout": "chw"}, {"uncompressed": True}, {"gray": True, "stack": 2, "layout": "chw"}],
    ids=["png", "png-chw", "floats", "gray-stack"],
)
def test_a_rule_that_looks_at_the_pixels_answers_every_question(options: dict) -> None:
    def look(obs: Any, info: Any) -> Any:
        image = obs["obs_0"][:, -1 if options.get("gray") else 0].float()
        bright = image > 0.8 * (1 if options.get("uncompressed") else 255)
        return column((bright.float().sum(1).argmax(1) // 12).clamp(max=2))

    with playing(scene="camera", agents=2, image=36, **options) as env:
        assert scores(env, look, 25) == pytest.approx([1.0] * 2)


def test_numbers_and_choices_go_to_the_agent_that_asked_for_them() -> None:
    def repeat(obs: torch.Tensor, info: Any) -> Any:
        choices = torch.stack([obs[:, 2:5].argmax(1), obs[:, 5:].argmax(1)], 1)
        return {"continuous": obs[:, :2], "discrete": choices}

    with playing(scene="hybrid", num_players=2, agents=3) as env:
        assert env.num_envs == 6
        assert scores(env, repeat, 45) == pytest.approx([1.0] * 6)


def test_the_rows_of_a_buffer_are_things() -> None:
    def towards_the_nearest(obs: Any, info: Any) -> Any:
        things, counts = obs["obs_0"], obs["obs_1"]
        assert torch.equal((things[..., 3].sum(1) / 6), counts[:, 0])
        distance = torch.where(things[..., 3] > 0, things[..., 2], torch.inf)
        return things[torch.arange(len(things)), distance.argmin(1), :2].clamp(-1, 1)

    with playing(scene="buffer", agents=4) as env:
        assert scores(env, towards_the_nearest, 45) == pytest.approx([1.0] * 4, abs=1e-5)


def test_what_a_slot_saw_first_is_asked_of_the_same_slot_later() -> None:
    cue = torch.zeros(8)

    def remember(obs: torch.Tensor, info: Any) -> Any:
        nonlocal cue
        shown = obs[:, :2].sum(1) > 0
        cue = torch.where(shown, obs[:, 1], cue)
        return column(cue.long())

    with playing(scene="memory", num_players=2, agents=4) as env:
        assert scores(env, remember, 50) == pytest.approx([0.2] * 8)


def test_masks_are_of_the_slot_and_true_where_a_move_is_allowed() -> None:
    def walk(obs: Any, info: Any) -> Any:
        places, goal = obs["obs_0"].reshape(-1, 3, 2), obs["obs_1"].argmax(1)
        way = places[torch.arange(len(goal)), 1 + goal] - places[:, 0]
        rows, columns = way[:, 0], way[:, 1]
        by_row = torch.where(rows < 0, 1, torch.where(rows > 0, 2, 0))
        by_column = torch.where(columns < 0, 3, torch.where(columns > 0, 4, 0))
        other = places[torch.arange(len(goal)), 2 - goal] - places[:, 0]
        # where the other goal is the next square on that way, take the other way first
        step = 0.25 * torch.stack([rows.sign(), torch.zeros_like(rows)], 1)
        blocked = (other - step).abs().sum(1) < 0.1
        choice = torch.where((by_row > 0) & ~(blocked & (by_column > 0)), by_row, by_column)
        mask = info["action_mask"]
        edge = torch.stack([places[:, 0, 0] < 0.1, places[:, 0, 0] > 0.9, places[:, 0, 1] < 0.1], 1)
        assert torch.equal(mask[:, 1:4], ~edge)
        assert mask[:, 0].all() and mask[torch.arange(len(goal)), choice].all()
        return column(choice)

    with playing(scene="grid", agents=9) as env:
        assert float(scores(env, walk, 120).mean()) > 0.2  # a goal every four steps, or so


def test_a_group_earns_what_its_members_do_together() -> None:
    with playing(scene="groups", agents=6) as env:
        right = scores(env, lambda obs, info: column(obs[:, 0].long()), 30)
        assert right == pytest.approx([1.1] * 6)

        def one_wrong(obs: torch.Tensor, info: Any) -> Any:
            answer = obs[:, 0].long()
            answer[0] = 1 - answer[0]
            return column(answer)

        wrong = scores(env, one_wrong, 30)
        assert wrong[:3] == pytest.approx([0.0, 0.1, 0.1])
        assert wrong[3:] == pytest.approx([1.1] * 3)


@pytest.mark.parametrize("scene", ["3dball", "staggered"])
def test_a_hand_made_controller_balances_every_ball(scene: str) -> None:
    def lean(obs: torch.Tensor, info: Any) -> Any:
        wish = 0.05 * torch.stack([obs[:, 2] + obs[:, 5], -obs[:, 4] - obs[:, 7]], 1)
        return (10 * (wish - obs[:, :2])).clamp(-1, 1)

    with playing(scene=scene, agents=4, max_steps=60, num_players=2) as env:
        obs, info = env.reset(seed=0)
        returns = []
        for _ in range(400):
            obs, _, terminated, truncated, info = env.step(lean(obs, info))
            assert not terminated.any()
            returns += info["episode_return"][truncated].tolist()
            if len(returns) >= 8:
                break
        assert len(returns) >= 8
        assert returns == pytest.approx([6.0] * len(returns), abs=0.11)


def test_settings_of_the_run_are_told_from_those_of_the_scene() -> None:
    with pytest.raises(ConfigError, match=r"timeout is not the scene's: give it without 'env\.'"):
        rlgym.make_vec("unity:standin", env_kwargs={"timeout": 5})


def test_two_behaviours_play_the_same_scene_side_by_side() -> None:
    with playing(scene="roles", behavior="Hunter?team=0", agents=4, max_steps=100) as env:
        caught = scores(env, lambda obs, info: (obs[:, 2:] * 20).clamp(-1, 1), 150)
    assert (caught > 0.02).all()  # prey that nobody moves is caught, again and again
