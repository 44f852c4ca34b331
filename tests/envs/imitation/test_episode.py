"""Episodes: what begins, wraps, warms up, switches and ends, with times worked by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rlgym.envs.imitation.clip_files import load_clip
from rlgym.envs.imitation.clips import ClipSet, Ref
from rlgym.envs.imitation.episode import NEVER, Episodes, Rows
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.rotations import about_z, heading, rotate
from rlgym.envs.imitation.spec import EpisodeSpec
from rlgym.envs.physics.robots import get_robot

A1 = get_robot("a1")
DT = 0.03
TROT = ClipSet([load_clip("trot", A1)], A1)
TURN = ClipSet([load_clip("turn", A1)], A1)
SEVERAL = ClipSet([load_clip(name, A1) for name in ("trot", "pace", "turn", "sit")], A1)


def episodes(spec: EpisodeSpec, clips: ClipSet, count: int = 64, seed: int = 0) -> Episodes:
    default = np.array(A1.default_pose)
    seeds = np.arange(seed, seed + count, dtype=np.int64)
    made = Episodes(spec, clips, DT, A1.init_height, default, seeds, clips.duration)
    made.begin(all_rows(made))
    return made


def all_rows(made: Episodes) -> Rows:
    return Rows(made.step >= 0)


def sample(made: Episodes) -> Ref:
    return made.warmed(made.clips.sample(made.clip, made.time()))


def robots(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Places and headings of robots."""
    draw = np.random.default_rng(seed)
    return draw.uniform(-2, 2, (count, 3)), about_z(draw.uniform(-3, 3, count))


def test_phases_and_clips_are_drawn_evenly_and_by_the_slot_alone():
    made = episodes(EpisodeSpec(), SEVERAL, 4000)
    phase = made.time() / SEVERAL.duration[made.clip]
    assert np.histogram(phase, 10, (0, 1))[0].min() > 330
    assert np.bincount(made.clip).min() > 900
    alone = episodes(EpisodeSpec(), SEVERAL, 1, seed=17)
    assert alone.time()[0] == made.time()[17] and alone.clip[0] == made.clip[17]


def test_only_the_rows_asked_for_begin_anew():
    made = episodes(EpisodeSpec(), TROT, 4)
    for _ in range(5):
        made.advance()
    before = made.time()
    made.begin(Rows(np.array([False, True, False, True])))
    assert made.step.tolist() == [5, 0, 5, 0] and made.number.tolist() == [0, 1, 0, 1]
    assert np.array_equal(made.time()[[0, 2]], before[[0, 2]])
    assert (made.time()[[1, 3]] != before[[1, 3]]).all()


def test_a_cycle_ends_when_its_time_has_passed():
    made = episodes(EpisodeSpec(), TROT, 2)
    made.start[:] = (0.0, 0.4)  # the trot's period is .5 s: steps 17 and 4, then 34 and 20
    made.cycle[:] = 0.0
    moved = [made.advance()[0].tolist() for _ in range(36)]
    assert [i + 1 for i, (first, _) in enumerate(moved) if first] == [17, 34]
    assert [i + 1 for i, (_, second) in enumerate(moved) if second] == [4, 20]


def test_without_sync_nothing_is_moved():
    made = episodes(EpisodeSpec(sync_position=False), TROT, 8)
    assert not any(made.advance()[0].any() for _ in range(40))


def test_a_held_first_step_stays_one_behind():
    made = episodes(EpisodeSpec(hold_first_step=True), TROT, 1)
    start, times = float(made.start[0]), []
    for _ in range(3):
        made.advance()
        times.append(made.time()[0] - start)
    assert times == pytest.approx([0.0, DT, 2 * DT])


@pytest.mark.parametrize("clips", [TROT, TURN], ids=["straight", "turning"])
def test_an_episode_begins_at_the_origin_heading_along_x(clips):
    made = episodes(EpisodeSpec(), clips)
    clip = sample(made)
    made.settle(all_rows(made), clip.root_pos, clip.root_quat)
    ref = made.place(clip)
    assert np.allclose(ref.root_pos[:, :2], 0.0, atol=1e-12)
    assert np.allclose(ref.root_pos[:, 2], clip.root_pos[:, 2])
    assert np.allclose(heading(ref.root_quat), 0.0, atol=1e-12)


def test_what_is_placed_is_turned_about_z_and_moved():
    made = episodes(EpisodeSpec(), TURN)
    draw = np.random.default_rng(3)
    angle = draw.uniform(-3, 3, 64)
    made.cos, made.sin = np.cos(angle), np.sin(angle)
    made.offset = draw.uniform(-1, 1, (64, 3))
    clip = sample(made)
    ref = made.place(clip)
    turn = about_z(angle)
    assert np.allclose(ref.root_pos, rotate(turn, clip.root_pos) + made.offset)
    assert np.allclose(ref.root_linvel, rotate(turn, clip.root_linvel))
    assert np.allclose(ref.root_angvel, rotate(turn, clip.root_angvel))
    assert np.array_equal(ref.q, clip.q) and np.array_equal(ref.qd, clip.qd)
    # the feet are where the placed body has them
    assert np.allclose(ref.foot_pos, foot_positions(A1, ref.root_pos, ref.root_quat, ref.q))
    pose = made.place_pose(TURN.pose(made.clip, made.time()[:, None]))
    assert np.allclose(pose.root_pos[:, 0], ref.root_pos)
    assert np.allclose(pose.root_quat[:, 0], ref.root_quat)


def test_sync_moves_the_reference_to_the_robot_and_turns_it_on_request():
    made = episodes(EpisodeSpec(switch_seconds=(1.0, 2.0)), SEVERAL)
    pos, quat = robots(64)
    clip = sample(made)
    moved = np.arange(64) % 2 == 0
    turned = np.arange(64) % 4 == 0
    before = made.place(clip)
    made.sync(moved, turned, clip.root_pos, clip.root_quat, pos, quat)
    after = made.place(clip)
    assert np.allclose(after.root_pos[moved, :2], pos[moved, :2])
    assert np.allclose(after.root_pos[:, 2], before.root_pos[:, 2])
    assert np.allclose(after.root_pos[~moved], before.root_pos[~moved])
    gap = heading(after.root_quat) - heading(quat)
    assert np.allclose(np.sin(gap[turned]), 0.0, atol=1e-9) and (np.cos(gap[turned]) > 0).all()
    assert np.allclose(after.root_quat[~turned], before.root_quat[~turned])


def test_ground_lifts_the_reference():
    made = episodes(EpisodeSpec(), TROT, 2)
    clip = sample(made)
    made.stand_on(np.array([0.0, 0.3]))
    ref = made.place(clip)
    assert np.allclose(ref.root_pos[:, 2] - clip.root_pos[:, 2], [0.0, 0.3])
    assert np.allclose(ref.foot_pos[..., 2] - clip.foot_pos[..., 2], [[0.0], [0.3]])


def test_a_warm_up_stands_in_the_default_pose_until_the_clip_begins():
    made = episodes(EpisodeSpec(reference_start=0.5, warm_up=0.25), SEVERAL, 2000)
    warm = made.warm
    assert warm.mean() == pytest.approx(0.5, abs=0.04)
    assert made.time()[warm].min() >= -0.25 and made.time()[warm].max() < 0.0
    assert made.time()[~warm].min() >= 0.0
    ref = sample(made)
    assert np.allclose(ref.q[warm], A1.default_pose)
    assert np.allclose(ref.root_pos[warm], [0.0, 0.0, A1.init_height])
    for still in (ref.root_linvel, ref.root_angvel, ref.qd):
        assert not still[warm].any() and still[~warm].any()
    assert np.allclose(ref.foot_pos, foot_positions(A1, ref.root_pos, ref.root_quat, ref.q))
    ahead = made.time()[:, None] + np.array([0.0, 0.3])
    pose = made.warmed_pose(SEVERAL.pose(made.clip, ahead), ahead)
    assert np.allclose(pose.q[warm, 0], A1.default_pose)
    assert np.allclose(pose.q[:, 1], SEVERAL.pose(made.clip, ahead).q[:, 1])
    crossed = np.zeros(2000, bool)
    for _ in range(9):  # .27 s: every warm-up is over, and its end moved the reference
        before = made.time() < 0
        moved, _ = made.advance()
        over = before & (made.time() >= 0)
        crossed |= over
        loops = SEVERAL.looping[made.clip]
        assert moved[over & loops].all()
    assert np.array_equal(crossed, warm)


def test_a_clip_that_does_not_loop_ends():
    clips = ClipSet([load_clip("sit", A1)], A1)
    made = episodes(EpisodeSpec(), clips, 16)
    left = clips.duration[0] - made.time()
    for step in range(1, round(clips.duration[0] / DT) + 2):
        moved, turned = made.advance()
        assert not moved.any() and not turned.any()
        over, late = made.over()
        assert np.array_equal(over, left <= step * DT + 1e-12) and not late.any()
    assert over.all()


def test_time_runs_out_after_the_limit():
    made = episodes(EpisodeSpec(seconds=0.3), TROT, 3)
    late = [made.over()[1].all() for _ in range(11) if made.advance()]
    assert late == [False] * 9 + [True] * 2


def test_the_curriculum_grows_with_the_cube_of_the_steps():
    spec = EpisodeSpec(seconds=18.0, curriculum_seconds=0.6, curriculum_steps=1000)
    made = episodes(spec, TROT, 5)
    assert made.limit.tolist() == [20] * 5
    for done, limit in ((500, 20 * 7 / 8 + 600 / 8), (1000, 600), (5000, 600)):
        made.total_steps = done
        made.begin(Rows(np.array([True, False, False, False, False])))
        assert made.limit.tolist() == [int(limit), 20, 20, 20, 20]
    made.advance()
    assert made.total_steps == 5005


def test_clips_switch_in_their_time_with_a_new_phase():
    spec = EpisodeSpec(switch_seconds=(0.3, 0.6))
    made = episodes(spec, SEVERAL, 500)
    last, seen = np.zeros(500), set()
    for step in range(1, 101):
        clip, time = made.clip.copy(), made.time()
        moved, turned = made.advance()
        steady = ~turned
        assert np.array_equal(made.clip[steady], clip[steady])
        assert np.allclose(made.time()[steady], time[steady] + DT)
        assert (moved[turned]).all()
        assert (
            (made.time()[turned] >= 0) & (made.time() < SEVERAL.duration[made.clip])[turned]
        ).all()
        gaps = step - last[turned]
        assert ((gaps >= 11) & (gaps <= 20)).all()  # .3 to .6 s, rounded up
        seen |= set(gaps.tolist())
        last[turned] = step
    assert len(seen) == 10
    assert np.bincount(made.clip).min() > 80
    assert (episodes(EpisodeSpec(), SEVERAL).switch_step == NEVER).all()


def test_torch_runs_the_same_episodes():
    spec = EpisodeSpec(
        reference_start=0.7, switch_seconds=(0.2, 0.4), hold_first_step=True, seconds=1.0
    )
    numpy = episodes(spec, SEVERAL, 200)
    clips = SEVERAL.to("cpu")
    default = torch.tensor(A1.default_pose)
    other = Episodes(*(spec, clips, DT, A1.init_height, default, torch.arange(200), clips.duration))
    other.begin(all_rows(other))
    for step in range(30):
        pos, quat = robots(200, step)
        for made, to in ((numpy, np.asarray), (other, lambda a: torch.tensor(a).float())):
            moved, turned = made.advance()
            clip = sample(made)
            made.sync(moved, turned, clip.root_pos, clip.root_quat, to(pos), to(quat))
        if step == 10:
            mask = np.arange(200) % 3 == 0
            for made, rows in ((numpy, Rows(mask)), (other, Rows(torch.tensor(mask)))):
                made.begin(rows)
                clip = made.clips.sample(rows.take(made.clip), rows.take(made.time()))
                clip = made.warmed(clip, rows)
                made.settle(rows, clip.root_pos, clip.root_quat)
    for name in Episodes.SAVED:
        ours, theirs = getattr(numpy, name), getattr(other, name).numpy()
        close = np.isclose(ours, theirs, atol=2e-4)
        # a time that is a whole number of cycles may round to either side in float32
        assert close.reshape(200, -1).all(1).mean() > 0.97, name
    assert math.isclose(numpy.total_steps, other.total_steps)
    ours, theirs = numpy.place(sample(numpy)), other.place(sample(other))
    for field in dataclasses.fields(Ref):
        a, b = getattr(ours, field.name), getattr(theirs, field.name).numpy()
        assert np.isclose(a, b, atol=5e-3).reshape(200, -1).all(1).mean() > 0.95, field.name
