"""What MuJoCo Warp keeps on a device: a robot's model, many worlds of it, and how they may differ.

The arrays are Warp's; torch sees the same memory (`wp.to_torch`). A captured graph holds their
addresses, so they are written in place and never replaced while a graph is in use.
"""

# Kernels name Warp's own types of arrays, which are values to a type checker.
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import dataclasses
from typing import Any

import mujoco_warp as untyped_mjw  # pyright: ignore[reportMissingImports]
import torch
import warp as untyped_wp
from torch import Tensor

from rlgym.device import available, free_memory, resolve
from rlgym.envs.physics.mujoco_model import FLOOR, Compiled, mujoco
from rlgym.envs.physics.robots import Robot
from rlgym.errors import DeviceError

wp: Any = untyped_wp
mjw: Any = untyped_mjw
"""Neither says its types."""

_CONSTANTS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")
"""What `mjw.set_const` computes from masses and armatures."""
_SERVO = ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "dof_damping")
_DAMPING = ("dof_damping", "dof_dampingpoly", "actuator_damping", "actuator_dampingpoly")
FIELDS: dict[str, tuple[str, ...]] = {
    "mass": ("body_mass", "body_inertia", *_CONSTANTS),
    "inertia": ("body_mass", "body_inertia", *_CONSTANTS),
    "friction": ("geom_friction",),
    "motor_strength": (*_SERVO, "dof_armature", *_CONSTANTS),
    "kp": _SERVO,
    "kd": (*_SERVO, "dof_armature", *_CONSTANTS),
    "viscous": ("dof_damping",),
    "coulomb": ("dof_frictionloss",),
}
"""Of `Randomization`: quantity -> fields of the model that it makes differ between worlds."""
LOST_CONTACTS = (
    mjw.OverflowType.NEFC
    | mjw.OverflowType.NJMAX_NNZ
    | mjw.OverflowType.BROADPHASE
    | mjw.OverflowType.NARROWPHASE
    | mjw.OverflowType.CCD
    | mjw.OverflowType.HFIELD
)
"""Bits of a world's `overflow`: contacts were left out, for which there was no room."""
SHARED_ROOM = mjw.OverflowType.BROADPHASE | mjw.OverflowType.NARROWPHASE
"""Those of the room that all worlds share, which each world has when it was not enough."""

ITERATIONS, LINE_SEARCH = 10, 20
"""Of the solver at most; it ends sooner when it has arrived, which takes it 2 to 4 as a rule. All
worlds wait for the one that needs most."""
_PER_GEOM = {"SPHERE": 1, "CAPSULE": 2, "ELLIPSOID": 1}
"""Contacts that a geom of that kind may have with a plane; others may have 4."""
_PER_GEOM_ON_FIELD = 8
"""Contacts that a geom may have with a height field: its triangles are about as large as feet."""
_AT_MOST = 32
"""Contacts of one world that there is room for, where its geoms could have more."""


# ----- Kernels, which run inside the captured step ------------------------------------------------


@wp.kernel(enable_backward=False)
def _drive(
    start: wp.array2d[float], end: wp.array2d[float], share: float, control: wp.array2d[float]
):
    """Set each servo's target to that share of the way from one to the other."""
    world, i = wp.tid()
    control[world, i] = start[world, i] + share * (end[world, i] - start[world, i])


@wp.kernel(enable_backward=False)
def _keep(source: wp.array2d[float], step: int, first: int, target: wp.array3d[float]):
    """Write a row of each world into what is kept of its physics steps, from a column on."""
    world, i = wp.tid()
    target[world, step, first + i] = source[world, i]


@wp.kernel(enable_backward=False)
def _tell(
    count: wp.array[int],
    world: wp.array[int],
    geom: wp.array[wp.vec2i],
    illegal: wp.array[bool],
    touches: wp.array[bool],
):
    """Mark the worlds of contacts that one of the geoms is not allowed to have."""
    i = wp.tid()
    if i < count[0]:
        pair = geom[i]
        if illegal[pair[0]] or illegal[pair[1]]:
            touches[world[i]] = True


def drive(start: Any, end: Any, share: float, control: Any) -> None:
    """Set the first columns of `control` to `share` of the way from `start` to `end`, (B, nv)."""
    wp.launch(_drive, start.shape, [start, end, share], [control])


def keep(source: Any, step: int, first: int, target: Any) -> None:
    """Copy `source` (B, n) to `target[:, step, first : first + n]`."""
    wp.launch(_keep, source.shape, [source, step, first], [target])


def tell(data: Any, illegal: Any, touches: Any) -> None:
    """Write to `touches` (B,) which worlds have a contact of a geom that is `illegal` (ngeom,)."""
    touches.zero_()
    contact = data.contact
    inputs = [data.nacon, contact.worldid, contact.geom, illegal]
    wp.launch(_tell, contact.worldid.shape, inputs, [touches])


# ----- Model and data -----------------------------------------------------------------------------


def prepare(model: Any) -> None:
    """Set a MuJoCo model's options as MuJoCo Warp wants them."""
    bits = mujoco.mjtDisableBit
    # it never resets by itself, and our kernels say more quickly what its sensors would
    model.opt.disableflags &= ~int(bits.mjDSBL_AUTORESET)
    model.opt.disableflags |= int(bits.mjDSBL_SENSOR)
    model.opt.iterations, model.opt.ls_iterations = ITERATIONS, LINE_SEARCH


def put_model(model: Any, varied: set[str], num_worlds: int) -> Any:
    """Put a model on Warp's current device, each world with its own copy of some of its fields.

    Args:
        model: `mujoco.MjModel`, prepared.
        varied: quantities of `FIELDS`.
        num_worlds: B.
    """
    fields = {field for name in varied for field in FIELDS[name]}
    device_model = mjw.put_model(model, batch_sizes=dict.fromkeys(sorted(fields), num_worlds))
    if not any(getattr(model, name).any() for name in _DAMPING) and "viscous" not in varied:
        # as MuJoCo does by itself: without damping its implicit part only factors masses again
        device_model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    device_model.opt.warn_overflow = 0  # it would print from the device; we look at `overflow`
    return device_model


def put_data(model: Any, num_worlds: int, max_contacts: int | None) -> Any:
    """Make worlds on Warp's current device, with room for contacts.

    Args:
        model: `mujoco.MjModel`.
        num_worlds: B.
        max_contacts: of one world; None: as many as its geoms can have, up to 32.
    """
    contacts, limits = _room(model, max_contacts)
    data = mujoco.MjData(model)
    return mjw.put_data(model, data, num_worlds, nconmax=contacts, njmax=limits)


def _room(model: Any, max_contacts: int | None) -> tuple[int, int]:
    """Contacts and rows of constraints of one world."""
    contacts = max_contacts or contacts_of(model)
    rows = 3 if model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC else 4
    # besides contacts: every joint at a limit and with friction, which a randomization may bring
    return contacts, contacts * rows + 2 * model.nv


def contacts_of(model: Any) -> int:
    """Contacts of one world that there shall be room for."""
    kinds = mujoco.mjtGeom
    field = bool(model.nhfield)
    total = 0
    for i in range(model.ngeom):
        if model.geom_conaffinity[i] and model.geom(i).name != FLOOR:
            kind = kinds(model.geom_type[i]).name.removeprefix("mjGEOM_")
            total += _PER_GEOM_ON_FIELD if field else _PER_GEOM.get(kind, 4)
    return max(min(total, _AT_MOST), 1)


def illegal_geoms(model: Any, robot: Robot) -> list[bool]:
    """Which geoms must not touch the ground: all but the ground's, feet, and `may_touch`."""
    allowed = {*(foot.link for foot in robot.feet), *robot.may_touch}
    names = [model.geom(i).name for i in range(model.ngeom)]
    return [name != FLOOR and name.rpartition("/")[0] not in allowed for name in names]


# ----- Device and memory --------------------------------------------------------------------------


def usable_device(device: torch.device | str) -> torch.device:
    """Return the device for Warp: an NVIDIA GPU, or the CPU where a person says so.

    Raises:
        DeviceError: there is no such GPU; the message names the engine to use instead.
    """
    if wp.config.log_level == wp.LOG_INFO:
        wp.config.log_level = wp.LOG_WARNING  # it would tell of every module that it loads
    wp.init()
    found = [name for name in available() if name.startswith("cuda")]
    if str(device) == "auto" and not found:
        raise DeviceError(
            "the engine 'warp' wants an NVIDIA GPU, and torch sees none here: use the engine "
            "'mujoco', which is faster on a CPU (or say device cpu, to try warp without one)"
        )
    place = resolve(found[0] if str(device) == "auto" else device)
    if place.type not in ("cuda", "cpu"):
        raise DeviceError(f"the engine 'warp' cannot use {place}: use an NVIDIA GPU, or 'mujoco'")
    if place.type == "cuda" and (place.index or 0) >= wp.get_cuda_device_count():
        major, _ = wp.get_cuda_toolkit_version()
        raise DeviceError(
            f"the engine 'warp' cannot use {place}, though torch sees it: Warp {wp.__version__} is "
            f"built for CUDA {major} and wants a driver for that or newer (nvidia-smi tells which "
            "it is for). Update the driver, install a Warp for an older CUDA, or use 'mujoco'"
        )
    return place


def check_memory(
    model: Any, num_worlds: int, max_contacts: int | None, device: torch.device
) -> None:
    """Make sure that the worlds fit on the device, before anything is allocated there.

    Raises:
        DeviceError: they do not; says what each part needs, and how many worlds fit.
    """
    free = free_memory(device)
    if free is None:
        return
    with wp.ScopedDevice("cpu"):
        one, two = (_size(put_data(model, count, max_contacts)) for count in (1, 2))
        everything = set(FIELDS)
        parameters = _size(put_model(model, everything, 2)) - _size(put_model(model, everything, 1))
    state = two - one + _of_a_step(model, *_room(model, max_contacts))
    each = state + parameters
    needed = num_worlds * each
    if needed > 0.9 * free:  # kernels and torch want some as well
        mib = 1024.0**2
        raise DeviceError(
            f"{num_worlds} worlds need {needed / mib:.0f} MiB ({num_worlds * state / mib:.0f} for "
            f"states and contacts, {num_worlds * parameters / mib:.0f} for their own parameters), "
            f"{device} has {free / mib:.0f} MiB free: use num_envs {int(0.9 * free / each)} or "
            "fewer"
        )


def _of_a_step(model: Any, contacts: int, rows: int) -> int:
    """Bytes that a step allocates for one world: the solver's, and those of height fields.

    From the shapes in `mujoco_warp/_src/solver.py` and `collision_convex.py` (4.0), rounded up.
    """
    nv = model.nv + 4  # padded
    solver = 4 * (6 * rows + 2 * nv * nv + 40 * nv)
    if not model.nhfield:
        return solver
    most = model.opt.ccd_iterations
    return solver + contacts * (16 * (10 + 2 * most) + 20 * (6 + 5 * most) + 96)


def _size(part: Any) -> int:
    """Bytes of all arrays in a model or data, those in its parts included."""
    if isinstance(part, wp.array):
        return part.capacity
    if dataclasses.is_dataclass(part):
        return sum(_size(getattr(part, field.name)) for field in dataclasses.fields(part))
    return 0


# ----- Randomization ------------------------------------------------------------------------------


class Parameters:
    """The fields of a device model that differ between worlds, as functions of what was drawn.

    Args:
        compiled: the model on the host.
        model: the same on the device, from `put_model`.
        varied: quantities that it was put there with.
        repeat: actuators per joint velocity.
        clipped: actuators bound the position's error by their force.
    """

    def __init__(
        self, compiled: Compiled, model: Any, varied: set[str], repeat: int, clipped: bool
    ) -> None:
        fields = {field for name in varied for field in FIELDS[name]}
        self._fields: dict[str, Tensor] = {
            field: wp.to_torch(getattr(model, field)) for field in sorted(fields)
        }
        self._base = {field: value[:1].clone() for field, value in self._fields.items()}
        device = next(iter(self._fields.values())).device if fields else None
        self._v = torch.as_tensor(compiled.v_index, device=device)
        self._feet = torch.as_tensor(compiled.foot_geoms, device=device)
        self._repeat, self._clipped = repeat, clipped
        servo = not varied.isdisjoint(("motor_strength", "kd"))
        heavier = servo and bool(compiled.model.dof_armature.any())
        self.moves_constants = heavier or not varied.isdisjoint(("mass", "inertia"))
        """`mjw.set_const` must follow `write`."""

    def write(self, values: dict[str, Tensor]) -> None:
        """Compute the fields of every world.

        Args:
            values: quantity -> (B,) or (B, nv) float32, as `Randomization` has them.
        """
        fields, base = self._fields, self._base
        if "body_mass" in fields:
            mass = values.get("mass")
            factor = values.get("inertia")
            heavy = mass if factor is None else factor if mass is None else mass * factor
            if mass is not None:
                fields["body_mass"].copy_(base["body_mass"] * mass[:, None])
            assert heavy is not None
            fields["body_inertia"].copy_(base["body_inertia"] * heavy[:, None, None])
        if "friction" in values:
            fields["geom_friction"][:, self._feet, 0] = values["friction"][:, None]
        if "dof_damping" in fields:
            self._write_servos(values)
        if "coulomb" in values:
            fields["dof_frictionloss"][:, self._v] = values["coulomb"]

    def _write_servos(self, values: dict[str, Tensor]) -> None:
        """Gains, bounds, and what the joints themselves damp."""
        fields, base, at = self._fields, self._base, self._v
        strength = values.get("motor_strength", 1.0)
        kp, kd = strength * values.get("kp", 1.0), strength * values.get("kd", 1.0)
        damping = base["dof_damping"][:, at] * kd + values.get("viscous", 0.0)
        fields["dof_damping"][:, at] = damping
        if "dof_armature" in fields:  # of the servo, see `compile_model`
            fields["dof_armature"][:, at] = base["dof_armature"][:, at] * kd
        if "actuator_gainprm" not in fields:
            return
        if isinstance(kp, Tensor):
            kp = kp.repeat(1, self._repeat)
        if isinstance(kd, Tensor):
            kd = kd.repeat(1, self._repeat)
        gain, bias = fields["actuator_gainprm"], fields["actuator_biasprm"]
        gain[..., 0] = base["actuator_gainprm"][..., 0] * kp
        bias[..., 1] = base["actuator_biasprm"][..., 1] * kp
        bias[..., 2] = base["actuator_biasprm"][..., 2] * kd
        if self._clipped and isinstance(kp, Tensor):  # the bound of the error, not of the torque
            bound = base["actuator_forcerange"] * kp[..., None]
            fields["actuator_forcerange"].copy_(bound)
