"""MuJoCo Warp: thousands of worlds on one NVIDIA GPU, in arrays that torch shares.

A control step is one graph, captured once and launched again: every physics step of every world,
without the host. What goes in and comes out are torch tensors (float32) on the same device; nothing
is read back. Warp's own CPU device runs the same code for tests, one core at a time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from rlgym.envs.imitation.arrays import choose_rows, constant
from rlgym.envs.imitation.joints import per_velocity, to_angles
from rlgym.envs.imitation.kinematics import foot_positions, sole_heights
from rlgym.envs.imitation.rotations import normalize, rotate, rotate_inverse
from rlgym.envs.physics.engine import Actuation, Randomization, Sensed, State
from rlgym.envs.physics.mujoco_model import compile_model
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.terrain import Terrain, make_terrain
from rlgym.envs.physics.warp_model import (
    FIELDS,
    LOST_CONTACTS,
    SHARED_ROOM,
    Parameters,
    check_memory,
    drive,
    illegal_geoms,
    keep,
    mjw,
    prepare,
    put_data,
    put_model,
    tell,
    usable_device,
    wp,
)
from rlgym.errors import StateError

TOUCH = 0.003
"""m above the ground below which a foot touches it, as in `mujoco.py`."""
MAX_SPEED = 500.0
"""m/s, rad/s: a state beyond has blown up."""
QUICK = 3.0
"""Seconds after which a person is told that kernels are being compiled."""


class WarpEngine:
    """`rlgym.envs.physics.engine.Engine` by MuJoCo Warp.

    A snapshot brings a state back exactly. What follows is the same bit for bit on the CPU; a GPU
    adds up contacts in any order, so that runs part after some steps.

    Args:
        robot: A complete entry of the robot table.
        actuation: Servo and time steps.
        num_worlds: B.
        device: "cuda", "cuda:1", ..., or "cpu", which is for tests; "auto" is the first GPU.
        collide: "feet" or "all", as in `MujocoEngine`.
        terrain: Name or `Terrain`.
        gravity: m/s^2, downwards.
        friction: Coefficient between robot and ground, instead of the robot's.
        max_contacts: Of one world that there is room for; None: as many as its geoms can have, up
            to 32. `overflow` tells where that was not enough.
        capture: Launch a control step as one graph; False is slower and for comparison.

    Raises:
        DeviceError: there is no such device, none that Warp can use, or too little memory on it.
        WorldError: MuJoCo refuses the robot's file, or the entry does not fit it.
    """

    name = "warp"
    capabilities = frozenset(FIELDS) | {"latency", "push", "terrain", "snapshot"}

    def __init__(
        self,
        robot: Robot,
        actuation: Actuation,
        num_worlds: int,
        *,
        device: torch.device | str = "auto",
        collide: Literal["feet", "all"] = "feet",
        terrain: str | Terrain = "flat",
        gravity: float = 9.81,
        friction: float | None = None,
        max_contacts: int | None = None,
        capture: bool = True,
    ) -> None:
        self.device = usable_device(device)
        self.robot, self.actuation, self.num_worlds = robot, actuation, num_worlds
        self.physics_step = actuation.time_step
        self.terrain = make_terrain(terrain)
        plain = robot.friction if friction is None else friction
        self._compiled = compiled = compile_model(
            robot, actuation, collide, self.terrain, gravity=gravity, friction=plain
        )
        self._host = model = compiled.model
        prepare(model)
        check_memory(model, num_worlds, max_contacts, self.device)
        self._collide, self._capturing, self._closed = collide, capture, False
        self._plain = {"friction": plain, "viscous": 0.0, "coulomb": 0.0}
        self._varied: set[str] = set()
        self._random: dict[str, Tensor] = {}
        self._earlier: Tensor | None = None
        with self._place():
            self._model = put_model(model, self._varied, num_worlds)
            self._data = put_data(model, num_worlds, max_contacts)
            self._allocate()
        self._capture()
        self._begin()

    # ----- Memory and graphs ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Let Warp work on our device, after what torch has queued there."""
        place = wp.device_from_torch(self.device)
        if not place.is_cuda:
            with wp.ScopedDevice(place):
                yield
            return
        with wp.ScopedStream(wp.stream_from_torch(self.device)):
            yield

    def _allocate(self) -> None:
        """Make everything that a captured step reads and writes, and torch's views of it."""
        B, K, robot, model = self.num_worlds, self.actuation.substeps, self.robot, self._host
        data = self._data
        self._qpos, self._qvel = wp.to_torch(data.qpos), wp.to_torch(data.qvel)
        self._control, self._overflow = wp.to_torch(data.ctrl), wp.to_torch(data.overflow)
        self._from, self._to = (wp.zeros((B, robot.nv), dtype=float) for _ in range(2))
        self._kept = wp.zeros((B, K, model.nq + model.nv), dtype=float)
        self._kept_forces = wp.zeros((B, K, model.nu), dtype=float)
        self._touches = wp.zeros(B, dtype=bool)
        self._illegal = wp.array(illegal_geoms(model, robot), dtype=bool)
        self._ends = wp.to_torch(self._from), wp.to_torch(self._to)
        self._states, self._forces = wp.to_torch(self._kept), wp.to_torch(self._kept_forces)
        self._touching = wp.to_torch(self._touches)
        q = torch.as_tensor(self._compiled.q_index, device=self.device)
        v = torch.as_tensor(self._compiled.v_index, device=self.device) + model.nq
        self._q, self._v = q, v
        self._quat = torch.tensor([4, 5, 6, 3], device=self.device)
        self._wxyz = torch.tensor([3, 0, 1, 2], device=self.device)
        self._each = torch.arange(B, device=self.device)
        self._latency = torch.full((B,), self.actuation.latency, device=self.device)
        self._radius = torch.tensor([foot.radius for foot in robot.feet], device=self.device)
        self._boxes = any(foot.half for foot in robot.feet)
        at = self._compiled.v_index
        self._damping = torch.as_tensor(model.dof_damping[at], dtype=torch.float32).to(self.device)
        self._torque, self._power = self._zeros(robot.nv), self._zeros()
        self._broken = torch.zeros(B, dtype=torch.bool, device=self.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros((self.num_worlds, *shape), device=self.device)

    def _capture(self) -> None:
        """Run a control step, which compiles its kernels, and capture it; the state is kept."""
        written = (self._qpos, self._qvel, self._control, self._states, self._touching)
        kept = [tensor.clone() for tensor in written]
        self._graphs: dict[str, Any] = {}
        with self._place(), _telling():
            self._add("step", self._substeps)
            if self._varied and self._parameters.moves_constants:
                self._add("constants", self._set_constants)
        for tensor, value in zip(written, kept, strict=True):
            tensor.copy_(value)
        self._overflow.zero_()

    def _add(self, name: str, function: Callable[[], None]) -> None:
        """Capture a function under a name, or tell why it is called instead."""
        function()
        if not self._capturing:
            return
        device = wp.get_device()
        if device.is_cuda and not wp.is_mempool_enabled(device):
            self._call_instead("its driver has no memory pools, or they are turned off")
            return
        # on a stream of Warp's own: torch's may be the default one, which cannot be captured
        stream = wp.Stream(device) if device.is_cuda else None
        try:
            with (
                wp.ScopedStream(stream, sync_exit=True),
                wp.ScopedCapture(device, stream) as captured,
            ):
                function()
        except RuntimeError as error:
            self._call_instead(str(error).partition("\n")[0])
            return
        self._graphs[name] = captured.graph

    def _call_instead(self, why: str) -> None:
        self._capturing = False
        print(
            f"rlgym: engine warp runs without captured graphs on {self.device}, several times "
            f"slower: {why}",
            file=sys.stderr,
        )

    def _run(self, name: str, function: Callable[[], None]) -> None:
        """Launch what was captured, in the order of torch's work."""
        with self._place():
            if name in self._graphs:
                wp.capture_launch(self._graphs[name])
            else:
                function()

    def _substeps(self) -> None:
        """One control step, by Warp alone."""
        K, data = self.actuation.substeps, self._data
        for step in range(K):
            if self.actuation.interpolate:
                drive(self._from, self._to, (step + 1) / K, data.ctrl)
            mjw.step(self._model, data)
            keep(data.qpos, step, 0, self._kept)
            keep(data.qvel, step, self._host.nq, self._kept)
            keep(data.actuator_force, step, 0, self._kept_forces)
        if self._collide == "all":
            tell(data, self._illegal, self._touches)

    def _set_constants(self) -> None:
        mjw.set_const(self._model, self._data, restore=False)

    def _begin(self) -> None:
        """Put every world into the default pose, and remember that for those that blow up."""
        B, robot = self.num_worlds, self.robot
        pose = torch.tensor(robot.default_pose, device=self.device).repeat(B, 1)
        upright, home = self._zeros(4), self._zeros(3)
        upright[:, 3], home[:, 2] = 1.0, robot.init_height
        everywhere = torch.ones(B, dtype=torch.bool, device=self.device)
        still = self._zeros(3)
        if self.actuation.latency:
            self._remember()
        self.reset(everywhere, home, upright, still, still, pose, self._zeros(robot.nv))
        self._home = torch.cat((self._qpos, self._qvel), 1)

    # ----- The protocol --------------------------------------------------------------------------

    def reset(
        self,
        mask: Tensor,
        root_pos: Tensor,
        root_quat: Tensor,
        root_linvel: Tensor,
        root_angvel: Tensor,
        q: Tensor,
        qd: Tensor,
        randomization: Randomization | None = None,
    ) -> State:
        qpos, qvel = torch.empty_like(self._qpos), torch.empty_like(self._qvel)
        qpos[:, :3], qpos[:, 3:7] = root_pos, root_quat[:, self._wxyz]
        qpos[:, self._q] = q
        qvel[:, :3], qvel[:, 3:6] = root_linvel, rotate_inverse(root_quat, root_angvel)
        qvel[:, self._v - self._host.nq] = qd
        self._write(mask, torch.cat((qpos, qvel), 1))
        self._broken &= ~mask
        if randomization is not None:
            self._randomize(mask, randomization)
        return self._read()

    def step(self, previous: Tensor, target: Tensor, push: Tensor | None = None) -> State:
        self.load(previous, target, push)
        self.launch()
        return self.read()

    def load(self, previous: Tensor, target: Tensor, push: Tensor | None = None) -> None:
        """Do the first part of `step`: write what the worlds are to do."""
        if self._earlier is not None:
            self._earlier.copy_(self._states)
        if push is not None:
            self._qvel[:, :3] += push
        start, end = self._ends
        if self.actuation.interpolate:
            start.copy_(to_angles(self.robot, previous))
            end.copy_(to_angles(self.robot, target))
        else:
            self._control[:, : self.robot.nv] = to_angles(self.robot, target)
        # Warp's servos would bound what is no number, and go on
        self._broken.copy_(~torch.isfinite(target).all(1))

    def launch(self) -> None:
        """Do the second part of `step`, by Warp alone: a graph of torch's cannot have it in it."""
        if self._closed:
            raise StateError("this engine is closed: make another one")
        if self._varied and self._parameters.moves_constants:
            # of worlds that a reset has changed since; which ones, only the device knows
            self._run("constants", self._set_constants)
        self._run("step", self._substeps)

    def read(self) -> State:
        """Do the third part of `step`: what `launch` did, as torch sees it."""
        self._read_forces()
        now = self._states[:, -1]
        self._broken |= ~(now.abs().amax(1) < MAX_SPEED)  # also True for NaN
        self._write(self._broken, self._home)
        return self._read()

    def overflow(self) -> str:
        """Tell which worlds lost contacts since the last call, for want of room; "" if none did.

        Reads the device: not for every step.
        """
        lost = ((self._overflow & LOST_CONTACTS) != 0).sum()
        shared = ((self._overflow & SHARED_ROOM) != 0).sum()
        count, everywhere = torch.stack((lost, shared)).tolist()
        self._overflow.zero_()
        if not count:
            return ""
        # where the room that all share was too little, nobody knows whose contacts were left out
        who = f"the {self.num_worlds}" if everywhere else f"{count} of {self.num_worlds}"
        return (
            f"{who} worlds had more contacts than there is room for: give physics.warp.max_contacts"
        )

    def snapshot(self) -> dict[str, Any]:
        return {name: value.numpy(force=True).copy() for name, value in self.memory().items()}

    def restore(self, snapshot: dict[str, Any]) -> State:
        if "earlier" in snapshot:
            self._remember()
        if len(snapshot["qpos"]) != self.num_worlds:
            raise ValueError(f"the snapshot is of {len(snapshot['qpos'])} worlds")
        drawn = {
            name.removeprefix("random."): torch.as_tensor(value, device=self.device)
            for name, value in snapshot.items()
            if name.startswith("random.")
        }
        if drawn:
            everywhere = torch.ones_like(self._broken)
            self._randomize(everywhere, Randomization(**drawn))
        for name, tensor in self.memory().items():
            value = torch.as_tensor(snapshot[name])
            if value.shape != tensor.shape:
                raise ValueError(f"{name} is of another robot")
            tensor.copy_(value)
        return self._read()

    def close(self) -> None:
        self._graphs, self._closed = {}, True

    def memory(self) -> dict[str, Tensor]:
        """All that the future depends on: the tensors themselves, which each step writes to."""
        kept = {"qpos": self._qpos, "qvel": self._qvel, "states": self._states}
        kept |= {"torque": self._torque, "power": self._power, "touching": self._touching}
        kept |= {"broken": self._broken, "latency": self._latency}
        if self._earlier is not None:
            kept["earlier"] = self._earlier
        return kept | {f"random.{name}": value for name, value in self._random.items()}

    # ----- Parts of a step -----------------------------------------------------------------------

    def _write(self, mask: Tensor, state: Tensor) -> None:
        """Put the worlds of `mask` (B,) into states (B, nq + nv), where they always were."""
        nq = self._host.nq
        self._qpos.copy_(choose_rows(mask, state[:, :nq], self._qpos))
        self._qvel.copy_(choose_rows(mask, state[:, nq:], self._qvel))
        for past in (self._states, self._earlier):
            if past is not None:
                past.copy_(choose_rows(mask, state[:, None], past))
        self._torque.masked_fill_(mask[:, None], 0.0)
        self._power.masked_fill_(mask, 0.0)
        self._touching &= ~mask

    def _read_forces(self) -> None:
        """Compute torque and power from what the servos gave in each physics step."""
        robot = self.robot
        torque = self._forces[:, :, : robot.nv]
        if self.actuation.target_clip is not None:
            torque = torque + self._forces[:, :, robot.nv : 2 * robot.nv]
            if self.actuation.limit_torque:
                limit = constant(per_velocity(robot, robot.torque_limit), torque)
                torque = torch.clamp(torque, -limit, limit)
        speed = self._states[:, :, self._v]
        if robot.damped_joints:
            torque = torque - self._damping * speed
        self._torque.copy_(torque[:, -1])
        self._power.copy_((torque * speed).abs().sum(2).mean(1))

    def _read(self) -> State:
        """Make a state of what is in the device's memory."""
        nq = self._host.nq
        now = torch.cat((self._qpos, self._qvel), 1)
        pos, quat, q = now[:, :3], now[:, self._quat], now[:, self._q]
        foot_pos = foot_positions(self.robot, pos, quat, q)
        if self._boxes:
            height = sole_heights(self.robot, pos, quat, q)
        else:
            height = foot_pos[..., 2] - self._radius
        if not self.terrain.is_flat:
            height = height - self.terrain.height(foot_pos[..., :2])
        local, qd = now[:, nq + 3 : nq + 6], now[:, self._v]
        sensed = Sensed(quat, local, q, qd) if self._earlier is None else self._sense()
        return State(
            root_pos=pos,
            root_quat=quat,
            root_linvel=now[:, nq : nq + 3],
            root_angvel=rotate(quat, local),
            q=q,
            qd=qd,
            foot_pos=foot_pos,
            foot_contact=height < TOUCH,
            illegal_contact=self._touching.clone(),
            torque=self._torque.clone(),
            power=self._power.clone(),
            broken=self._broken.clone(),
            sensed=sensed,
        )

    def _sense(self) -> Sensed:
        """Read the sensors as they were `latency` ago, linear between physics steps."""
        assert self._earlier is not None
        K, nq = self.actuation.substeps, self._host.nq
        past = torch.cat((self._earlier, self._states), 1)
        at = 2 * K - 1 - self._latency / self.actuation.time_step
        first = at.floor().clamp(0, 2 * K - 2)
        share = (at - first).clamp(0.0, 1.0)[:, None]
        row = first.long()
        then = (1.0 - share) * past[self._each, row] + share * past[self._each, row + 1]
        gyro = then[:, nq + 3 : nq + 6]
        return Sensed(normalize(then[:, self._quat]), gyro, then[:, self._q], then[:, self._v])

    def _remember(self) -> None:
        """Keep the states of the control step before from now on: latency may reach into it."""
        if self._earlier is None:
            now = torch.cat((self._qpos, self._qvel), 1)
            self._states.copy_(now[:, None].expand_as(self._states))
            self._earlier = self._states.clone()

    # ----- Randomization -------------------------------------------------------------------------

    def _randomize(self, mask: Tensor, asked: Randomization) -> None:
        """Change the parameters of some worlds; what is None stays as it was."""
        if asked.latency is not None:
            self._remember()
            new = asked.latency.to(self._latency)
            self._latency.copy_(choose_rows(mask, new, self._latency))
        wanted = {name: getattr(asked, name) for name in FIELDS}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not wanted:
            return
        if not self._varied.issuperset(wanted):
            self._vary(set(wanted))
        for name, value in wanted.items():
            value = value.to(self._qpos)
            old = self._random.setdefault(name, torch.full_like(value, self._plain.get(name, 1.0)))
            old.copy_(choose_rows(mask, value, old))
        self._parameters.write(self._random)

    def _vary(self, names: set[str]) -> None:
        """Give each world its own copy of more fields; graphs know the old ones, so again."""
        self._varied |= names
        repeat = self._host.nu // self.robot.nv
        clipped = self.actuation.target_clip is not None
        with self._place():
            self._model = put_model(self._host, self._varied, self.num_worlds)
            self._parameters = Parameters(
                self._compiled, self._model, self._varied, repeat, clipped
            )
        self._capture()


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Tell what takes so long, where kernels are compiled."""
    text = (
        "rlgym: Warp compiles its kernels, once on this machine (minutes); they are kept in "
        f"{wp.config.kernel_cache_dir}"
    )
    timer = threading.Timer(QUICK, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
