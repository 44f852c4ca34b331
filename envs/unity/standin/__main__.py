"""The stand-in as a program: Unity's arguments, Unity's handshake, and ways to fail on purpose."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TextIO

import grpc
import numpy as np

from rlgym.envs.unity.messages import METHOD, message
from rlgym.envs.unity.standin.academy import RESET, Academy, Coming
from rlgym.envs.unity.standin.agents import SceneOptions
from rlgym.envs.unity.standin.channels import Channels
from rlgym.envs.unity.standin.scenes import SCENES, build

QUIT = 2
EDITOR_PORT = 5004
FAULTS = ("crash", "abort", "hang", "nan", "inf", "reshape", "garbage", "vanish", "deaf")
MOMENTS = ("start", "handshake", "reset")
DESCRIPTION = "A player that speaks Unity ML-Agents' protocol and needs no Unity."


class Faults:
    """What goes wrong, and when.

    Args:
        texts: `KIND@MOMENT` each: a kind of `FAULTS`, and `start`, `handshake`, `reset` or the
            number of the message, counted from 1. `deaf` means to stay when told to quit.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.planned: dict[str, list[str]] = {}
        for text in texts:
            kind, _, moment = text.partition("@")
            if kind not in FAULTS or not (moment in MOMENTS or moment.isdigit() or kind == "deaf"):
                raise ValueError(
                    f"fault '{text}': write KIND@MOMENT, KIND one of {', '.join(FAULTS)}, "
                    f"MOMENT one of {', '.join(MOMENTS)} or a number"
                )
            self.planned.setdefault(moment or "quit", []).append(kind)

    def at(self, moment: str, log: TextIO) -> list[str]:
        """Crash or hang if that is planned for this moment; else what is to be done to it."""
        kinds = self.planned.get(moment, [])
        for kind in kinds:
            print(f"Planned fault '{kind}' at {moment}", file=log, flush=True)
            if kind == "crash":
                os._exit(3)
            if kind == "abort":
                os.abort()
            if kind == "hang":
                while True:
                    time.sleep(3600)
        return kinds


class Player:
    """One run of the program, from the handshake to the quit.

    Args:
        arguments: as `parser` reads them.
        log: where a Unity player writes its Player.log.
    """

    def __init__(self, arguments: argparse.Namespace, log: TextIO) -> None:
        self.arguments, self.log = arguments, log
        self.faults = Faults(arguments.fault)
        self.channels = Channels()
        self.sent = 0
        self.seconds = arguments.frame_ms / 1000
        self._call = connect(arguments.mlagents_port)

    def run(self) -> None:
        """Play until Python says to stop or is gone, which exits with status 0."""
        self.faults.at("start", self.log)
        first, seed, areas = self._shake_hands()
        rng = np.random.default_rng(seed)
        given = {f.name: getattr(self.arguments, f.name) for f in fields(SceneOptions)}
        populations = build(self.arguments.scene, SceneOptions(**given), self.channels, rng, areas)
        late, _, frame = (self.arguments.late or "0").partition("@")
        coming = Coming(int(late), int(frame or 100), self.arguments.leave)
        self._obey(first)  # parameters that came with the first reset count for the first episodes
        self.academy = Academy(populations, rng, coming)
        if self.arguments.replay:
            self._replay()
        while True:
            self._frame()

    def _frame(self) -> None:
        """One FixedUpdate."""
        if not self.academy.crowds:
            time.sleep(0.02)  # nothing will ever be said; not a reason to keep a core busy
        if self.academy.ask():
            self._pause()
            made = self.academy.output(self.channels.take())
            reply = self._exchange(made)
            if self._obey(reply):
                return
            self.academy.take(reply)
        elif not self.academy.crowds or all(not c.population.period for c in self.academy.crowds):
            time.sleep(0.001)
        self.academy.act()

    def _shake_hands(self) -> tuple[Any, int, int]:
        """Say hello; (first input, seed, number of areas)."""
        self.faults.at("handshake", self.log)
        hello = message("UnityMessageProto")()
        hello.header.status = 200
        output = hello.unity_output.rl_initialization_output
        output.name = self.arguments.scene
        output.communication_version = self.arguments.protocol
        output.package_version = "3.0.0-standin"
        for capability in output.capabilities.DESCRIPTOR.fields:
            wanted = capability.name not in self.arguments.without
            setattr(output.capabilities, capability.name, wanted)
        answer = self._send(hello).unity_input.rl_initialization_input
        print(
            f"Connected to Python: protocol {answer.communication_version}, "
            f"package {answer.package_version}, seed {answer.seed}",
            file=self.log,
            flush=True,
        )
        mine, theirs = self.arguments.protocol, answer.communication_version
        if mine.split(".")[0] != theirs.split(".")[0]:
            print(f"Protocol {theirs} does not go with {mine}", file=self.log, flush=True)
            raise SystemExit(0)
        empty = message("UnityMessageProto")()
        empty.header.status = 200
        first = self._send(empty).unity_input.rl_input
        return first, answer.seed, max(answer.num_areas, 1)

    def _obey(self, reply: Any) -> bool:
        """Do what a reply commands besides actions; True when it reset the scene."""
        self.channels.receive(reply.side_channel)
        if reply.command == QUIT:
            self._stop()
        if reply.command == RESET:
            self.faults.at("reset", self.log)
            if hasattr(self, "academy"):
                for crowd in self.academy.crowds:
                    crowd.asking = []
                self.academy.reset()
            return True
        return False

    def _exchange(self, made: Any) -> Any:
        """Send a message of the scene, with the faults that are planned for it."""
        self.sent += 1
        kinds = self.faults.at(str(self.sent), self.log)
        if kinds:
            made = self._spoil(made, kinds)
        return self._send(made).unity_input.rl_input

    def _spoil(self, made: Any, kinds: list[str]) -> Any:
        """Do to the first agent of each behaviour what is planned."""
        for infos in made.unity_output.rl_output.agentInfos.values():
            first = infos.value[0]
            data = first.observations[-1].float_data.data
            if "nan" in kinds or "inf" in kinds:
                data[0] = float("nan" if "nan" in kinds else "inf")
            if "reshape" in kinds:
                data.append(0.0)
                first.observations[-1].shape[0] += 1
            if "vanish" in kinds and not first.done:
                self._vanish(first.id)
                del infos.value[0]
        return made

    def _vanish(self, agent_id: int) -> None:
        """Take an agent away without a word, as destroying its GameObject at a bad time does."""
        for crowd in self.academy.crowds:
            for row in np.flatnonzero(crowd.ids == agent_id).tolist():
                crowd.present[row] = False
                crowd.asking.remove(row)

    def _send(self, made: Any) -> Any:
        """One exchange of bytes; the parsed reply."""
        data = made.SerializeToString()
        if "garbage" in self.faults.planned.get(str(self.sent), ()):
            data = data[:5] + b"\xff" * 64  # the header is whole, and what follows is not
        try:
            data = self._call(data)
        except grpc.RpcError as error:
            print(f"Python is gone: {error}", file=self.log, flush=True)
            raise SystemExit(0) from error
        reply = message("UnityMessageProto").FromString(data)
        if reply.header.status != 200:
            self._stop()
        return reply

    def _stop(self) -> None:
        """Quit, unless it is planned not to."""
        print("Python said to quit", file=self.log, flush=True)
        if "deaf" in self.faults.planned.get("quit", ()):
            while True:
                time.sleep(3600)
        raise SystemExit(0)

    def _pause(self) -> None:
        """Take as long as the scene is said to take; `--realtime` obeys the time scale."""
        seconds = self.seconds
        if self.arguments.realtime:
            crowds = self.academy.crowds
            frames = max((crowd.population.period for crowd in crowds), default=1)
            seconds += 0.02 * frames / self.channels.settings.get("time_scale", 1.0)
        if seconds:
            time.sleep(seconds)

    def _replay(self) -> None:
        """Send bytes made beforehand, so that the player costs as little as can be."""
        recorded = []
        for _ in range(2 + self.arguments.replay):
            while not self.academy.ask():
                self.academy.act()
            made = self.academy.output(b"")
            if any(
                info.done
                for b in made.unity_output.rl_output.agentInfos.values()
                for info in b.value
            ):
                break  # an id must not come back, so the record ends before the first end
            recorded.append(made.SerializeToString())
            for crowd in self.academy.crowds:
                crowd.asking = []
            self.academy.act()
        data, again = recorded[0], recorded[1:]
        at = 0
        while True:
            self._pause()
            try:
                reply = self._call(data)
            except grpc.RpcError as error:
                raise SystemExit(0) from error
            if len(reply) < 1024:  # what has no actions for all may be a command
                parsed = message("UnityMessageProto").FromString(reply)
                if parsed.header.status != 200 or parsed.unity_input.rl_input.command == QUIT:
                    self._stop()
            data, at = again[at], (at + 1) % len(again)


def connect(port: int) -> Callable[[bytes], bytes]:
    """The call to Python, which is the server; raw bytes both ways."""
    channel = grpc.insecure_channel(
        f"localhost:{port}", options=[("grpc.max_send_message_length", -1)]
    )
    return channel.unary_unary(METHOD, None, None)


def parser() -> argparse.ArgumentParser:
    """Unity's own arguments, and those of the stand-in."""
    made = argparse.ArgumentParser(
        "standin", "standin [options], see --help", DESCRIPTION, allow_abbrev=False
    )
    add = made.add_argument
    add("--mlagents-port", type=int, default=EDITOR_PORT, help="where Python listens")
    add("-logFile", "--logFile", dest="log", help="file for the log instead of the output")
    add("-nographics", action="store_true", help="as Unity; nothing is drawn anyway")
    add("-batchmode", action="store_true", help="as Unity")
    add("--scene", choices=sorted(SCENES), default="3dball")
    add("--agents", type=int, help="agents of each behaviour")
    add("--obs", type=int, help="size of the observation (noise, huge)")
    add("--continuous", type=int, help="continuous actions (noise, huge)")
    add("--branches", type=_integers, help="discrete branches, 3,2 (noise, huge)")
    add("--period", type=int, help="frames between decisions")
    add("--max-steps", type=int, help="decisions until an episode is interrupted, 0 = never")
    add("--layout", choices=["hwc", "chw"], default="hwc", help="declared order of images")
    add("--image", type=int, default=84, help="height and width of images")
    add("--stack", type=int, default=1, help="images stacked along the channels")
    add("--gray", action="store_true", help="one channel per image")
    add("--uncompressed", dest="compressed", action="store_false", help="images as floats")
    add("--late", metavar="N[@FRAME]", help="agents of each behaviour that appear later")
    add("--leave", type=float, default=0.0, help="share of ended agents that do not come back")
    add("--frame-ms", type=float, default=0.0, help="milliseconds that a message's frames take")
    add("--realtime", action="store_true", help="take 20 ms a frame over the time scale")
    add("--replay", type=int, nargs="?", const=8, default=0, help="resend N recorded messages")
    add("--protocol", default="1.5.0", help="communication version to report")
    add("--without", type=_words, default=(), help="capabilities to deny, A,B")
    add("--fault", type=_words, default=(), metavar="KIND@MOMENT,...", help=", ".join(FAULTS))
    add("--with-child", action="store_true", help="start a process of its own that stays")
    return made


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(argv: list[str] | None = None) -> int:
    """Play; returns the exit status."""
    arguments, unknown = parser().parse_known_args(argv)
    log = open(arguments.log, "a", encoding="utf-8") if arguments.log else sys.stdout  # noqa: SIM115
    print(f"Stand-in player, scene {arguments.scene}; not Unity", file=log, flush=True)
    if unknown:
        print(f"Arguments that mean nothing here: {unknown}", file=log, flush=True)
    if arguments.with_child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        Player(arguments, log).run()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=log, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
