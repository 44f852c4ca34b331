"""The life of agents between two messages, in the order in which Unity's Academy does it.

In each frame: agents whose turn it is ask for a decision, one message is exchanged if there is
anything to say, all agents act, and those whose episode is over are noted at once, under their old
id, for the next message. So a message may hold ends and no question at all. An agent whose episode
is over has a new id from then on; a RESET gives none.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rlgym.envs.unity.messages import message
from rlgym.envs.unity.standin.agents import Population, Sensor

RESET = 1


@dataclass
class Crowd:
    """What the Academy knows of one population."""

    population: Population
    ids: np.ndarray
    age: np.ndarray
    """Frames since each agent's episode began."""
    present: np.ndarray
    reward: np.ndarray
    """Earned since the agent last spoke."""
    group_reward: np.ndarray
    continuous: np.ndarray
    """The action that is being taken, until the next decision."""
    discrete: np.ndarray
    infos: list[Any] = field(default_factory=list)
    """What the next message says."""
    asking: list[int] = field(default_factory=list)
    """Rows of the infos that are questions, in their order."""
    known: bool = False
    """Python has been told the behaviour's parameters."""


@dataclass(frozen=True)
class Coming:
    """How agents come and go, beyond what the scene does."""

    late: int = 0
    """Agents of each behaviour that are missing at first,"""
    late_frame: int = 100
    """and the frame in which they appear."""
    leave: float = 0.0
    """Share of ended agents that do not come back before the next RESET."""


class Academy:
    """Steps the populations of a scene and turns them into messages and back.

    Attributes:
        crowds: one per behaviour.
        questions: decisions asked for so far.
    """

    def __init__(
        self, populations: Sequence[Population], rng: np.random.Generator, coming: Coming
    ) -> None:
        """Number all agents and begin their first episodes."""
        self.rng, self.coming = rng, coming
        self.frame = 0
        self.total_frames = 0
        self.questions = 0
        self._next_id = 0
        self.crowds = [self._gather(population) for population in populations]
        self.reset()

    def reset(self) -> None:
        """Begin a new episode for every agent, under the id that it has."""
        self.frame = 0
        for crowd in self.crowds:
            crowd.present[:] = True
            if self.total_frames < self.coming.late_frame:
                crowd.present[self._late(crowd)] = False
            crowd.age[:] = 0
            crowd.population.reset(np.arange(crowd.population.num_agents))
            for array in (crowd.reward, crowd.group_reward, crowd.continuous, crowd.discrete):
                array[:] = 0

    def ask(self) -> bool:
        """Begin a frame: those whose turn it is ask. Returns whether there is anything to say."""
        if self.total_frames == self.coming.late_frame and self.coming.late:
            for crowd in self.crowds:
                rows = self._late(crowd)
                crowd.present[rows] = True
                crowd.age[rows] = 0
                crowd.population.reset(rows)
        for crowd in self.crowds:
            population = crowd.population
            if population.period:
                turn = (self.frame - population.offsets) % population.period == 0
                rows = np.flatnonzero(turn & crowd.present)
                self._note(crowd, rows, done=False)
        self.frame += 1
        self.total_frames += 1
        return any(crowd.infos for crowd in self.crowds)

    def output(self, side_channel: bytes) -> Any:
        """The message with all that was noted; it is then forgotten."""
        made = message("UnityMessageProto")()
        made.header.status = 200
        rl = made.unity_output.rl_output
        rl.side_channel = side_channel
        for crowd in self.crowds:
            if not crowd.infos:
                continue
            if crowd.population.shuffled:
                self._shuffle(crowd)
            behavior = crowd.population.behavior
            rl.agentInfos[behavior].value.extend(crowd.infos)
            crowd.infos = []
            if not crowd.known:
                describe(crowd.population, made.unity_output.rl_initialization_output)
                crowd.known = True
        return made

    def take(self, reply: Any) -> None:
        """Take the actions of a reply.

        Raises:
            IndexError: when there are not as many actions as questions; a Unity player breaks too.
        """
        for crowd in self.crowds:
            asked, crowd.asking = crowd.asking, []
            actions = reply.agent_actions[crowd.population.behavior].value if asked else ()
            if len(actions) != len(asked):
                raise IndexError(
                    f"{crowd.population.behavior}: {len(actions)} actions for {len(asked)} agents"
                )
            for row, action in zip(asked, actions, strict=True):
                crowd.continuous[row] = action.continuous_actions
                crowd.discrete[row] = action.discrete_actions

    def act(self) -> None:
        """End a frame: all act; those whose episode is over are noted and begin anew."""
        for crowd in self.crowds:
            crowd.age += 1
            crowd.population.act(crowd.continuous, crowd.discrete)
        for crowd in self.crowds:
            crowd.population.settle()
        over = [self._judge(crowd) for crowd in self.crowds]
        for crowd, rows in zip(self.crowds, over, strict=True):
            if len(rows):
                crowd.population.reset(rows)

    def _judge(self, crowd: Crowd) -> np.ndarray:
        """Count rewards and note the ends; rows of the agents that begin anew."""
        population = crowd.population
        if population.adds_rewards:
            crowd.reward += population.reward
        else:
            crowd.reward[:] = population.reward
        crowd.group_reward += population.group_reward
        late = (crowd.age >= population.max_frames) & (population.max_frames > 0)
        interrupted = np.where(population.done, population.interrupted, late)
        rows = np.flatnonzero((population.done | late) & crowd.present)
        self._note(crowd, rows, done=True, interrupted=interrupted)
        for row in rows:
            crowd.ids[row] = self._new_id()
        crowd.age[rows] = 0
        crowd.continuous[rows] = 0
        crowd.discrete[rows] = 0
        if self.coming.leave:
            crowd.present[rows] = self.rng.random(len(rows)) >= self.coming.leave
        return rows

    def _note(
        self, crowd: Crowd, rows: np.ndarray, done: bool, interrupted: np.ndarray | None = None
    ) -> None:
        """Add what agents `rows` say to the next message."""
        if len(rows) == 0:
            return
        population = crowd.population
        obs = population.observe(rows)
        forbidden = None if done else population.forbidden(rows)
        for k, row in enumerate(rows.tolist()):
            info = message("AgentInfoProto")(
                id=int(crowd.ids[row]),
                reward=float(crowd.reward[row]),
                group_reward=float(crowd.group_reward[row]),
                group_id=int(population.groups[row]),
                done=done,
                max_step_reached=bool(done and interrupted is not None and interrupted[row]),
            )
            if forbidden is not None and forbidden[k].any():  # nothing said = all allowed
                info.action_mask.extend(forbidden[k].tolist())
            for sensor, batch in zip(population.sensors, obs, strict=True):
                write(sensor, batch[k], info.observations.add())
            crowd.infos.append(info)
        if not done:
            crowd.asking += rows.tolist()
            self.questions += len(rows)
        crowd.reward[rows] = 0
        crowd.group_reward[rows] = 0

    def _shuffle(self, crowd: Crowd) -> None:
        """Put the questions in any order; ends stay before them, in the order of the new ids."""
        ends = len(crowd.infos) - len(crowd.asking)
        order = self.rng.permutation(len(crowd.asking)).tolist()
        crowd.infos[ends:] = [crowd.infos[ends + k] for k in order]
        crowd.asking = [crowd.asking[k] for k in order]

    def _gather(self, population: Population) -> Crowd:
        n = population.num_agents
        return Crowd(
            population,
            ids=np.array([self._new_id() for _ in range(n)], np.int64),
            age=np.zeros(n, np.int64),
            present=np.ones(n, bool),
            reward=np.zeros(n, np.float32),
            group_reward=np.zeros(n, np.float32),
            continuous=np.zeros((n, population.continuous), np.float32),
            discrete=np.zeros((n, len(population.branches)), np.int32),
        )

    def _late(self, crowd: Crowd) -> np.ndarray:
        """Rows of the agents that are missing at first."""
        return np.arange(crowd.population.num_agents)[::-1][: self.coming.late]

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1


def describe(population: Population, output: Any) -> None:
    """Write the behaviour's parameters into `output`, an UnityRLInitializationOutputProto."""
    brain = output.brain_parameters.add(brain_name=population.behavior, is_training=True)
    brain.action_spec.num_continuous_actions = population.continuous
    brain.action_spec.num_discrete_actions = len(population.branches)
    brain.action_spec.discrete_branch_sizes.extend(population.branches)


def write(sensor: Sensor, value: np.ndarray, obs: Any) -> None:
    """Write one agent's observation into `obs`, an ObservationProto.

    Args:
        value: (*shape) float32, or (H, W, 3 * images) uint8 for a sensor that sends PNGs.
    """
    obs.name = sensor.name
    obs.shape.extend(sensor.shape)
    obs.dimension_properties.extend(sensor.dimensions)
    obs.observation_type = int(sensor.goal)
    if sensor.kind == "floats":
        obs.float_data.data.extend(value.ravel().tolist())
        return
    obs.compression_type = 1
    obs.compressed_channel_mapping.extend(sensor.mapping)
    png = io.BytesIO()
    for first in range(0, value.shape[2], 3):
        picture = np.ascontiguousarray(value[:, :, first : first + 3])
        Image.fromarray(picture).save(png, "png", compress_level=1)
    obs.compressed_data = png.getvalue()
