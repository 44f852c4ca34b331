"""From readings to joint targets: observation, policy, action, filter; each step as in training.

controller = Controller(bundle, policy)
target = controller.begin(values)
target = controller.step(values)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import MOTION, Bundle, finite
from .errors import BundleError, DeployError
from .motion import FIELDS, Clip, Reference
from .observation import JOINT_ANGLE, ORIENTATION, POSITION, Observer, Values
from .policy import Policy

MAX_MOTION = 256 << 20
"""Bytes of a motion's file that a person gives."""


class Controller:
    """A policy with all that surrounds it.

    Args:
        bundle: opened.
        policy: of the bundle.
        clip: name of the motion, where the bundle has several; "": the first.
        motion: .npz of root_pos, root_quat and q, where the bundle may not hold them; "": none.
        start: the motion's time to begin at, s; None: its beginning.

    Attributes:
        observer: what the policy is shown.
        stiffness, damping: (nv,) of the joints' servos.

    Raises:
        BundleError: the bundle lacks what its policy needs, or contradicts itself.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        clip: str = "",
        motion: str = "",
        start: float | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.policy, self.manifest, self._start = policy, manifest, start
        try:
            self.reference = _reference(bundle, clip, motion)
            self.observer = Observer(manifest, self.reference)
            self.joints = self.observer.joints
            if self.joints is not None:
                self._read_robot(manifest["robot"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, DeployError):
                raise
            raise BundleError(
                f"the manifest does not describe its robot ({type(error).__name__}: {error}): "
                "export the policy again"
            ) from None
        self._last_action = np.zeros(0 if self.joints is None else self.joints.nv)
        self.action: Any = None

    def _read_robot(self, robot: Mapping[str, Any]) -> None:
        assert self.joints is not None
        nv = self.joints.nv
        self.stiffness = self.joints.per_velocity(robot["stiffness"])
        self.damping = self.joints.per_velocity(robot["damping"])
        self._scale = np.array(robot["action_scale"], np.float64)
        offset = robot["action_offset"] if self.reference is None else None
        self._offset = (
            self.reference.clip.action_offset
            if self.reference is not None
            else np.array(offset, np.float64)
        )
        self._bound = finite(robot["action_bound"], "robot.action_bound")
        self._default = np.array(robot["default_joint_pos"], np.float64)
        self._low = self._high = None
        if robot["target_lower"] is not None:
            self._low = np.array(robot["target_lower"], np.float64)
            self._high = np.array(robot["target_upper"], np.float64)
        rate = finite(self.manifest["timing"]["control_hz"], "timing.control_hz")
        self._filter = None if robot["cutoff"] is None else _low_pass(robot["cutoff"], rate)
        sizes = {"stiffness": self.stiffness, "damping": self.damping, "action_scale": self._scale}
        sizes |= {"action_offset": self._offset, "target_lower": self._low}
        sizes |= {"target_upper": self._high}
        for name, values in sizes.items():
            if values is not None and not (values.shape == (nv,) and np.isfinite(values).all()):
                raise BundleError(f"robot.{name} is no list of {nv} numbers: export again")
        terms = [t for entry in self.manifest["observation"] for t in entry["terms"]]
        shown = [t.get("meaning", "") for t in terms if t["name"] == "last_action"]
        self._shows_target = any("action_offset" in meaning for meaning in shown)
        self._starts_standing = any(t.get("start") == "default" for t in terms)

    @property
    def over(self) -> bool:
        """The motion has ended."""
        return self.reference is not None and self.reference.over

    def start_angles(self) -> np.ndarray:
        """Angles (nv,), rad, that a robot should stand in before `begin`."""
        assert self.joints is not None
        pose = self._default if self.reference is None else self.reference.start_pose(self._start)
        return self.joints.angles(pose)

    def begin(self, values: Values) -> np.ndarray | None:
        """Begin anew; returns what `step` does.

        Args:
            values: of the sensors that `observer.needs` names.
        """
        self.policy.reset()
        if self.reference is not None:
            self.reference.begin(values[ORIENTATION], values.get(POSITION), self._start)
        if self.joints is not None:
            self._last_action = np.zeros(self.joints.nv)
            seen = self._default if self._starts_standing else values[JOINT_ANGLE]
            self._memory = [self.joints.angles(np.asarray(seen, np.float64))] * 4
        return self._act(self.observer.begin(values, self._last_action))

    def step(self, values: Values, steps: int = 1) -> np.ndarray | None:
        """Act on the next readings.

        Args:
            values: of the sensors.
            steps: control steps since the last call; more than 1 after missed deadlines.

        Returns:
            Targets of the joints (nv,), rad; None where there are no joints: see `action`.
        """
        if self.reference is not None:
            self.reference.advance(values[ORIENTATION], values.get(POSITION), steps)
        return self._act(self.observer.step(values, self._last_action))

    def _act(self, obs: dict[str, np.ndarray]) -> np.ndarray | None:
        mask = obs.pop("action_mask", None)
        self.action = self.policy.act(obs, mask)
        if self.joints is None:
            return None
        action = np.clip(np.asarray(self.action, np.float64).ravel(), -self._bound, self._bound)
        angles = self._offset + self._scale * action
        self._last_action = angles if self._shows_target else action
        if self._filter is not None:
            b0, a1, a2 = self._filter
            x1, x2, y1, y2 = self._memory
            out = b0 * (angles + 2 * x1 + x2) - a1 * y1 - a2 * y2
            self._memory = [angles, x1, out, y1]
            angles = out
        return angles if self._low is None else np.clip(angles, self._low, self._high)


def _reference(bundle: Bundle, name: str, motion: str) -> Reference | None:
    """What is imitated, from the bundle or a file of the person's own."""
    manifest = bundle.manifest
    targets = manifest.get("targets")
    if targets is None:
        return None
    names = [entry["name"] for entry in targets["clips"]]
    if name and name not in names:
        raise DeployError(f"the bundle has no clip '{name}'; it has {', '.join(names)}")
    index = names.index(name) if name else 0
    about = targets["clips"][index]
    if motion:
        arrays = _own_motion(motion)
    elif about["shipped"]:
        held = bundle.arrays(MOTION)
        arrays = {field: held[f"{index}/{field}"] for field in FIELDS}
    else:
        raise DeployError(
            f"the licence of clip '{about['name']}' ({about['licence'] or 'not stated'}) does not "
            "let the bundle hold it: give your own copy with --motion FILE.npz"
        )
    spherical = [bool(ball) for ball in manifest["robot"]["spherical"]]
    clip = Clip(about, arrays, spherical)
    return Reference(targets, manifest["robot"], clip, manifest["timing"]["control_dt"])


def _own_motion(path: str) -> dict[str, np.ndarray]:
    """Read the arrays of a motion from an .npz that a person gives."""
    try:
        if Path(path).stat().st_size > MAX_MOTION:
            raise DeployError(f"{path} is too large for a motion")
        with np.load(path, allow_pickle=False) as file:
            return {field: file[field] for field in FIELDS}
    except DeployError:
        raise
    except Exception as error:
        raise DeployError(
            f"{path} is no motion ({error}): it must be an .npz with {', '.join(FIELDS)}"
        ) from None


def _low_pass(cutoff: Any, rate: float) -> tuple[float, float, float]:
    """Coefficients of a second-order Butterworth filter: y = b0 (x + 2 x1 + x2) - a1 y1 - a2 y2.

    The bilinear transform of 1 / (s^2 + sqrt(2) s + 1), with the cut-off prewarped: Oppenheim and
    Schafer, "Discrete-Time Signal Processing", section 7.1.2.
    """
    hertz = finite(cutoff, "robot.cutoff")
    if not 0 < hertz < rate / 2:
        raise BundleError(f"robot.cutoff is {hertz:g} Hz, and must be below {rate / 2:g}")
    k = math.tan(math.pi * hertz / rate)
    norm = 1 / (1 + math.sqrt(2) * k + k * k)
    return k * k * norm, 2 * (k * k - 1) * norm, (1 - math.sqrt(2) * k + k * k) * norm
