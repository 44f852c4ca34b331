"""What Unity scenes cost here, against Unity's own Python client on the same player.

The player is the stand-in that sends recorded messages, so that it costs next to nothing; both
sides read the same bytes and write actions for all agents. Rates of the two are taken in turn, on
players of their own that wait while the other is measured.
"""

import contextlib
import pickle
import socket
import stat
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rlgym.bench.harness import ROOT, Case, Result, paired_case, say
from rlgym.envs.unity import compat
from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import Player
from rlgym.envs.unity.frames import Actions
from rlgym.envs.unity.launch import find_player
from rlgym.registry import make_vec

SIZES: tuple[tuple[int, int, int, float, float], ...] = (
    (12, 8, 2, 2.0, 8.0),
    (100, 64, 8, 3.5, 8.0),
    (1000, 64, 8, 6.0, 11.0),
)
"""Agents, observations, actions; how many times Unity's rate is promised, and how many times its
codec's."""
PLAYERS, FRAME_MS, OVERLAP = 4, 5, 3.0


def bench_unity(*, repeats: int = 9, seconds: float = 1.0, quick: bool = False) -> Result:
    """Steps per second against Unity's own client; its codec alone; players side by side.

    Args:
        repeats: repetitions of each side, taken in turn.
        seconds: approximate length of each.
        quick: one short repetition, to see that everything works.
    """
    if quick:
        repeats, seconds = 1, 0.1
    cases: list[Case] = []
    with TemporaryDirectory() as folder, _player_file(Path(folder)) as program:
        for size in SIZES:
            for case in _size_cases(program, size, repeats, seconds):
                cases.append(case)
                say(case.line())
    cases.append(_overlap_case(repeats, seconds))
    say(cases[-1].line())
    measured = (
        "env steps per second of a whole step (exchange, decode, slots, tensors, encode) with the "
        "stand-in player resending recorded messages, against get_steps, set_actions and step of "
        f"mlagents_envs.UnityEnvironment, median of {repeats} interleaved repetitions"
    )
    return Result("unity", measured, tuple(cases), quick)


# ---------------------------------------------------------------------- against Unity's client
def _size_cases(
    program: str, size: tuple[int, int, int, float, float], repeats: int, seconds: float
) -> list[Case]:
    agents, obs, actions, goal, codec_goal = size
    scene = {"scene": "noise", "agents": agents, "obs": obs, "continuous": actions, "replay": 8}
    name = f"{agents} agents, {obs} observations, {actions} actions"
    values = np.random.default_rng(0).uniform(-1, 1, (agents, actions)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        env = make_vec("unity:standin", **scene)
        stack.callback(env.close)
        env.reset(seed=0)
        stock = Stock(program, scene)
        stack.callback(stock.close)
        raw = Raw(scene, values)
        stack.callback(raw.close)
        tensor = torch.from_numpy(values)
        sides = (lambda: env.step(tensor), lambda: stock.step(values), raw.exchange, raw.step)
        ours, theirs, ceiling, line = _in_turn(repeats, seconds, sides)
        whole = paired_case(
            f"{name}, whole step",
            "steps/s",
            ours,
            theirs,
            goal=goal,
            goal_is="at least",
            details={"raw exchange": ceiling, "exchange and codec": line},
        )
        ours, theirs = _in_turn(
            repeats, seconds / 4, (raw.translate, lambda: stock.translate(raw.data, values))
        )
    codec = paired_case(
        f"{name}, codec alone", "messages/s", ours, theirs, goal=codec_goal, goal_is="at least"
    )
    return [whole, codec]


def _in_turn(
    repeats: int, seconds: float, sides: tuple[Callable[[], Any], ...]
) -> list[list[float]]:
    """Calls per second of each side, `repeats` times each, after once that does not count."""
    rates: list[list[float]] = [[] for _ in sides]
    counts = [max(3, round(seconds * _rate(side, 0.2 * seconds))) for side in sides]
    for _ in range(repeats):
        for side, count, found in zip(sides, counts, rates, strict=True):
            begin = time.perf_counter()
            for _ in range(count):
                side()
            found.append(count / (time.perf_counter() - begin))
    return rates


def _rate(side: Callable[[], Any], seconds: float) -> float:
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        side()
        count += 1
    return count / (time.perf_counter() - begin)


class Raw:
    """A player without anything behind it: the exchange alone, and the codec alone.

    Args:
        scene: arguments of the stand-in.
        actions: (agents, actions) float32, given in each step.
    """

    def __init__(self, scene: dict[str, Any], actions: np.ndarray) -> None:
        self.codec = Codec()
        self.player = Player(find_player("standin", **scene))
        self.player.start()
        self.player.connect()
        self.player.send(self.codec.encode_reset())
        self.data = self.player.recv()
        (self.behavior,) = self.codec.decode(self.data).batches
        self.actions = {self.behavior: Actions(continuous=actions)}
        self.reply = self.codec.encode(self.actions)

    def exchange(self) -> None:
        """Send the same reply, and read nothing: what no client can be faster than."""
        self.player.send(self.reply)
        self.data = self.player.recv()

    def step(self) -> None:
        """Exchange, decode and encode."""
        self.player.send(self.codec.encode(self.actions))
        self.data = self.player.recv()
        self.codec.decode(self.data)

    def translate(self) -> None:
        """Decode a message and encode the reply."""
        self.codec.decode(self.data)
        self.codec.encode(self.actions)

    def close(self) -> None:
        """End the player."""
        self.player.quit()


class Stock:
    """Unity's own client.

    Args:
        program: the player's executable file.
        scene: arguments of the stand-in.
    """

    def __init__(self, program: str, scene: dict[str, Any]) -> None:
        self._unity = compat.load()
        words = [word for key, value in scene.items() for word in (f"--{key}", str(value))]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.env = self._unity.environment.UnityEnvironment(
            program, base_port=port, timeout_wait=60, additional_args=words
        )
        self.env.reset()
        (self.behavior,) = self.env.behavior_specs

    def step(self, actions: np.ndarray) -> None:
        """What a trainer does in each step."""
        self.env.get_steps(self.behavior)
        self.env.set_actions(self.behavior, self._unity.base_env.ActionTuple(continuous=actions))
        self.env.step()

    def translate(self, data: bytes, actions: np.ndarray) -> None:
        """Decode a message and encode the reply, with the pickling to and from its own process."""
        pb2 = sys.modules["mlagents_envs.communicator_objects.unity_message_pb2"]
        message = pb2.UnityMessageProto.FromString(data)  # type: ignore[attr-defined]
        output = pickle.loads(pickle.dumps(message)).unity_output.rl_output
        spec = self.env.behavior_specs[self.behavior]
        infos = output.agentInfos[self.behavior].value
        self._unity.rpc_utils.steps_from_proto(infos, spec)
        action = self._unity.base_env.ActionTuple(continuous=actions)
        reply = pb2.UnityMessageProto()  # type: ignore[attr-defined]
        reply.unity_input.CopyFrom(self.env._generate_step_input({self.behavior: action}))
        pickle.loads(pickle.dumps(reply)).SerializeToString()

    def close(self) -> None:
        """End the player."""
        self.env.close()


@contextlib.contextmanager
def _player_file(folder: Path) -> Iterator[str]:
    """The stand-in as one executable file, which is what Unity's client takes."""
    file = folder / "Player"
    file.write_text(
        f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "sys.stdout = open(os.devnull, 'w')\n"  # ours is the result's alone
        "from rlgym.envs.unity.standin.__main__ import main\nsys.exit(main())\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    yield str(file)


# ---------------------------------------------------------------------- players side by side
def _overlap_case(repeats: int, seconds: float) -> Case:
    scene = {"scene": "noise", "replay": 8, "frame_ms": FRAME_MS}
    env = make_vec("unity:standin", num_players=PLAYERS, **scene)
    try:
        env.reset(seed=0)
        actions = torch.zeros(env.num_envs, 2)
        parts = [actions[env.group_slice(group)] for group in range(PLAYERS)]
        groups = range(PLAYERS)

        def overlapped() -> None:
            for group in groups:
                env.recv(group)
                env.send(parts[group], group)

        def alone() -> None:
            for group in groups:
                env.send(parts[group], group)
                env.recv(group)

        ours, theirs = [], []
        for _ in range(repeats):
            for group in groups:
                env.send(parts[group], group)
            ours += [PLAYERS * rate for rate in _in_turn(1, seconds, (overlapped,))[0]]
            for group in groups:
                env.recv(group)
            theirs += [PLAYERS * rate for rate in _in_turn(1, seconds, (alone,))[0]]
    finally:
        env.close()
    return paired_case(
        f"{PLAYERS} players with frames of {FRAME_MS} ms, against one after another",
        "player steps/s",
        ours,
        theirs,
        goal=OVERLAP,
        goal_is="at least",
        details={"median": statistics.median(ours), "ideal": PLAYERS * 1000 / FRAME_MS},
    )
