"""Agents in their slots, without any player: messages made by hand, and scenes made at random."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgym.envs.unity.frames import Batch, BehaviorSpec, ObservationSpec
from rlgym.envs.unity.slots import PATIENCE, Rows, Slots, allowed
from rlgym.errors import WorldError

SPEC = BehaviorSpec("Walk?team=0", (ObservationSpec("v", (2,)),), 1, ())
CHOICES = BehaviorSpec("Pick?team=0", (ObservationSpec("v", (2,)),), 0, (3, 2))


def rows(count, mask_size=0, terms=False):
    return Rows(
        obs=[np.zeros((count, 2), np.float32)],
        final_obs=[np.zeros((count, 2), np.float32)],
        reward=np.zeros(count, np.float32),
        terminated=np.zeros(count, np.bool_),
        truncated=np.zeros(count, np.bool_),
        active=np.zeros(count, np.bool_),
        lost=np.zeros(count, np.float32),
        mask=np.zeros((count, mask_size), np.bool_) if mask_size else None,
        terms=np.zeros((count, 2), np.float32) if terms else None,
    )


def says(*agents, masks=None):
    """One message: agents as (id, observation[0], reward, end) with end "", "t" or "c"."""
    full = [(*agent, *(0.0, 0.0, "")[len(agent) - 1 :]) for agent in agents]
    ids, obs, reward, end = (list(column) for column in zip(*full, strict=True))
    return Batch(
        ids=np.array(ids, np.int32),
        obs=[np.array([[value, agent] for value, agent in zip(obs, ids, strict=True)], np.float32)],
        reward=np.array(reward, np.float32),
        group_reward=np.zeros(len(ids), np.float32),
        done=np.array([kind != "" for kind in end]),
        interrupted=np.array([kind == "c" for kind in end]),
        masks=None if masks is None else np.array(masks, np.bool_),
        group_ids=np.zeros(len(ids), np.int32),
    )


def started(count, first=None, **kwargs):
    """Slots that have been reset and whose agents 0, 1, ... ask."""
    slots = Slots(kwargs.pop("spec", SPEC), count, rows(count, **kwargs))
    slots.begin_reset()
    slots.take(first or says(*((agent, 10.0 * agent) for agent in range(count))))
    slots.end_reset()
    return slots


def act(slots, value=0.5, everyone=True):
    slots.begin_step(everyone)
    return slots.answer(np.full((slots.count, 1), value, np.float32), None)


def test_a_step_of_all_agents():
    slots = started(2)
    assert slots.rows.obs[0][:, 0].tolist() == [0.0, 10.0]
    assert act(slots).continuous.tolist() == [[0.5], [0.5]]
    slots.take(says((0, 1.0, 0.25), (1, 11.0, 0.75)))
    slots.finish_step()
    assert slots.rows.obs[0][:, 0].tolist() == [1.0, 11.0]
    assert slots.rows.reward.tolist() == [0.25, 0.75]
    assert slots.rows.active.tolist() == [True, True]


def test_agents_may_speak_in_any_order_and_are_answered_in_theirs():
    slots = started(3, says((7, 1.0), (2, 2.0), (5, 3.0)))
    assert slots.ids.tolist() == [2, 5, 7]  # by id, whatever the order
    slots.begin_step(True)
    answer = slots.answer(np.array([[0.2], [0.5], [0.7]], np.float32), None)
    assert answer.continuous[:, 0].tolist() == pytest.approx([0.7, 0.2, 0.5])


def test_an_end_and_the_next_beginning_in_one_message():
    slots = started(2)
    act(slots)
    slots.take(says((0, 5.0, -1.0, "t"), (1, 11.0, 0.1), (2, 6.0, 3.0)))
    slots.finish_step()
    r = slots.rows
    assert r.terminated.tolist() == [True, False] and not r.truncated.any()
    assert r.final_obs[0][0, 0] == 5.0 and r.obs[0][0, 0] == 6.0
    assert r.reward[0] == -1.0  # not the 3.0 that came before the first action
    assert slots.ids.tolist() == [2, 1]


def test_an_end_between_decisions_belongs_to_the_step():
    slots = started(2)
    act(slots)
    slots.take(says((1, 5.0, 0.5, "c")))
    assert not slots.asking.any() and slots.owing.tolist() == [True, False]
    assert slots.answer(None, None).continuous.shape == (0, 1)
    slots.take(says((0, 1.0, 0.25), (2, 6.0)))
    slots.finish_step()
    assert slots.rows.truncated.tolist() == [False, True]
    assert slots.rows.reward.tolist() == [0.25, 0.5]
    assert slots.rows.final_obs[0][1, 0] == 5.0 and slots.rows.obs[0][1, 0] == 6.0


def test_bodies_keep_their_slots_when_several_end_at_once():
    slots = started(4)
    act(slots)
    # Unity gives ids in the order of the ends: body 3 gets 4, body 1 gets 5
    slots.take(says((3, 0.0, 0.0, "t"), (1, 0.0, 0.0, "t"), (0,), (2,), (5,), (4,)))
    slots.finish_step()
    assert slots.ids.tolist() == [0, 5, 2, 4]


def test_a_group_comes_back_into_its_own_slots():
    slots = Slots(SPEC, 4, rows(4))
    first, ends = says((0,), (1,), (2,), (3,)), says((2, 0, 0, "t"), (0, 0, 0, "t"))
    first.group_ids[:] = [1, 1, 2, 2]
    slots.begin_reset()
    slots.take(first)
    slots.end_reset()
    act(slots)
    slots.take(ends)
    back = says((4,), (5,))
    back.group_ids[:] = [1, 2]  # registered in another order than they ended
    slots.take(back)
    assert slots.ids.tolist() == [4, 1, 5, 3]


def test_an_end_waits_for_the_first_decision_of_the_next():
    slots = started(2)
    act(slots)
    slots.take(says((0, 5.0, -1.0, "t"), (1, 11.0)))
    slots.finish_step()
    assert not slots.rows.terminated.any() and slots.rows.active.all()
    act(slots)
    assert slots.rows.active.tolist() == [False, True]
    slots.take(says((1, 12.0), (2, 6.0)))
    slots.finish_step()
    assert slots.rows.terminated.tolist() == [True, False]  # told in a row in which it did not act
    assert slots.rows.reward[0] == -1.0 and slots.rows.obs[0][0, 0] == 6.0
    assert slots.rows.final_obs[0][0, 0] == 5.0


def test_an_agent_that_does_not_come_back_ends_and_leaves_its_slot_empty():
    slots = started(2)
    act(slots)
    slots.take(says((0, 5.0, -1.0, "t"), (1, 11.0)))
    slots.pass_round()
    slots.finish_step()
    told = []
    for _ in range(PATIENCE + 5):
        act(slots)
        slots.take(says((1, 12.0)))
        slots.pass_round()
        slots.finish_step()
        told.append((bool(slots.rows.terminated[0]), float(slots.rows.reward[0])))
    assert told.count((True, -1.0)) == 1 and told.count((False, 0.0)) == PATIENCE + 4
    assert slots.rows.obs[0][0, 0] == 5.0 and slots.alive.tolist() == [False, True]
    act(slots)
    slots.take(says((1, 12.0), (2, 6.0)))  # comes back after all: a new beginning, no end
    slots.finish_step()
    assert not slots.rows.terminated.any() and slots.rows.obs[0][0, 0] == 6.0


def test_an_agent_that_vanishes_without_a_word_is_given_up():
    slots = started(2)
    act(slots)
    for _ in range(PATIENCE):
        slots.take(says((1, 11.0, 0.1)))
        slots.pass_round()
        assert slots.owing[0]
        slots.answer(None, None)
    assert slots.give_up_silent() == 1
    slots.finish_step()
    r = slots.rows
    assert (r.truncated[0], r.active[0], r.reward[0], r.lost[0]) == (True, False, 0.0, 1.0)
    assert r.final_obs[0][0, 0] == 0.0
    slots.begin_step(True)
    slots.take(says((1, 12.0), (2, 6.0)))
    assert slots.ids.tolist() == [2, 1]


def test_an_agent_that_ends_twice_before_its_first_decision_is_counted():
    slots = started(1)
    act(slots)
    slots.take(says((0, 1.0, 0.5, "t")))
    slots.take(says((1, 2.0, 9.0, "t")))
    slots.take(says((2, 3.0)))
    slots.finish_step()
    assert slots.empty_episodes == 1 and slots.ids.tolist() == [2]
    assert slots.rows.reward[0] == 0.5 and slots.rows.final_obs[0][0, 0] == 1.0


def test_more_agents_than_slots_name_the_setting():
    slots = started(2)
    act(slots)
    with pytest.raises(WorldError, match="num_agents=3"):
        slots.take(says((0,), (1,), (2,)))


def test_agents_that_ask_twice_in_a_step_repeat_their_action_and_sum_their_rewards():
    slots = started(2)
    act(slots, 0.5)
    slots.take(says((0, 1.0, 0.25)))
    assert slots.owing.tolist() == [False, True]
    assert slots.answer(None, None).continuous.tolist() == [[0.5]]
    slots.take(says((0, 2.0, 0.5), (1, 11.0, 1.0)))
    slots.finish_step()
    assert slots.rows.reward.tolist() == [0.75, 1.0]
    assert slots.rows.obs[0][:, 0].tolist() == [2.0, 11.0]


def test_only_those_that_ask_act_where_the_others_are_not_waited_for():
    slots = started(2)
    slots.begin_step(False)
    slots.answer(np.array([[0.1], [0.2]], np.float32), None)
    slots.take(says((1, 11.0, 1.0)))
    slots.finish_step()
    assert slots.rows.active.tolist() == [True, True] and slots.rows.reward.tolist() == [0.0, 1.0]
    slots.begin_step(False)
    assert slots.rows.active.tolist() == [False, True]
    answer = slots.answer(np.array([[0.3], [0.4]], np.float32), None)
    assert answer.continuous.tolist() == [[pytest.approx(0.4)]]
    slots.take(says((0, 1.0, 2.0)))
    slots.finish_step()
    assert slots.rows.reward.tolist() == [2.0, 0.0] and slots.rows.obs[0][0, 0] == 1.0


def test_a_reset_keeps_slots_and_tells_no_end():
    slots = started(2)
    act(slots)
    slots.take(says((0, 5.0, -1.0, "t"), (1, 11.0), (2, 6.0)))
    slots.finish_step()
    slots.begin_step(True)  # as the contract does: a step's flags are gone before a reset
    slots.begin_reset()
    slots.take(says((1, 9.0, -3.0, "t")))
    assert slots.owing.tolist() == [True, False]
    slots.take(says((2, 1.0, 7.0), (3, 2.0, 7.0)))
    slots.end_reset()
    assert slots.ids.tolist() == [2, 3]
    assert not slots.rows.terminated.any() and not slots.rows.reward.any()


def test_a_lost_player_truncates_what_was_under_way():
    slots = started(3)
    act(slots)
    slots.take(says((0, 5.0, -1.0, "t"), (1, 11.0, 0.5), (2, 21.0, 0.5)))
    slots.lose_all()
    r = slots.rows
    assert r.terminated.tolist() == [True, False, False]  # that end was known
    assert r.truncated.tolist() == [False, True, True] and r.lost.tolist() == [0.0, 1.0, 1.0]
    assert r.reward.tolist() == [-1.0, 0.0, 0.0]
    assert r.final_obs[0][:, 0].tolist() == [5.0, 11.0, 21.0]
    slots.begin_reset()
    slots.take(says((0, 1.0), (1, 2.0), (2, 3.0)))
    slots.end_reset()
    assert r.truncated.tolist() == [False, True, True] and r.obs[0][:, 0].tolist() == [1, 2, 3]
    assert r.terminated.tolist() == [True, False, False] and r.reward.tolist() == [-1.0, 0.0, 0.0]


def test_rewards_of_the_group_count_by_their_weight():
    slots = Slots(SPEC, 1, rows(1, terms=True), group_weight=0.5)
    slots.begin_reset()
    slots.take(says((0,)))
    slots.end_reset()
    act(slots)
    message = says((0, 1.0, 0.25))
    message.group_reward[:] = 2.0
    slots.take(message)
    assert slots.rows.reward.tolist() == [1.25]
    assert slots.rows.terms.tolist() == [[0.25, 2.0]]


def test_what_is_forbidden_is_not_repeated():
    full = [[True] * 5] * 2
    slots = started(2, says((0,), (1,), masks=full), spec=CHOICES, mask_size=5)
    slots.begin_step(True)
    slots.answer(None, np.array([[1, 1], [2, 0]]))
    slots.take(says((0,), masks=[[True, False, True, True, False]]))
    assert slots.answer(None, None).discrete.tolist() == [[0, 0]]
    assert slots.rows.mask[0].tolist() == [True, False, True, True, False]
    choices = np.array([[2, 1], [0, 1]])
    mask = np.array([[False, True, False, True, True], [True, True, True, True, False]])
    assert allowed(choices, mask, (3, 2)).tolist() == [[1, 1], [0, 0]]


# ----- Random scenes: bodies that respawn in place -----------------------------------------------
@dataclass
class Body:
    """One body of a random scene, and what its current agent was given."""

    number: int
    id: int
    episode: int = 0
    decided: bool = False
    total: float = 0.0
    clock: int = 0
    kept: list = field(default_factory=list)
    """(return, interrupted) of its episodes that had a decision."""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
def test_every_slot_is_one_body_and_its_returns_are_exact(seed, count, everyone):
    rng = np.random.default_rng(seed)
    bodies = [Body(number, number) for number in range(count)]
    next_id = count
    slots = started(count, says(*((b.id, b.number) for b in bodies)))
    for body in bodies:
        body.decided = True
    told: list[list] = [[] for _ in bodies]
    sums = np.zeros(count)

    def message(ended, asking):
        nonlocal next_id
        infos = []
        for body in ended:
            reward = float(rng.integers(0, 8))
            body.clock += 1
            kind = "c" if rng.random() < 0.3 else "t"
            infos.append((body.id, body.number, reward, kind))
            if body.decided:
                body.kept.append((body.total + reward, kind == "c"))
            body.id, next_id = next_id, next_id + 1
            body.decided, body.total = False, 0.0
        for body in asking:
            reward = float(rng.integers(0, 8))
            infos.append((body.id, body.number, reward))
            body.total += reward if body.decided else 0.0
            body.decided = True
        return says(*infos) if infos else None

    for _ in range(30):
        slots.begin_step(everyone)
        slots.answer(np.zeros((count, 1), np.float32), None)
        while True:
            ended = [body for body in bodies if rng.random() < 0.15]
            rng.shuffle(ended)
            if everyone:  # in step with each other: all ask, or nobody
                asking = list(bodies) if rng.random() < 0.5 else []
            else:
                asking = [body for body in bodies if rng.random() < 0.4]
            rng.shuffle(asking)
            batch = message(ended, asking)
            if batch is None:
                continue
            slots.take(batch)
            if asking:
                slots.pass_round()
                break
            assert slots.answer(None, None).continuous.shape[0] == 0
        slots.finish_step()
        assert not (everyone and slots.owing.any())
        sums += slots.rows.reward
        assert [int(n) for n in slots.rows.obs[0][:, 0]] == [body.number for body in bodies]
        done = slots.rows.terminated | slots.rows.truncated
        assert not (slots.rows.terminated & slots.rows.truncated).any()
        for slot in np.flatnonzero(done):
            assert slots.rows.final_obs[0][slot, 0] == slot
            told[slot].append((float(sums[slot]), bool(slots.rows.truncated[slot])))
            sums[slot] = 0.0
    for body, found in zip(bodies, told, strict=True):
        waiting = len(body.kept) - len(found)  # an end whose next agent has not asked yet
        assert found == body.kept[: len(found)] and waiting in (0, 1)
