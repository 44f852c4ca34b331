"""`rlgym clip`: look at a reference motion, convert, generate or retarget one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError
from rlgym.settings import suggest

if TYPE_CHECKING:
    import numpy as np

    from rlgym.envs.imitation.clips import Clip
    from rlgym.envs.physics.robots import Robot

ACTIONS = ("show", "convert", "generate", "retarget")
LEGS = ("front right", "front left", "rear right", "rear left")


@dataclass(frozen=True)
class Options:
    """Look at a reference motion, or write one as .npz.

    rlgym clip show (lists the names of clips that need no file)

    rlgym clip show trot --plot trot.svg --film trot.mp4

    rlgym clip generate trot:speed=.8,period=.4 fast_trot.npz --robot aliengo

    rlgym clip convert dog_pace.txt pace.npz --licence "CC BY-NC 4.0"

    rlgym clip retarget dog_pace.txt pace_a1.npz --robot a1

    A clip is a generated gait, with or without parameters, a motion that pybullet_data brings, or
    a file: .txt or .json (motion_imitation, DeepMimic), .csv and .npz (mjlab, BeyondMimic, rlgym).
    docs/clips.md has the formats and the parameters of gaits.
    """

    action: Positional[Literal["show", "convert", "generate", "retarget"]]
    """What to do."""
    clip: Positional[str | None] = None
    """A gait, a name or a file; without one, show lists the names."""
    out: Positional[str | None] = None
    """The .npz file to write; show writes none."""
    robot: str | None = None
    """Whose joints the clip shall move: a1, laikago, mini_cheetah, aliengo, humanoid. By default
    show and convert leave a file's motion with its own robot, and all else is a1's."""
    fps: float = 30.0
    """Frames per second of a .csv, which does not say."""
    scale: float | None = None
    """Factor of lengths; by default 1, or for another robot's clip the ratio of legs."""
    level: bool = False
    """Keep the base level, turning only about the vertical."""
    mirror: bool = False
    """Exchange left and right."""
    loop: Literal["file", "yes", "no"] = "file"
    """Whether the motion goes on from its start when it is over; by default as the file says."""
    name: str | None = None
    """Name of the clip that is written; by default the old one."""
    licence: str | None = None
    """Licence of the motion, to be kept with it."""
    may_ship: bool = False
    """The licence lets the motion be passed on inside a policy's bundle."""
    plot: str | None = None
    """Also draw joint angles and heights of feet into this .svg file."""
    film: str | None = None
    """Also film the motion into this .mp4 or .gif file."""
    seconds: float = 5.0
    """Length of the film and the plot of a motion that loops."""
    overwrite: bool = False
    """Replace files that stand there."""
    json: bool = False
    """Print one JSON object."""


def run(argv: list[str]) -> int:
    """Do it, and say what the clip is like."""
    wanted = parse(Options, argv, "rlgym clip", ("action", "clip", "out"))
    if wanted.action not in ACTIONS:
        raise UserError(f"rlgym clip {wanted.action}: {suggest(wanted.action, ACTIONS)}")
    if wanted.clip is None:
        if wanted.action != "show":
            raise UserError(f"which one? rlgym clip {wanted.action} CLIP OUT.npz")
        return _list()
    from rlgym.envs.imitation.clip_files import save_clip
    from rlgym.envs.physics.robots import get_robot

    _check_files(wanted)
    clip = _made(wanted, wanted.clip)
    robot = get_robot(clip.robot)
    facts = describe(clip, robot)
    written = []
    if wanted.out is not None:
        written.append(save_clip(clip, wanted.out))
    if wanted.plot is not None:
        written.append(_plot(clip, robot, Path(wanted.plot), wanted.seconds))
    if wanted.film is not None:
        written.append(_film(clip, robot, Path(wanted.film), wanted.seconds))
    if wanted.json:
        print(json.dumps({**facts, "written": [str(path) for path in written]}))
        return 0
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):<{width}}  {value}")
    for path in written:
        print(f"written: {path}")
    return 0


def _list() -> int:
    from rlgym.envs.imitation.clip_files import bundled_clips
    from rlgym.envs.imitation.gaits import GAITS

    print(f"generated, for every robot with four legs:\n  {', '.join(GAITS)}")
    print(f"motions that pybullet_data brings:\n  {', '.join(bundled_clips())}")
    print("or a file: .txt, .json, .csv, .npz")
    return 0


def _check_files(wanted: Options) -> None:
    """Refuse before any work is done."""
    if (wanted.out is None) != (wanted.action == "show"):
        hint = "show writes no clip" if wanted.out else "name the .npz file to write"
        raise UserError(f"rlgym clip {wanted.action}: {hint}")
    if wanted.seconds <= 0 or wanted.seconds > 600:
        raise UserError("--seconds must be above 0 and at most 600")
    kinds = {"out": (".npz",), "plot": (".svg",), "film": (".mp4", ".gif")}
    for key, suffixes in kinds.items():
        name = getattr(wanted, key)
        if name is None:
            continue
        if Path(name).suffix not in suffixes:
            raise UserError(f"{name}: its name must end in {' or '.join(suffixes)}")
        if os.path.exists(name) and not wanted.overwrite:
            raise UserError(f"{name} exists: add --overwrite to replace it")


def _made(wanted: Options, name: str) -> Clip:
    """Return the clip that the words and flags ask for."""
    from rlgym.envs.imitation.clip_files import Treatment, find_clip, load_clip
    from rlgym.envs.imitation.gaits import GAITS
    from rlgym.envs.physics.robots import get_robot

    gait = name.partition(":")[0]
    if wanted.action == "generate" and gait not in GAITS:
        raise UserError(f"there is no gait '{gait}': {suggest(gait, GAITS)}")
    robot = get_robot(wanted.robot or "a1")
    source = find_clip(name, robot, wanted.fps)
    if wanted.robot is None and wanted.action in ("show", "convert"):
        robot = get_robot(source.robot)
    scale = wanted.scale
    if wanted.action == "retarget" and scale is None and source.robot == robot.name:
        scale = 1.0  # asked for by name, even onto its own robot
    treatment = Treatment(wanted.fps, scale, wanted.level, wanted.mirror)
    clip = load_clip(source, robot, treatment)
    return replace(
        clip,
        name=wanted.name or clip.name,
        loop=clip.loop if wanted.loop == "file" else wanted.loop == "yes",
        licence=wanted.licence or clip.licence,
        may_ship=clip.may_ship or wanted.may_ship,
    )


def describe(clip: Clip, robot: Robot) -> dict[str, Any]:
    """Return what a person wants to know of a clip, as plain values."""
    _, ref = _sampled(clip, robot, clip.duration, 200)
    net = clip.root_pos[-1] - clip.root_pos[0]
    mean = net / clip.duration
    radius = robot.feet[0].radius
    clearance = ref.foot_pos[..., 2] - radius
    shape = f"{clip.num_frames} frames, {1 / clip.dt:.4g} per second, {clip.duration:.3g} s"
    facts: dict[str, Any] = {
        "clip": clip.name,
        "robot": clip.robot,
        "length": f"{shape}, {'loops' if clip.loop else 'ends'}",
        "net_motion": f"x {net[0]:+.3f} m, y {net[1]:+.3f} m",
        "mean_velocity": f"x {mean[0]:+.3f} m/s, y {mean[1]:+.3f} m/s",
        "mean_yaw_rate": f"{float(ref.root_angvel[:, 2].mean()):+.3f} rad/s",
        "base_height": f"{ref.root_pos[:, 2].min():.3f} to {ref.root_pos[:, 2].max():.3f} m",
        "feet_above_ground": f"{clearance.min():+.3f} to {clearance.max():+.3f} m",
        "jump_at_the_wrap": f"{_seam(clip):.3f} rad" if clip.loop else "does not loop",
        "fastest_joint": f"{abs(ref.qd).max():.1f} rad/s",
        "source": clip.source,
        "licence": clip.licence,
        "may_ship": "yes" if clip.may_ship else "no",
    }
    if not any(robot.spherical):
        facts["beyond_limits"] = _beyond(clip, robot)
    return facts


def _seam(clip: Clip) -> float:
    return float(abs(clip.q[-1] - clip.q[0]).max())


def _beyond(clip: Clip, robot: Robot) -> str:
    q = clip.q
    over = (q - robot.upper).max(0), (robot.lower - q).max(0)
    worst = {name: max(a, b) for name, a, b in zip(robot.joints, *over, strict=True)}
    named = [f"{name} by {value:.2f} rad" for name, value in worst.items() if value > 1e-6]
    return ", ".join(named) or "no joint"


def _sampled(clip: Clip, robot: Robot, seconds: float, count: int) -> tuple[np.ndarray, Any]:
    import numpy as np

    from rlgym.envs.imitation.clips import ClipSet

    times = np.arange(count) * (seconds / count)
    return times, ClipSet([clip], robot).sample(np.zeros(count, np.int64), times)


def _length(clip: Clip, seconds: float) -> float:
    return seconds if clip.loop else min(seconds, clip.duration)


def _plot(clip: Clip, robot: Robot, path: Path, seconds: float) -> Path:
    """Draw joint angles, one chart for each leg (or all hinges), and the heights of feet."""
    from rlgym.report.svg import lines

    seconds = _length(clip, min(seconds, 2 * clip.duration))
    times, ref = _sampled(clip, robot, seconds, 400)
    x = times.tolist()
    charts = []
    if len(robot.legs) == 4:
        for leg, name in enumerate(LEGS):
            joints = ("abduction", "hip", "knee")
            angles = {part: ref.q[:, 3 * leg + k].tolist() for k, part in enumerate(joints)}
            charts.append(lines(f"{clip.name}: {name}, rad", x, angles, x_label="s"))
        names = list(LEGS)
    else:
        columns = {f"q{k}": ref.q[:, k].tolist() for k in range(ref.q.shape[1])}
        charts.append(lines(f"{clip.name}: joint positions", x, columns, x_label="s", legend=[]))
        names = [foot.link for foot in robot.feet]
    feet: dict[str, Any] = dict(zip(names, ref.foot_pos[..., 2].T.tolist(), strict=True))
    feet["base"] = ref.root_pos[:, 2].tolist()
    charts.append(lines(f"{clip.name}: heights, m", x, feet, x_label="s"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_stacked(charts), "utf-8")
    return path


def _stacked(charts: list[str]) -> str:
    """Put charts of 760 x 220 pixels below each other in one SVG file."""
    rows = "".join(
        f"<g transform='translate(0 {220 * row})'>{chart}</g>" for row, chart in enumerate(charts)
    )
    size = f"width='760' height='{220 * len(charts)}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{rows}</svg>\n"


def _film(clip: Clip, robot: Robot, path: Path, seconds: float) -> Path:
    from rlgym.envs.physics.view import Pose, View
    from rlgym.report.film import import_imageio, open_film

    fps = 30
    imageio = import_imageio(path)
    seconds = _length(clip, seconds)
    count = max(2, round(seconds * fps))
    _, ref = _sampled(clip, robot, count / fps, count)
    view = View(robot)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with open_film(imageio, staged, fps) as film:
            for row in range(count):
                pose = Pose(ref.root_pos[row], ref.root_quat[row], ref.q[row])
                film.append_data(view.frame(pose))
    finally:
        view.close()
    os.replace(staged, path)
    return path
