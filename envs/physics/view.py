"""Pictures of a robot in a pose, beside the pose that it should have; for every engine.

PyBullet's software renderer draws the robots alone, which is what it is quick at; the ground, its
checks of one metre, the shadow and the translucent reference are put together here. No display and
no OpenGL is needed, but for `Window`.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from typing import Any, NamedTuple

import numpy as np

from rlgym.envs.physics.bullet_model import connect, load
from rlgym.envs.physics.quiet_pybullet import pybullet
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.terrain import Terrain, make_terrain
from rlgym.envs.physics.urdf import multiply, rotate
from rlgym.errors import WorldError

SKY = np.array([203.0, 217.0, 230.0], np.float32)
CHECKS = np.array([[172.0, 183.0, 192.0], [142.0, 155.0, 166.0]], np.float32)
SHADE = 0.62
"""Brightness of the ground in the shadow."""
GHOST = (0.25, 0.55, 1.0)
"""Colour of the reference."""
GHOST_OPACITY = 0.5
LIGHT = np.array([0.1, -0.6, 1.0]) / np.linalg.norm([0.1, -0.6, 1.0])
"""Direction to the light."""
NEAR, FAR = 0.1, 60.0
"""m from the camera between which things are seen."""
FIELD_OF_VIEW = 45.0
"""Degrees from the picture's top to its bottom."""
LIGHT_DISTANCE = 30.0
"""m from the robot."""
SHADOW_PIXELS = 160
"""Along the side of the picture that the light has of the robot."""


class Pose(NamedTuple):
    """Where a robot is; one row of a `State` or of a reference."""

    root_pos: Any
    """(3,) m."""
    root_quat: Any
    """(4,) xyzw."""
    q: Any
    """(nq,) joint positions, our convention."""


class Camera(NamedTuple):
    """Where pictures are taken from, relative to the robot."""

    distance: float | None = None
    """m from the robot; None: as its size asks for."""
    yaw: float = 55.0
    """Degrees about the vertical; 0 looks along +y, that is at the robot's right side."""
    pitch: float = -16.0
    """Degrees; negative looks down."""


class Figure:
    """A robot in a client of its own, to be posed and looked at; nothing moves it.

    Args:
        robot: Entry of the robot table.
        client: PyBullet's number of the client to load it into.
        colour: (3,) or (4,) of all links, from 0 to 1; None: the file's own.
    """

    def __init__(self, robot: Robot, client: int, colour: tuple[float, ...] | None = None) -> None:
        self.robot, self.client = robot, client
        self._body = load(robot, 0, client)
        count = pybullet.getNumJoints(self._body, client)
        infos = [pybullet.getJointInfo(self._body, i, client) for i in range(count)]
        number = {info[1].decode(): i for i, info in enumerate(infos)}
        missing = [name for name in robot.joints if name not in number]
        if missing:
            raise WorldError(f"robot '{robot.name}': {robot.model} has no joint '{missing[0]}'")
        self._joints = [number[name] for name in robot.joints]
        base = pybullet.getDynamicsInfo(self._body, -1, client)
        turn, origin = np.array(robot.base_rotation), np.array(robot.base_origin)
        # PyBullet places the centre of mass of the base, in its principal axes
        self._turn = multiply(turn, np.array(base[4]))
        self._shift = rotate(turn, np.array(base[3]) - origin)
        if colour is not None:
            rgba = (*colour, 1.0)[:4]
            for link in range(-1, count):
                pybullet.changeVisualShape(self._body, link, rgbaColor=rgba, physicsClientId=client)

    def pose(self, pose: Pose) -> None:
        """Put the robot into a pose."""
        robot, quat = self.robot, np.asarray(pose.root_quat, float)
        place = np.asarray(pose.root_pos, float) + rotate(quat, self._shift)
        pybullet.resetBasePositionAndOrientation(
            self._body, place.tolist(), multiply(quat, self._turn).tolist(), self.client
        )
        values, at = [], 0
        q = np.asarray(pose.q, float)
        for sign, offset, spherical in zip(
            robot.sign, robot.offset, robot.is_spherical, strict=True
        ):
            size = 4 if spherical else 1
            part = q[at : at + size]
            values.append((part if spherical else sign * (part + offset)).tolist())
            at += size
        pybullet.resetJointStatesMultiDof(
            self._body, self._joints, values, physicsClientId=self.client
        )

    def size(self) -> float:
        """Return the height of the robot's base when it stands, m: what cameras go by."""
        return self.robot.init_height

    def image(
        self, width: int, height: int, view: Any, projection: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the robot alone; return colours (height, width, 3) and where it is."""
        _, _, rgba, _, owner = pybullet.getCameraImage(
            width,
            height,
            view,
            projection,
            lightDirection=LIGHT.tolist(),
            shadow=0,
            renderer=pybullet.ER_TINY_RENDERER,
            physicsClientId=self.client,
        )
        shape = (height, width)
        colours = np.reshape(rgba, (*shape, 4))[..., :3].astype(np.float32)
        return colours, np.reshape(owner, shape) >= 0


class View:
    """Draws a robot, and if asked its reference, on a terrain; the camera follows the robot.

    Args:
        robot: Entry of the robot table.
        width: Pixels.
        height: Pixels.
        terrain: Name or `Terrain`.
        ghost: Also draw a second pose, translucent.
        camera: Where to look from.

    Raises:
        WorldError: the robot's model file cannot be read.
    """

    def __init__(
        self,
        robot: Robot,
        width: int = 480,
        height: int = 360,
        *,
        terrain: str | Terrain = "flat",
        ghost: bool = False,
        camera: Camera | None = None,
    ) -> None:
        self.width, self.height = width, height
        self.terrain = make_terrain(terrain)
        self._clients: list[int] = []
        self._figure = Figure(robot, self._connect())
        self._ghost = Figure(robot, self._connect(), GHOST) if ghost else None
        camera = camera or Camera()
        size = self._figure.size()
        self._camera = camera._replace(distance=camera.distance or 0.8 + 2.2 * size)
        self._reach = 0.6 + size  # m around the robot that its shadow can fall on
        self._rays = _rays(width, height)
        self._projection = pybullet.computeProjectionMatrixFOV(
            FIELD_OF_VIEW, width / height, NEAR, FAR
        )

    def _connect(self) -> int:
        self._clients.append(connect())
        return self._clients[-1]

    def frame(self, pose: Pose, ghost: Pose | None = None) -> np.ndarray:
        """Return a picture, (height, width, 3) uint8, of the pose and, translucent, of `ghost`."""
        pos = np.asarray(pose.root_pos, float)
        floor = float(self.terrain.height(pos[None, :2])[0])
        target = np.array([pos[0], pos[1], floor + 0.75 * self._figure.size()])
        camera = self._camera
        view = pybullet.computeViewMatrixFromYawPitchRoll(
            target.tolist(), camera.distance, camera.yaw, camera.pitch, 0.0, 2
        )
        self._figure.pose(pose)
        colours, owned = self._figure.image(self.width, self.height, view, self._projection)
        picture = self._ground(np.reshape(view, (4, 4)).T, target)
        picture[owned] = colours[owned]
        if ghost is not None and self._ghost is not None:
            self._ghost.pose(ghost)
            second, mask = self._ghost.image(self.width, self.height, view, self._projection)
            mask &= ~owned  # always behind the robot: two poses on top of each other hide both
            colour = 0.5 * second[mask] + 127.5 * np.array(GHOST)  # blue, whatever its textures
            picture[mask] += GHOST_OPACITY * (colour - picture[mask])
        return picture.astype(np.uint8)

    def _ground(self, view: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Draw sky and ground with the robot's shadow, (height, width, 3)."""
        turn = view[:3, :3].T.astype(np.float32)  # from the camera's axes to the world's
        eye = -turn @ view[:3, 3].astype(np.float32)
        picture = np.empty((self.height, self.width, 3), np.float32)
        picture[:] = SKY
        # the camera never rolls: each row looks down by about the same angle
        low = int(np.argmax((self._rays[:, self.width // 2] @ turn[2]) < -0.01))
        rays = self._rays[low:] @ turn.T
        far = eye[2] / -rays[..., 2]
        # where a ray meets the ground: the plane first, then ever nearer to the field's height
        for _ in range(0 if self.terrain.is_flat else 4):
            places = eye[:2] + far[..., None] * rays[..., :2]
            far = (self.terrain.height(places) - eye[2]) / rays[..., 2]
        places = eye[:2] + far[..., None] * rays[..., :2]
        colour = CHECKS[np.floor(places).astype(np.int32).sum(axis=-1) & 1]
        heights = self.terrain.height(places)
        if not self.terrain.is_flat:  # ground that rises towards the light is darker
            rise = self.terrain.height(places + 0.05 * LIGHT[:2]) - heights
            colour *= np.clip(1.0 - 4.0 * rise, 0.6, 1.25)[..., None]
        near = (np.abs(places - target[:2]) < 2 * self._reach).all(axis=-1)
        points = np.concatenate((places[near], heights[near][:, None]), axis=-1)
        colour[near] *= self._light(points, target)[:, None]
        fog = np.exp(-0.05 * np.maximum(far - 4.0, 0.0))
        picture[low:] += fog[..., None] * (colour - SKY)
        return picture

    def _light(self, points: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the brightness (N,) of points (N, 3) on the ground: less in the shadow.

        The robot's outline as the light sees it, in a small picture, is its shadow.
        """
        half = self._reach / LIGHT_DISTANCE  # tangent of half the picture's angle
        view = pybullet.computeViewMatrix(
            (target + LIGHT_DISTANCE * LIGHT).tolist(), target.tolist(), (0.0, 0.0, 1.0)
        )
        projection = pybullet.computeProjectionMatrixFOV(
            math.degrees(2 * math.atan(half)), 1.0, 0.5 * LIGHT_DISTANCE, 2 * LIGHT_DISTANCE
        )
        _, owned = self._figure.image(SHADOW_PIXELS, SHADOW_PIXELS, view, projection)
        matrix = np.reshape(view, (4, 4)).T
        seen = points @ matrix[:3, :3].T + matrix[:3, 3]
        place = seen[:, :2] / (-seen[:, 2:] * half) * (0.5, -0.5) + 0.5
        column, row = np.clip(place * SHADOW_PIXELS, 0, SHADOW_PIXELS - 1).astype(int).T
        return 1.0 - (1.0 - SHADE) * _soften(owned.astype(float))[row, column]

    def close(self) -> None:
        """Release the renderer's memory."""
        while self._clients:
            pybullet.disconnect(self._clients.pop())


class Window:
    """A window that shows a robot and its reference on flat ground; the mouse moves the camera.

    Raises:
        WorldError: there is no display, or the window was closed.
    """

    def __init__(self, robot: Robot, *, ghost: bool = False) -> None:
        if sys.platform.startswith("linux") and not x_server_answers(os.environ.get("DISPLAY", "")):
            raise WorldError("there is no display for a window: record a film instead")
        self._client = pybullet.connect(pybullet.GUI)
        if self._client < 0:
            raise WorldError("PyBullet cannot open a window here: record a film instead")
        import pybullet_data

        pybullet.configureDebugVisualizer(pybullet.COV_ENABLE_GUI, 0, physicsClientId=self._client)
        plane = os.path.join(pybullet_data.getDataPath(), "plane.urdf")
        pybullet.loadURDF(plane, physicsClientId=self._client)
        self._figure = Figure(robot, self._client)
        self._ghost = Figure(robot, self._client, (*GHOST, GHOST_OPACITY)) if ghost else None
        self._distance = 0.8 + 2.2 * self._figure.size()

    def show(self, pose: Pose, ghost: Pose | None = None) -> None:
        """Show a pose; the camera follows.

        Raises:
            WorldError: the window was closed.
        """
        if not pybullet.isConnected(self._client):
            raise WorldError("the window was closed")
        self._figure.pose(pose)
        if ghost is not None and self._ghost is not None:
            self._ghost.pose(ghost)
        seen = pybullet.getDebugVisualizerCamera(self._client)
        yaw, pitch, distance = seen[8], seen[9], seen[10]
        place = [float(pose.root_pos[0]), float(pose.root_pos[1]), 0.75 * self._figure.size()]
        pybullet.resetDebugVisualizerCamera(
            distance or self._distance, yaw, pitch, place, self._client
        )

    def close(self) -> None:
        """Close the window."""
        if self._client >= 0 and pybullet.isConnected(self._client):
            pybullet.disconnect(self._client)
        self._client = -1


def x_server_answers(display: str) -> bool:
    """Tell whether an X server answers at a display such as ":0" or "host:10.0".

    PyBullet waits for ever for one that does not.
    """
    host, _, number = display.rpartition(":")
    number = number.partition(".")[0]
    if not number.isdecimal():
        return False
    if host not in ("", "unix"):
        try:
            with socket.create_connection((host, 6000 + int(number)), timeout=2.0):
                return True
        except OSError:
            return False
    path = f"/tmp/.X11-unix/X{number}"
    for address in (path, f"\0{path}"):  # a file, or a name that only Linux knows
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(2.0)
            if server.connect_ex(address) == 0:
                return True
    return False


def _rays(width: int, height: int) -> np.ndarray:
    """Return the direction in which each pixel looks, (height, width, 3), in the camera's axes."""
    half = math.tan(math.radians(FIELD_OF_VIEW) / 2)
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = 1 - (np.arange(height) + 0.5) / height * 2
    rays = np.empty((height, width, 3), np.float32)
    rays[..., 0] = x * half * width / height
    rays[..., 1] = y[:, None] * half
    rays[..., 2] = -1.0
    return rays


def _soften(mask: np.ndarray) -> np.ndarray:
    """Average each pixel of a mask with its neighbours."""
    for axis in (0, 1):
        mask = (np.roll(mask, 1, axis) + mask + np.roll(mask, -1, axis)) / 3
    return mask
