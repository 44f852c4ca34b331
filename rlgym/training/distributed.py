"""Several processes that train one policy, as torchrun starts them; one alone is a group of one.

    torchrun --nproc-per-node 2 -m rlgym train CartPole-v1

Each process owns worlds, rollouts and minibatches; gradients, sums over rows and normalisers'
statistics are taken over all of them (`rlgym.agents.peers`), so the group does what one process
would with all its worlds and minibatches as many times larger. Rank 0 evaluates, saves and writes.

What processes say to each other is numbers and JSON. When one is lost, each of the others learns of
it in its next exchange and ends; the first of them says so, and what was saved stays as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from rlgym import __version__
from rlgym.device import available
from rlgym.errors import ConfigError, DeviceError, PeerLostError, UserError
from rlgym.rollout.collector import CollectStats

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others; rank 0 evaluates and saves meanwhile."""
MESSAGE = 2048
"""Bytes of a message that travel at once; a longer one takes a second exchange."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_numbers = itertools.count()  # a process may train several times, one after another
_SECONDS = ("seconds", "idle", "policy", "transfer", "busy")


class Group:
    """The processes that train together.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        local_rank: of this process among those on its machine.
        local_size: how many there are on this machine.
        store: where processes leave notes for each other; None alone.

    Attributes:
        leads: True in rank 0, which evaluates, saves and writes.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        store: Store | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.leads = rank == 0
        self._store = store
        self._device_group: Any = None

    # ------------------------------------------------------------------ numbers
    def mean(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its mean over the processes, in place; returns it."""
        if self.size > 1:
            with _as_loss(self):
                dist.all_reduce(tensor, group=self._group_of(tensor))
            tensor /= self.size
        return tensor

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Give every process rank 0's numbers, in place."""
        if self.size > 1:
            with _as_loss(self):
                for _, tensor in sorted(tensors.items()):
                    dist.broadcast(tensor, 0, group=self._group_of(tensor))

    def average(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Scalars by name, each as its mean over the processes."""
        if self.size == 1 or not metrics:
            return metrics
        names = sorted(metrics)
        values = [torch.as_tensor(metrics[name], dtype=torch.float64).cpu() for name in names]
        means = self.mean(torch.stack([value.reshape(()) for value in values]))
        return dict(zip(names, means.unbind(), strict=True))

    def exchange(self, document: Any) -> list[Any]:
        """Tell all processes something that JSON can hold; what each of them told, by rank."""
        if self.size == 1:
            return [document]
        message = json.dumps(document).encode()
        head = len(message).to_bytes(8, "little") + message[:MESSAGE]
        heads = self._gather(head, MESSAGE + 8)
        lengths = [int.from_bytes(head[:8], "little") for head in heads]
        texts = [head[8 : 8 + length] for head, length in zip(heads, lengths, strict=True)]
        if max(lengths) > MESSAGE:
            rests = self._gather(message[MESSAGE:], max(lengths) - MESSAGE)
            texts = [text + rest for text, rest in zip(texts, rests, strict=True)]
        return [json.loads(text[:n]) for text, n in zip(texts, lengths, strict=True)]

    def _gather(self, data: bytes, size: int) -> list[bytes]:
        ours = torch.zeros(size, dtype=torch.uint8)
        ours[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        theirs = [torch.empty_like(ours) for _ in range(self.size)]
        with _as_loss(self):
            dist.all_gather(theirs, ours)
        return [tensor.numpy().tobytes() for tensor in theirs]

    def _group_of(self, tensor: Tensor) -> Any:
        return None if tensor.device.type == "cpu" else self._device_group

    # ------------------------------------------------------------------ a run's parts
    def take_device(self, asked: str) -> None:
        """Make an accelerator of this machine this process's own, if there is one for each.

        Raises:
            DeviceError: one is asked for by its number.
        """
        count = len(available()) - 1
        if self.size == 1 or not count:
            return
        kind, _, index = asked.partition(":")
        if index and self.local_size > 1:
            raise DeviceError(
                f"device {asked} is one, and {self.local_size} processes need one each: pass "
                f"--device {kind}"
            )
        if self.local_rank < count and not index:
            torch.accelerator.set_device_index(self.local_rank)

    def use_device(self, device: torch.device) -> None:
        """Let gradients be exchanged from accelerator to accelerator.

        Raises:
            DeviceError: there are fewer of them than processes.
        """
        if self.size == 1 or device.type == "cpu":
            return
        count = len(available()) - 1
        if self.local_size > count:
            raise DeviceError(
                f"{self.local_size} processes on a machine with {count} of {device.type}: start "
                f"torchrun with --nproc-per-node {count}, or pass --device cpu"
            )
        backend = dist.get_default_backend_for_device(device)
        self._device_group = dist.new_group(backend=backend, timeout=PATIENCE)

    def connect(self, learner: Any) -> None:
        """Give every process rank 0's learner, and have it learn from what all of them saw."""
        if self.size == 1:
            return
        state = learner.state_dict()
        self.broadcast(state)
        learner.load_state_dict(state)
        learner.peers = self
        for part in [*vars(learner).values(), *learner.policy.modules()]:
            if hasattr(part, "peers"):  # optimisers, SAC's way of taking gradients, normalisers
                part.peers = self

    def pool_rewards(self, env: Any) -> None:
        """Give reward normalisers the moments of all processes' rewards.

        Each counts what one process saw: mean and deviation are those of all rows, however often
        they are pooled, because they weigh alike in every process.
        """
        while env is not None:
            moments = getattr(env, "reward_moments", None)
            if moments is not None:
                mean, var, count = moments.to(torch.float64).unbind()
                sums = torch.stack((count, count * mean, count * (var + mean.square())))
                count, mean, square = self.mean(sums).unbind()
                mean, square = mean / count, square / count
                moments.copy_(torch.stack((mean, square - mean.square(), count)))
            env = getattr(env, "env", None)

    def check_alike(self, num_envs: int, algo: Any) -> None:
        """Make sure that all processes run the same thing.

        Raises:
            ConfigError: names what differs.
        """
        ours = {
            "rlgym": __version__,
            "torch": torch.__version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
            "num_envs": num_envs,
            "algo": json.dumps(dataclasses.asdict(algo)),
        }
        for rank, theirs in enumerate(self.exchange(ours)):
            for name, value in ours.items():
                if theirs[name] != value:
                    raise ConfigError(
                        f"{name} is {value} in process {self.rank} and {theirs[name]} in process "
                        f"{rank}: all of them must be the same"
                    )

    def merged(self, answers: list[dict[str, Any]]) -> CollectStats:
        """What all rollouts of a moment were: episodes and steps added up, seconds averaged."""
        stats = CollectStats()
        for answer in answers:
            theirs = CollectStats(**answer)
            sums = theirs.term_sums.items()
            theirs.term_sums = {name: (total, count) for name, (total, count) in sums}
            stats.add(theirs)
        means = {name: getattr(stats, name) / self.size for name in _SECONDS}
        return dataclasses.replace(stats, **means)

    # ------------------------------------------------------------------ the end
    def cause(self) -> str:
        """What the process that failed first left as a note; "" when it left none."""
        with contextlib.suppress(Exception):
            if self._store is not None and self._store.check(["failed"]):
                return self._store.get("failed").decode()
        return ""

    def speaks(self, message: str) -> bool:
        """Whether this process is the first to fail, and thus the one that says so."""
        try:
            if self._store is None or self._store.add("failures", 1) > 1:
                return self._store is None
            self._store.set("failed", f"process {self.rank}: {message}")
        except Exception:  # the store is gone with the process that held it
            return True
        return True


def is_grouped() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "1")
    return all(name in os.environ for name in _VARIABLES) and size.isdigit() and int(size) > 1


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that torchrun started; alone, there is nothing to join.

    Raises:
        UserError: the others were not found, or one of them is lost; of a group, only the first
            process to fail raises, the others end with status 1.
    """
    if not is_grouped() or dist.is_initialized():
        yield Group()
        return
    group = _join()
    try:
        yield group
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if not group.speaks(message):
            raise SystemExit(1) from None
        raise
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _join() -> Group:
    number = next(_numbers)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local_size == int(os.environ["WORLD_SIZE"]) and not sys.platform.startswith("win"):
        # all on one machine: nothing of it needs to be reachable from elsewhere
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            "gloo",
            store=PrefixStore(f"group {number}", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {os.environ['RANK']} did not find the others of its group ({error}): start "
            "them all with torchrun, or unset RANK and WORLD_SIZE to train alone"
        ) from None
    return Group(rank, size, local_rank, local_size, PrefixStore(f"notes {number}", store))


@contextlib.contextmanager
def _as_loss(group: Group) -> Iterator[None]:
    """Turn what an exchange raises into the loss of a process."""
    try:
        yield
    except RuntimeError as error:
        cause = group.cause()
        what = "does not answer" if "imed out" in str(error) else "is lost"
        raise PeerLostError(
            f"one of the {group.size} processes that train together {what}"
            f"{f' ({cause})' if cause else ''}: all of them stop; rlgym resume, under torchrun "
            "again, goes on from the newest checkpoint"
        ) from None


class Silent:
    """In place of a `Logger` where another process writes."""

    def write(self, metrics: Mapping[str, Any], step: int) -> dict[str, float]:
        """Write nothing."""
        return {}

    def note(self, text: str) -> None:
        """Say nothing."""

    def resume(self, step: int) -> None:
        """There is no file to continue."""

    def close(self) -> None:
        """There is no file to close."""


def own_folder(run_dir: Path, group: Group) -> Path:
    """Where a process puts reports of its worlds; the run's folder is rank 0's."""
    return run_dir if group.leads else run_dir / f"process-{group.rank}"
