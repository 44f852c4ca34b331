"""From readings of sensors to what the policy was trained on: named terms, each with its history.

A term is composed here (the words of `observation.py` in training: imu, gravity, joint_angle, ...),
or the robot gives it itself, as a sensor of the term's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import BundleError, DeployError
from .motion import Reference
from .rotations import about_z, gravity, roll_pitch, rotation_vector, wrap_angle

ORIENTATION = "orientation"
"""(4,) xyzw of the base, x forward and z up, in a world whose z is up."""
ANGULAR_VELOCITY = "angular_velocity"
"""(3,) rad/s in the base's frame."""
LINEAR_VELOCITY = "linear_velocity"
"""(3,) m/s of the base in its own frame; no sensor has it, an estimator may."""
JOINT_ANGLE = "joint_angle"
"""(nq,) rad; a spherical joint has four, xyzw."""
JOINT_VELOCITY = "joint_velocity"
"""(nv,) rad/s."""
POSITION = "position"
"""(3,) m of the base in the world."""

Values = Mapping[str, np.ndarray]
"""Readings by the sensors' names."""

_SENSORS: dict[str, tuple[str, ...]] = {
    "imu": (ORIENTATION, ANGULAR_VELOCITY),
    "gravity": (ORIENTATION,),
    "angular_velocity": (ANGULAR_VELOCITY,),
    "linear_velocity": (LINEAR_VELOCITY,),
    "joint_angle": (JOINT_ANGLE,),
    "joint_velocity": (JOINT_VELOCITY,),
    "last_action": (),
    "targets": (ORIENTATION,),
}
"""What each term is made of on a robot with joints."""


class Joints:
    """How many positions and velocities a robot's joints have, and their angles.

    Args:
        robot: the manifest's section.
    """

    def __init__(self, robot: Mapping[str, Any]) -> None:
        self.names: tuple[str, ...] = tuple(robot["joint_names"])
        spherical = [bool(ball) for ball in robot["spherical"]]
        self.has_balls = any(spherical)
        self.widths_q = [4 if ball else 1 for ball in spherical]
        self.widths_v = [3 if ball else 1 for ball in spherical]
        self.nq, self.nv = sum(self.widths_q), sum(self.widths_v)
        self.sign = np.array(robot["sign"], np.float64)
        self.offset = np.array(robot["offset"], np.float64)

    def angles(self, q: np.ndarray) -> np.ndarray:
        """Return (nv,) angles of positions (nq,): a spherical joint's as a rotation vector."""
        if not self.has_balls:
            return q
        parts = np.split(q, np.cumsum(self.widths_q)[:-1])
        return np.concatenate([rotation_vector(x) if len(x) == 4 else x for x in parts])

    def to_model(self, angles: np.ndarray) -> np.ndarray:
        """Return the model file's angles (nv,) of ours; ball joints are as the file has them."""
        return angles if self.has_balls else self.sign * (angles + self.offset)

    def from_model(self, values: dict[str, np.ndarray], angle: str, velocity: str) -> None:
        """Turn the model file's angles and velocities in `values` into ours, where they fit."""
        if self.has_balls:
            return
        if angle in values and len(values[angle]) == self.nq:
            values[angle] = self.sign * values[angle] - self.offset
        if velocity in values and len(values[velocity]) == self.nv:
            values[velocity] = self.sign * values[velocity]

    def per_velocity(self, values: Any) -> np.ndarray:
        """Return one value per joint as one per velocity, (nv,)."""
        return np.repeat(np.array(values, np.float64), self.widths_v)


class _Term:
    """One term of an observation and its last readings, newest first."""

    def __init__(self, entry: Mapping[str, Any], size: int) -> None:
        self.name: str = entry["name"]
        self.history = int(entry.get("history", 1))
        self.width = int(entry.get("width", size // max(self.history, 1)))
        if self.history < 1 or self.history * self.width != size:
            raise BundleError(
                f"term '{self.name}' has {size} values, and not {self.history} times {self.width}"
            )
        if entry.get("order", "newest first") != "newest first":
            raise BundleError(f"term '{self.name}' has its history in an order unknown here")
        self.start: str = entry.get("start", "state")
        self.scale = float(entry.get("scale", 1.0))
        clip = entry.get("clip")
        self.clip = None if clip is None else float(clip)
        self._rows = np.zeros((self.history, self.width))

    def begin(self, reading: np.ndarray) -> None:
        self._rows[:] = self._scaled(reading)

    def push(self, reading: np.ndarray) -> None:
        self._rows[1:] = self._rows[:-1].copy()
        self._rows[0] = self._scaled(reading)

    def flat(self) -> np.ndarray:
        return self._rows.ravel()

    def _scaled(self, reading: np.ndarray) -> np.ndarray:
        scaled = self.scale * np.asarray(reading, np.float64).ravel()
        return scaled if self.clip is None else np.clip(scaled, -self.clip, self.clip)


class Observer:
    """Composes a policy's observations.

    Args:
        manifest: of the bundle.
        reference: what is imitated; None where nothing is.

    Attributes:
        needs: sensors that the robot must have, and how many values each gives.

    Raises:
        BundleError: the manifest's terms do not make up its observations.
    """

    def __init__(self, manifest: Mapping[str, Any], reference: Reference | None = None) -> None:
        robot = manifest.get("robot")
        self.reference = reference
        self.joints = None if robot is None else Joints(robot)
        self._standing: dict[str, np.ndarray] = {}
        if self.joints is not None and robot is not None:
            self._standing = {
                ANGULAR_VELOCITY: np.zeros(3),
                JOINT_ANGLE: np.array(robot["default_joint_pos"], np.float64),
                JOINT_VELOCITY: np.zeros(self.joints.nv),
            }
        self._ports = [_port(entry) for entry in manifest["observation"]]
        self.needs = sensors_of(manifest)
        self._masked = "action_mask" in self.needs
        shown = {term.name for _, _, _, terms in self._ports for term in terms}
        if "targets" in shown and self.joints is not None and reference is None:
            raise BundleError("the policy is shown targets, and the bundle has no motion")

    def begin(self, values: Values, last_action: np.ndarray) -> dict[str, np.ndarray]:
        """Return the first observation of an episode, (*shape) by input.

        Args:
            values: of all sensors of `needs`.
            last_action: what the term of that name shows before there was an action.
        """
        standing = dict(values)
        if self.reference is not None and ORIENTATION in values:
            turn = self.reference.start_heading(values[ORIENTATION])
            standing |= {ORIENTATION: about_z(turn), **self._standing}
        seen = values
        for _, _, _, terms in self._ports:
            for term in terms:
                if term.name == "targets":
                    continue
                if term.start == "default":
                    seen = standing
                shown = standing if term.start == "default" else values
                term.begin(self._reading(term.name, shown, last_action))
        return self._observation(values, seen)

    def step(self, values: Values, last_action: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next observation; arguments as for `begin`."""
        for _, _, _, terms in self._ports:
            for term in terms:
                if term.name != "targets":
                    term.push(self._reading(term.name, values, last_action))
        return self._observation(values, values)

    def _observation(self, values: Values, seen: Values) -> dict[str, np.ndarray]:
        """Terms side by side; `seen` has the orientation from which targets are seen."""
        found = {}
        for name, shape, dtype, terms in self._ports:
            parts = []
            for term in terms:
                if term.name == "targets" and self.reference is not None:
                    place = values.get(POSITION)
                    term.begin(self.reference.targets(seen[ORIENTATION], place))
                parts.append(term.flat())
            found[name] = np.concatenate(parts).astype(dtype).reshape(shape)
        if self._masked:
            found["action_mask"] = values["action_mask"]
        return found

    def _reading(self, name: str, values: Values, last_action: np.ndarray) -> np.ndarray:
        """One reading of a term."""
        if name in values and name not in _SENSORS:
            return values[name]
        if name == "last_action":
            return last_action
        if name == "imu":
            return np.array([*roll_pitch(values[ORIENTATION]), *values[ANGULAR_VELOCITY][:2]])
        if name == "gravity":
            return gravity(values[ORIENTATION])
        if name == "joint_angle" and self.joints is not None:
            return wrap_angle(self.joints.angles(values[JOINT_ANGLE]))
        return values[name]


def sensors_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the sensors that a bundle's robot must have, and how many values each gives."""
    robot, targets = manifest.get("robot"), manifest.get("targets")
    joints = None if robot is None else Joints(robot)
    sizes = {ORIENTATION: 4, ANGULAR_VELOCITY: 3, LINEAR_VELOCITY: 3, POSITION: 3}
    needs: dict[str, int] = {}
    if joints is not None:
        sizes |= {JOINT_ANGLE: joints.nq, JOINT_VELOCITY: joints.nv}
        needs[JOINT_ANGLE] = joints.nq  # the way to the first pose begins where the robot is
    for entry in manifest["observation"]:
        for term in _port(entry)[3]:
            made_of = None if joints is None else _SENSORS.get(term.name)
            for sensor in (term.name,) if made_of is None else made_of:
                needs[sensor] = sizes.get(sensor, term.width)
    if targets is not None and targets["origin"] == "robot":
        needs[POSITION] = 3
    if manifest.get("mask"):
        needs["action_mask"] = int(manifest["mask"])
    return needs


def _port(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], str, list[_Term]]:
    """Name, shape, type and terms of an observation."""
    shape = tuple(int(size) for size in entry["shape"])
    terms = []
    for item in entry["terms"]:
        own = dict(item)
        if own["name"] == "value":  # nothing is known but its shape: a sensor of its own name
            own["name"] = entry["name"]
        terms.append(_Term(own, int(own["size"])))
    total, wanted = sum(term.history * term.width for term in terms), int(np.prod(shape))
    if total != wanted:
        raise BundleError(
            f"the terms of observation '{entry['name']}' have {total} values, and it has {wanted}: "
            "export the policy again"
        )
    return entry["name"], shape, entry["dtype"], terms


def check_sensors(needs: Mapping[str, int], has: Mapping[str, int], robot: str) -> None:
    """Refuse a robot whose sensors are not those that the policy needs.

    Args:
        needs: what `Observer.needs` says.
        has: the robot's sensors, and how many values each gives.
        robot: its name, for the message.

    Raises:
        DeployError: lists both.
    """
    if all(has.get(name) == size for name, size in needs.items()):
        return
    raise DeployError(
        f"the policy needs the sensors {_listed(needs)}; robot '{robot}' has "
        f"{_listed(has) or 'none'}: add to the robot what it lacks, or train without"
    )


def _listed(sensors: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({size})" for name, size in sorted(sensors.items()))
