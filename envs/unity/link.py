"""One player of a world: its process, its codec, and the slots that its agents stand in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import Player, PlayerFrozen
from rlgym.envs.unity.frames import Actions, Batch, BehaviorSpec, Frame
from rlgym.envs.unity.side_channels import SideChannels
from rlgym.envs.unity.slots import PATIENCE, IdCounter, Slots, allowed
from rlgym.errors import WorldError

SETTLED = 10
"""Rounds of decisions without a new agent, after which a scene is taken to be complete."""
MAX_ROUNDS = 300
"""Rounds of decisions in which a scene must become complete."""

TakeActions = Callable[[str], tuple[np.ndarray | None, np.ndarray | None]]
"""Behaviour -> this step's continuous and discrete actions of its slots in this player."""


@dataclass
class Scene:
    """What a player showed while it was only watched."""

    specs: dict[str, BehaviorSpec] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Behaviour -> agents at the same time."""
    in_groups: bool = False
    """Some agent is in a group."""
    staggered: bool = False
    """Some agents asked for decisions when others did not."""


class Link:
    """The line to one player.

    Args:
        make_player: builds the player that `start` starts; called again for each restart.
        channels: side channels of this player.
        timeout: seconds without a decision after which the player counts as frozen.

    Attributes:
        slots: behaviour -> slots; the world fills it in. Agents of other behaviours do nothing.
        counter: of the player's ids.
        stepping: a step is under way.
        sent: names of the views whose actions for the next step are there.
    """

    def __init__(
        self, make_player: Callable[[], Player], channels: SideChannels, timeout: float
    ) -> None:
        self.channels = channels
        self.slots: dict[str, Slots] = {}
        self.counter = IdCounter()
        self.stepping = False
        self.sent: set[str] = set()
        self.player: Player | None = None
        self._make_player = make_player
        self._timeout = timeout
        self._codec = Codec()
        self._specs: dict[str, BehaviorSpec] = {}
        self._frame = Frame()
        self._heard = 0.0  # when an agent with a slot asked last

    # ------------------------------------------------------------------ the life of a player
    def start(self) -> None:
        """Start a player; `connect` waits for it."""
        self._frame = Frame()
        self.counter.restart()
        self.player = self._make_player()
        self.player.start()

    def connect(self) -> None:
        """Wait until the player speaks.

        Raises:
            PlayerLost, PlayerFrozen: it does not.
        """
        player = self._open()
        player.connect()
        self._codec = Codec(player.name, hybrid="hybridActions" in player.capabilities)
        self._heard = time.monotonic()

    def quit(self, grace: float = 5.0) -> None:
        """End the player."""
        if self.player is not None:
            self.player.quit(grace)
            self.player = None

    def _open(self) -> Player:
        if self.player is None:
            raise WorldError("this player has ended: make a new world")
        return self.player

    # ------------------------------------------------------------------ messages
    def reset(self) -> None:
        """Tell the player to begin every episode anew."""
        self._open().send(self._codec.encode_reset(self.channels.outgoing()))

    def read(self) -> Frame:
        """Wait for the player's next message.

        Raises:
            PlayerLost, PlayerFrozen: there is none.
            WorldError: a behaviour is not what it was before, or the message makes no sense.
        """
        self._frame = frame = self._codec.decode(self._open().recv())
        if frame.side_channel:
            self.channels.incoming(frame.side_channel)
        for spec in frame.new_specs:
            before = self._specs.setdefault(spec.name, spec)
            if before != spec:
                raise WorldError(
                    f"behaviour '{spec.name}' of {self._open().name} has changed its observations "
                    "or actions since the start: a policy cannot follow; keep them fixed"
                )
        return frame

    def reply(self, actions: Mapping[str, Actions]) -> None:
        """Answer the last message; agents of behaviours without actions here do nothing."""
        answer = dict(actions)
        for name, batch in self._frame.batches.items():
            if name not in answer:
                answer[name] = nothing(batch, self._specs[name])
        self._open().send(self._codec.encode(answer, self.channels.outgoing()))

    # ------------------------------------------------------------------ steps
    def begin_step(self, everyone: bool, actions: TakeActions) -> None:
        """Hand the actions of a step over; the player goes on at once."""
        for slots in self.slots.values():
            slots.begin_step(everyone)
        self.answer(actions)

    def answer(self, actions: TakeActions) -> None:
        """Answer the last message with a step's actions."""
        self.reply({name: self.slots[name].answer(*actions(name)) for name in self._with_slots()})

    def _with_slots(self) -> list[str]:
        return [name for name in self._frame.batches if name in self.slots]

    def finish_step(self, everyone: bool, actions: TakeActions) -> int:
        """Take messages until the step is complete; how many agents were given up on the way.

        Args:
            everyone: wait until every agent has asked again; else until any has.
            actions: the step's, for agents that did not get theirs yet.
        """
        given_up = 0
        rounds = 0
        while True:
            if self._take():
                rounds += 1
                if not everyone or not self._owing():
                    break
                if rounds >= PATIENCE:
                    given_up += sum(slots.give_up_silent() for slots in self.slots.values())
                    if not self._owing():
                        break
            self.answer(actions)
        for slots in self.slots.values():
            slots.finish_step()
        return given_up

    def finish_reset(self) -> None:
        """Take messages after a reset until every slot has an observation, or stays empty."""
        for slots in self.slots.values():
            slots.begin_reset()
        since_new = alive_before = 0
        for _ in range(MAX_ROUNDS):
            while not self._take():
                self.answer(_no_actions)
            alive = sum(int(slots.alive.sum()) for slots in self.slots.values())
            since_new = 0 if alive > alive_before else since_new + 1
            alive_before = max(alive, alive_before)
            full = alive == sum(slots.count for slots in self.slots.values())
            if not self._owing() and (full or since_new >= SETTLED):
                break
            if since_new >= PATIENCE:
                for slots in self.slots.values():
                    slots.give_up_silent()
                break
            self.answer(_no_actions)
        for slots in self.slots.values():
            slots.end_reset()

    def _take(self) -> bool:
        """Take one message; True when an agent with a slot asks in it."""
        asked = False
        frame = self.read()
        for name, batch in frame.batches.items():
            slots = self.slots.get(name)
            if slots is not None:
                slots.take(batch)
                asked = asked or bool(slots.asking.any())
            else:
                self.counter.see(int(batch.ids.max()))
                for _ in range(len(batch.ids) - batch.num_deciding):
                    self.counter.issue()
        if asked:
            for slots in self.slots.values():
                slots.pass_round()
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > self._timeout:
            names = " and ".join(f"'{name}'" for name in self.slots)
            raise PlayerFrozen(
                f"no agent of {names} asked for a decision within {self._timeout:g} s although "
                f"{self._open().name} goes on: do its agents come back after their end?"
            )
        return asked

    def _owing(self) -> bool:
        return any(slots.owing.any() for slots in self.slots.values())

    # ------------------------------------------------------------------ the first look
    def watch(self) -> Scene:
        """Reset the player and let every agent do nothing until no new ones appear.

        Raises:
            PlayerLost, PlayerFrozen: it does not go on.
            WorldError: its agents come and go without end.
        """
        scene = Scene(self._specs)
        alive: dict[str, set[int]] = {}
        self.reset()
        since_new = rounds = 0
        while rounds < MAX_ROUNDS:
            frame = self.read()
            new = len(frame.new_specs)
            asking: dict[str, set[int]] = {}
            for name, batch in frame.batches.items():
                there = alive.setdefault(name, set())
                there -= set(batch.ids[batch.done].tolist())
                asking[name] = set(batch.ids[~batch.done].tolist())
                there |= asking[name]
                new += len(there) > scene.counts.get(name, 0)
                scene.counts[name] = max(scene.counts.get(name, 0), len(there))
                scene.in_groups = scene.in_groups or bool(batch.group_ids.any())
            if frame.num_deciding:
                rounds += 1
                self._heard = time.monotonic()
                since_new = 0 if new else since_new + 1
                if not new and any(asking.get(name, set()) != ids for name, ids in alive.items()):
                    scene.staggered = True
                if since_new >= SETTLED:
                    return scene
            elif time.monotonic() - self._heard > self._timeout:
                raise WorldError(
                    f"no agent of {self._open().name} asked for a decision within "
                    f"{self._timeout:g} s although they come and go: give them a Decision Requester"
                )
            self.reply({})
        raise WorldError(
            f"{self._open().name} makes more and more agents: let those that have ended come back "
            "instead of making others"
        )


def _no_actions(name: str) -> tuple[None, None]:
    """After a reset nobody has chosen anything yet."""
    return None, None


def nothing(batch: Batch, spec: BehaviorSpec) -> Actions:
    """Zeros for the agents of a batch that ask, or the first choice that is allowed."""
    count = batch.num_deciding
    continuous = np.zeros((count, spec.continuous), np.float32) if spec.continuous else None
    if not spec.branches:
        return Actions(continuous, None)
    discrete = np.zeros((count, len(spec.branches)), np.int32)
    if batch.masks is not None:
        discrete = allowed(discrete, batch.masks[~batch.done], spec.branches)
    return Actions(continuous, discrete)
