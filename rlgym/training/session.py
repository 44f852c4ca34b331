"""One training run: its parts, its boundaries, and what the loop asks of it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from rlgym.config import TrainConfig, save_config
from rlgym.device import arithmetic
from rlgym.errors import CheckpointError, PeerLostError, UserError
from rlgym.registry import EDITOR, WorldFactory
from rlgym.rollout.collector import CollectStats, HostCollector, set_generator
from rlgym.rollout.device_collector import DeviceCollector
from rlgym.settings import short
from rlgym.training import checkpoint as checkpoints
from rlgym.training.algorithms import algorithm
from rlgym.training.cloning import start_cloning
from rlgym.training.console import Mode
from rlgym.training.distributed import Group, Silent, own_folder
from rlgym.training.evaluation import EvalResult, evaluate
from rlgym.training.folder import EVALUATIONS, cut_lines, open_folder
from rlgym.training.loaded import describe
from rlgym.training.logging import Logger
from rlgym.training.memory import check_memory, shortage
from rlgym.training.replay_store import ReplayStore
from rlgym.training.signals import Interrupted, Signals
from rlgym.training.state import RunState, Snapshot
from rlgym.training.worlds import choose_device, make_worlds, settle, world_seeds

HOOKS = ("on_start", "on_rollout", "on_update", "on_evaluation", "on_end", "symmetry")
"""Methods of a hook; see `rlgym.train`."""
SLOW_UPDATE = 1.0
"""Seconds of an update from which on the learner is copied at each boundary: a signal in the middle
of a shorter one can wait for its end."""
UNSAVED_BYTES = 128 * 1024**2
"""Bytes of the replay buffer that are on no disk, from which on a save is due: what a signal would
leave to be written within its ten seconds."""
RETRY_STEPS = 1000
"""Environment steps between two saves for that reason."""
SNAPSHOT_SECONDS = 2.0
"""Seconds that worlds have to describe themselves when the run is being interrupted."""


class Run:
    """One run: its parts, and what the loop asks for.

    Attributes:
        config: settings.
        run_dir: its folder.
        env: vector env that trains, wrapped.
        policy: what is trained; on the learner's device.
        learner: changes it.
        buffer: the last rollout.
        replay: transitions of all rollouts; None where each is learned from once.
        collector: fills the buffer.
        shuffle: generator of minibatches.
        state: what was counted so far.
        logger: scalars.
        result: the last evaluation; None before one.
        stopped: why the run ended; "" while it goes on.
        learn_seconds: wall time of the last update, where one may be cut.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        world: WorldFactory | None = None,
        network: Any = None,
        hooks: Any = None,
        console: Mode = "auto",
        snapshot: Snapshot | None = None,
        group: Group | None = None,
    ) -> None:
        """Build the parts; from a snapshot, each continues where it stood."""
        self.config = config
        self.group = group = group or Group()
        self.run_dir = run_dir
        self.state = RunState() if snapshot is None else RunState.from_document(snapshot.state)
        self.stopped = ""
        self.result: EvalResult | None = None
        self.learn_seconds = 0.0
        self._world = world
        self._hooks = _list(hooks)
        if console not in get_args(Mode):
            raise UserError(f"console is {short(console)}: {' or '.join(get_args(Mode))}")
        self._eval_env: Any = None
        self._saving = threading.RLock()
        self._saved_step = -1 if snapshot is None else self.state.env_steps
        self._marked_state: dict[str, Any] | None = None
        self._marked_learner: dict[str, torch.Tensor] | None = None
        self._health_before = dict(self.state.health)
        self._session = (self.state.env_steps, self.state.seconds, time.perf_counter())
        self._wish, self._others_health = "", []
        group.take_device(config.device)
        seeds = np.random.SeedSequence(config.seed).generate_state(3)
        folder = own_folder(run_dir, group)
        self.env: Any = make_worlds(
            config,
            world,
            folder,
            verbose=console != "off" and group.leads,
            processes=group.local_size,
        )
        try:
            layouts = self.env.obs_layout, self.env.action_layout
            self._algorithm: Any = algorithm(config.algo)
            policy = self._algorithm.policy(*layouts, config.network, int(seeds[0]), network)
            self.device = choose_device(config, policy, self.env)
            check_memory(config, self.env, policy, self.device)
            group.use_device(self.device)
            self.policy: Any = policy.to(self.device)
            self.config = config = settle(config, self.env, self.policy, group.local_size)
            self._policy_document = describe(self.env, config, custom=network is not None)
            self.learner = self._algorithm.learner(self.policy, config.total_steps, self._hooks)
            group.check_alike(self.env.num_envs, config.algo)
            group.connect(self.learner)
            self.buffer = self._algorithm.buffer(self.env, self.policy, self.device)
            self.replay = self._algorithm.replay(self.env, self.device, config, world)
            self._store = None if self.replay is None else ReplayStore(self.replay)
            noise = torch.Generator(self.device).manual_seed(int(seeds[1]) + group.rank)
            self.shuffle = torch.Generator(self.device).manual_seed(int(seeds[2]) + group.rank)
            # all that may fail comes before the folder is made
            notes, first = start_cloning(self, new=snapshot is None), None
            if snapshot is None:
                notes += self._algorithm.prepare(self)
                first = self.env.reset(seed=self._world_seeds(config.seed))
            self.collector: Any = self._make_collector(noise)
            self.signals = Signals(rescue=self._save_boundary)
            self.logger: Logger | Silent = self._make_logger(console, new=snapshot is None)
            for note in filter(None, notes):
                self.logger.note(note)
            if first is not None:
                self.collector.start(*first)
            elif snapshot is not None:
                self._restore(snapshot)
                if group.leads:  # now that the settings are known to fit what was saved
                    save_config(self.config, run_dir / "config.yaml")
        except BaseException:
            if hasattr(self, "logger"):
                self.logger.close()
            self.env.close()
            raise

    def _make_collector(self, noise: torch.Generator) -> Any:
        parts = (self.env, self.policy, self.buffer, noise)
        if self.env.kind == "remote":
            return self.env.collector(*parts[1:])
        if self.env.kind == "device":
            return DeviceCollector(*parts, guard=self.config.wrappers.nan_guard != "off")
        return HostCollector(*parts)

    def _make_logger(self, console: Mode, new: bool) -> Logger | Silent:
        """Open the run's folder and its files, where this process is the one that writes."""
        if not self.group.leads:
            return Silent()
        if new:
            open_folder(self.run_dir, self.config)
        return Logger(self.run_dir, self.config.total_steps, console)

    def _world_seeds(self, seed: int) -> list[int]:
        """Seeds of this process's slots among those of the whole group."""
        N, group = self.env.num_envs, self.group
        return world_seeds(seed, N * group.size)[group.rank * N : (group.rank + 1) * N]

    def _restore(self, snapshot: Snapshot) -> None:
        self.learner.load_state_dict(snapshot.learner)
        if self._store is not None and snapshot.source is not None:
            self._store.restore(snapshot.source)
        self.logger.resume(self.state.env_steps)
        if self.group.leads:
            set_generator(self.shuffle, snapshot.shuffle)
            cut_lines(self.run_dir / EVALUATIONS, self.state.env_steps)
        if snapshot.worlds and self.group.leads and self.env.kind != "remote":
            obs, info = self.env.restore(snapshot.worlds)
            replayed = info["replayed"]
        else:
            seed = self.config.seed + self.state.env_steps
            obs, info = self.env.reset(seed=self._world_seeds(seed))
            replayed = torch.zeros(self.env.num_envs, dtype=torch.bool)
            self.env.health["unreplayed"] += self.env.num_envs
        self.collector.start(obs, info)
        if self.group.leads:  # what was saved is rank 0's
            self.collector.load_state(snapshot.collector, replayed)
        else:
            for generator in (self.shuffle, self.collector.generator):
                generator.manual_seed(generator.initial_seed() + self.state.env_steps)
        missing = int((~torch.as_tensor(replayed)).sum())
        if missing:
            self.logger.note(
                f"{missing} of {self.env.num_envs} worlds could not be replayed: they start new "
                "episodes, and the run is not bit-equal to an uncut one"
            )

    # ------------------------------------------------------------------ from start to end
    def go(self) -> Run:
        """Train to the end, save, close, and return this run.

        Raises:
            SystemExit: a signal ended the run; it was saved at the last boundary.
        """
        numerics = arithmetic(self.config.torch_threads or 1, self.config.matmul_precision)
        with numerics, self.signals:
            try:
                self._algorithm.learn(self)
            except Interrupted as interrupted:
                self.stopped = str(interrupted)
                self._save_boundary()
                self.logger.note(f"{self.stopped}; rlgym resume {self.run_dir} continues it")
            except torch.OutOfMemoryError:  # others use the device too, or the estimate was low
                self._save_boundary()
                about = (self.config, self.env, self.policy, self.device)
                raise UserError(shortage(*about, free=None)) from None
            except Exception as error:
                self._save_boundary()  # a world that fails for good must not cost the run
                ending = self.signals.received is not None
                if not (ending and isinstance(error, PeerLostError)):  # they had it as well
                    raise
                self.stopped = str(error)
            finally:
                self.close()
        if self.signals.exit_code is not None:
            raise SystemExit(self.signals.exit_code)
        return self

    def close(self) -> None:
        """Close worlds and files; may be called twice."""
        self.logger.close()
        self.env.close()
        if self._eval_env is not None:
            self._eval_env.close()

    def mark(self) -> None:
        """Remember this boundary; cheap, because it is done in each iteration."""
        _, seconds, started = self._session
        self.state.seconds = seconds + time.perf_counter() - started
        self.state.health = self.health
        self.collector.mark()
        self._marked_state = self.state.document()
        self._marked_shuffle = self.shuffle.get_state()
        # a group's update may break off at any time: with the loss of another process
        breaks = self.group.size > 1 and self.group.leads and self.replay is None
        kept = self.learn_seconds > SLOW_UPDATE or breaks
        self._marked_learner = self.learner.state_dict() if kept else None

    @property
    def holds_learner(self) -> bool:
        """True when the boundary includes a copy of the learner, so that an update may be cut."""
        return self._marked_learner is not None

    def stop_if(self, asked: bool) -> None:
        """End the run at the next boundary when a hook asked for it; a group has to agree first."""
        if asked and self.group.size > 1:
            self._wish = "a hook asked for the end"
        elif asked:
            self.stopped = "a hook asked for the end"

    def gather(self, stats: CollectStats) -> CollectStats:
        """Make a rollout's statistics those of all processes, and agree whether to go on."""
        if self.group.size == 1:
            return stats
        limit = self.config.time_limit
        if self.group.leads and limit is not None and self.state.seconds >= limit:
            self._wish = f"the time limit of {limit} s is reached"
        told = {"stats": vars(stats), "wish": self._wish, "health": self.env.health}
        answers = self.group.exchange(told)
        self.stopped = next(filter(None, (answer["wish"] for answer in answers)), "")
        mine = self.group.rank
        self._others_health = [a["health"] for rank, a in enumerate(answers) if rank != mine]
        self.group.pool_rewards(self.env)
        return self.group.merged([answer["stats"] for answer in answers])

    def find_reason_to_stop(self) -> bool:
        """Say in `stopped` whether a limit is reached."""
        config, state = self.config, self.state
        if state.env_steps >= config.total_steps:
            self.stopped = f"all {config.total_steps} steps are done"
        elif self.group.size > 1:  # the clocks differ: `gather` has asked them
            pass
        elif config.time_limit is not None and state.seconds >= config.time_limit:
            self.stopped = f"the time limit of {config.time_limit} s is reached"
        return bool(self.stopped)

    def finish(self) -> None:
        """Evaluate and save the end of the run."""
        if not self.group.leads:
            return
        if self.state.evaluated_at < self.state.env_steps:
            self.evaluate()
        if self.state.saved_at < self.state.env_steps:
            self.save()
        self.call_hooks("on_end")
        score = "" if self.result is None else f", score {self.result.mean:.5g}"
        self.logger.note(f"{self.stopped}{score}; the run is in {self.run_dir}")

    def call_hooks(self, name: str, *values: Any) -> bool:
        """Call a method of every hook that has it; True when one returned True."""
        methods = [getattr(hook, name, None) for hook in self._hooks]
        return any([method(self, *values) is True for method in methods if method is not None])

    # ------------------------------------------------------------------ log
    def log(self, stats: CollectStats, metrics: Mapping[str, Any], learn_seconds: float) -> None:
        """Write the scalars of an iteration, or of several, and show them to the hooks."""
        metrics = self.group.average(metrics)
        if not self.group.leads:
            return
        state = self.state
        begin, seconds, _ = self._session
        here = max(state.seconds - seconds, 1e-9)
        scalars: dict[str, Any] = {}
        if state.returns:
            scalars["rollout/ep_rew_mean"] = sum(state.returns) / len(state.returns)
            scalars["rollout/ep_len_mean"] = sum(state.lengths) / len(state.lengths)
        if state.successes:
            scalars["rollout/success_rate"] = sum(state.successes) / len(state.successes)
        scalars |= metrics
        scalars |= {f"env/{name}": value for name, value in stats.reward_terms.items()}
        scalars |= {
            "time/fps": (state.env_steps - begin) / here,
            "time/iterations": state.updates,
            "time/time_elapsed": state.seconds,
            "time/total_timesteps": state.env_steps,
            "time/episodes": state.episodes,
            "perf/collect": stats.seconds,
            "perf/idle": stats.idle,
            "perf/policy": stats.policy,
            "perf/transfer": stats.transfer,
            "perf/learn": learn_seconds,
            "perf/steps_per_second": stats.env_steps / (stats.seconds + learn_seconds),
            "perf/learner_idle": stats.idle / (stats.seconds + learn_seconds),
        }
        if not math.isnan(stats.busy):
            scalars["perf/worker_idle"] = 1.0 - stats.busy / stats.seconds
        scalars |= self.env.unwrapped.scalars()  # type: ignore[attr-defined]
        scalars |= {f"health/{name}": count for name, count in self.health.items()}
        scalars = self.logger.write(scalars, state.env_steps)
        self.stop_if(self.call_hooks("on_update", scalars))

    @property
    def health(self) -> dict[str, int]:
        """Counts of what went wrong and was survived, since the run began."""
        counts = (self._health_before, *self._others_health)
        return {n: c + sum(h.get(n, 0) for h in counts) for n, c in self.env.health.items()}

    # ------------------------------------------------------------------ evaluate
    def evaluation_due(self) -> bool:
        """Whether `eval.every` steps have passed."""
        return self.group.leads and _passed(
            self.config.eval.every, self.state.evaluated_at, self.state.env_steps
        )

    def evaluate(self) -> EvalResult:
        """Score the policy on worlds of its own; keep it when it is the best so far."""
        config, state = self.config, self.state
        only_one = config.env_id == EDITOR
        if self._eval_env is None and only_one:
            self._eval_env = self.env
        elif self._eval_env is None:
            self._eval_env = make_worlds(config, self._world, self.run_dir, evaluation=True)
        with self.signals.interruptible():
            result = evaluate(
                self.policy,
                self._eval_env,
                config.eval.episodes,
                deterministic=config.eval.deterministic,
                seed=config.eval.seed,
            )
        if only_one:
            self.collector.start(*self.env.reset())
        self.result = result
        state.evaluated_at, state.score = state.env_steps, result.mean
        self.logger.write(result.metrics(), state.env_steps)
        self._append_evaluation(result)
        self.call_hooks("on_evaluation", result.mean)
        marked = self._marked_state
        if marked is not None and marked["env_steps"] == state.env_steps:  # no hook's own call
            marked |= {"evaluated_at": state.evaluated_at, "score": state.score}
            self._saved_step = -1  # who resumes at what is saved here would evaluate again
        if config.eval.every:
            self._offer(result.mean)
        return result

    def _append_evaluation(self, result: EvalResult) -> None:
        line = {"step": self.state.env_steps, "time": round(time.time(), 3), **result.document()}
        try:
            with open(self.run_dir / EVALUATIONS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self.logger.note(f"warning: {EVALUATIONS} was not written: {error.strerror or error}")

    def _offer(self, score: float) -> None:
        """Save this boundary as the best when its score is."""
        if self._beats(score):
            self.save(is_best=True)

    def _beats(self, score: float) -> bool:
        """Take the score as the best when it is; a score that is not a number never is."""
        best = self.state.best_score
        better = math.isfinite(score) and (best is None or score > best)
        if better:
            self.state.best_score = score
        return better

    # ------------------------------------------------------------------ save
    def save_due(self) -> bool:
        """Whether `checkpoint.every` steps have passed, or saving would soon take long."""
        if not self.group.leads:
            return False
        now, before = self.state.env_steps, self.state.saved_at
        if _passed(self.config.checkpoint.every, before, now):
            return True
        # not at each step, where a full disk refuses
        full = self.replay is not None and self.replay.unsaved_bytes > UNSAVED_BYTES
        return full and _passed(RETRY_STEPS, before, now)

    def save(self, is_best: bool = False) -> None:
        """Save this boundary. A disk that refuses is reported; the next save tries again."""
        state = self.state
        state.saved_at = state.env_steps
        if not self.config.eval.every and state.returns:  # no evaluations: training returns decide
            is_best = self._beats(sum(state.returns) / len(state.returns))
        self._marked_state = marked = state.document()
        with self._saving:
            self._write(marked, self.env.snapshot(at_mark=True), is_best)

    def _save_boundary(self) -> None:
        """Save the last boundary from wherever the run stands now, if it can still be described."""
        marked = self._marked_state
        with self._saving:
            if marked is None or marked["env_steps"] == self._saved_step or not self.group.leads:
                return
            learned = (self.state.updates, self.state.owed) != (marked["updates"], marked["owed"])
            stepped = self.state.env_steps != marked["env_steps"]
            if learned or (stepped and not self.holds_learner):
                return  # an update broke off half way: the checkpoint before stays the newest
            marked["saved_at"] = marked["env_steps"]
            try:
                worlds = self.env.snapshot(at_mark=True, timeout=SNAPSHOT_SECONDS)
            except Exception as error:
                worlds = {}
                self.logger.note(f"the worlds' state could not be saved: {error}")
            self._write(marked, worlds, is_best=False)

    def _write(self, marked: dict[str, Any], worlds: dict[str, np.ndarray], is_best: bool) -> None:
        step = marked["env_steps"]
        snapshot = Snapshot(
            state=marked,
            learner=self._marked_learner or self.learner.state_dict(),
            collector=self.collector.state(),
            shuffle=self._marked_shuffle,
            worlds=worlds,
            policy=self._policy_document,
        )
        tensors, documents = snapshot.to_files()
        links, rows = ({}, {}) if self._store is None else self._store.segments()
        keep = self.config.checkpoint.keep
        try:
            saved = checkpoints.save(self.run_dir, step, tensors | rows, documents, keep, links)
            self._saved_step = step
            if self._store is not None:
                self._store.saved(saved)
            if is_best and self.state.best_score is not None:
                checkpoints.mark_best(saved, self.state.best_score)
        except CheckpointError as error:
            self.logger.note(f"warning: {error}; training goes on and tries again")


def _list(hooks: Any) -> list[Any]:
    if hooks is None:
        return []
    given = list(hooks) if isinstance(hooks, list | tuple) else [hooks]
    for hook in given:
        if isinstance(hook, type) or not any(hasattr(hook, name) for name in HOOKS):
            raise UserError(f"{short(hook)} is no hook: give an object with {' or '.join(HOOKS)}")
    return given


def _passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` lies after `before` and up to `now`; never when 0."""
    return every > 0 and now // every > before // every
