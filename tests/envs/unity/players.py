"""Players of the stand-in, and what is left of one that should be gone."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np
import psutil

from rlgym.envs.unity.codec import Codec
from rlgym.envs.unity.connector import Player
from rlgym.envs.unity.frames import Actions, Frame
from rlgym.envs.unity.launch import find_player


def standin(timeout: float = 20.0, seed: int = 0, **options: Any) -> Player:
    return Player(find_player("standin", **options), timeout=timeout, seed=seed)


def connected(transport: Any = "direct", **options: Any) -> tuple[Player, Codec, Frame]:
    """A player after its first message of agents."""
    player = Player(find_player("standin", **options), timeout=20.0, transport=transport)
    player.start()
    player.connect()
    codec = Codec(player.name)
    player.send(codec.encode_reset())
    return player, codec, codec.decode(player.recv())


def zeros(codec: Codec, frame: Frame) -> bytes:
    return codec.encode(
        {
            name: Actions(
                np.zeros((batch.num_deciding, codec.specs[name].continuous)),
                np.zeros((batch.num_deciding, len(codec.specs[name].branches)), int),
            )
            for name, batch in frame.batches.items()
        }
    )


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def soon(condition: Any, seconds: float = 10.0) -> bool:
    """Whether it comes true within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
