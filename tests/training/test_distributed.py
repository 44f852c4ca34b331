"""Several processes, one policy: equal to one process on all rows; nothing lost with a process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlgym
from rlgym.errors import ConfigError, DeviceError, MissingExtraError
from rlgym.rollout.collector import CollectStats
from rlgym.training import checkpoint as checkpoints
from rlgym.training import distributed
from rlgym.training.distributed import Group
from rlgym.training.worlds import world_seeds
from tests.training.runs import scalars

ROOT = Path(rlgym.__file__).resolve().parent.parent


def start(module, *words, size=2):
    """Processes of one group, as torchrun would start them, without waiting for its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes, timeout=100.0):
    """(status, standard output, standard error) of each."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, said, strict=True)]


def test_learning_together_equals_learning_alone_from_all_rows():
    first, second = finish(start("tests.training.group_proof"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    found = json.loads(first[1])
    assert len(found) == 6
    assert max(found.values()) <= 1e-6, found


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_processes_end_with_one_policy_and_one_run(tmp_path, algo):
    folder = tmp_path / "run"
    ended = finish(start("tests.training.group_run", folder, algo))
    assert [status for status, _, _ in ended] == [0, 0], ended
    first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in ended)
    assert first["digest"] == second["digest"]
    assert first["rewards"] == second["rewards"]
    assert first["steps"] == second["steps"] >= 2400
    assert first["rows"] + second["rows"] == first["steps"]
    assert first["episodes"] == second["episodes"] > 0
    assert first["first"] != second["first"]
    assert first["score"] is not None and second["score"] is None
    assert scalars(folder)[-1]["step"] > 0
    assert not list(folder.glob("process-*"))  # nothing went wrong in a world
    assert rlgym.load_policy(folder).step > 0

    again = finish(start("tests.training.group_run", folder, algo, "--resume"))
    assert [status for status, _, _ in again] == [0, 0], again
    first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in again)
    assert first["digest"] == second["digest"] and first["steps"] >= 3600


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_process_stops_the_others_with_one_error_and_leaves_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    ended = finish(start("tests.training.group_run", folder, "ppo", "--die-at", 1300))
    (status, out, err), (killed, _, _) = ended
    assert killed == -9 and status == 1 and not out
    errors = [line for line in err.splitlines() if "Error: " in line]
    assert len(errors) == 1 and "one of the 2 processes" in errors[0], err
    assert "rlgym resume" in errors[0]
    saved = checkpoints.newest(folder)
    # the iteration before the one in which it died; they are of 2 x 96 steps
    assert saved is not None and 1100 <= saved.step < 1500 and saved.step % 192 == 0
    again = finish(start("tests.training.group_run", folder, "ppo", "--resume"))
    assert [status for status, _, _ in again] == [0, 0], again


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_end_that_one_process_asks_for_ends_all(tmp_path):
    ended = finish(start("tests.training.group_run", tmp_path / "run", "sac", "--stop-at", 1000))
    told = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]
    assert [one["stopped"] for one in told] == ["a hook asked for the end"] * 2
    assert 1000 <= told[0]["steps"] == told[1]["steps"] < 1200


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_torchrun_trains_from_the_command_line(tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rlgym"]
    train = ["train", "CartPole-v1", "--run-dir", str(tmp_path / "run"), "--total-steps", "5000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words, *train],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all 5000 steps are done") >= 1
    assert done.stderr.count("using the preset") == 1
    wrong = subprocess.run(
        [sys.executable, *words, *train],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert wrong.returncode != 0
    assert wrong.stderr.count("holds a run already") == 1, wrong.stderr


def test_world_seeds_of_a_process_are_its_slots_of_the_whole():
    whole = world_seeds(7, 12)
    assert world_seeds(7, 4) == whole[:4]
    assert len(set(whole)) == 12


def test_alone_nothing_is_exchanged():
    group = Group()
    tensor = torch.arange(3.0)
    assert group.mean(tensor) is tensor
    assert group.exchange({"a": 1}) == [{"a": 1}]
    assert group.average({"a": 1.0}) == {"a": 1.0}
    with distributed.joined() as found:
        assert found.size == 1 and found.leads


def test_rollouts_are_added_up_and_their_seconds_averaged():
    one = CollectStats([1.0], [3], [], 10, 2.0, 1.0, term_sums={"a": (1.0, 10)})
    two = CollectStats([2.0, 5.0], [4, 6], [1.0], 12, 4.0, 1.0, term_sums={"a": (2.0, 12)})
    told = [json.loads(json.dumps(vars(stats))) for stats in (one, two)]
    merged = Group(0, 2).merged(told)
    assert merged.returns == [1.0, 2.0, 5.0] and merged.lengths == [3, 4, 6]
    assert merged.successes == [1.0] and merged.env_steps == 22
    assert merged.seconds == 3.0 and merged.idle == 1.0
    assert merged.reward_terms == {"a": pytest.approx(3.0 / 22)}


def test_a_process_needs_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed, "available", lambda: ["cuda:0", "cpu"])
    group = Group(0, 2, 0, 2)
    with pytest.raises(DeviceError, match="nproc-per-node 1"):
        group.use_device(torch.device("cuda"))
    with pytest.raises(DeviceError, match="--device cuda"):
        group.take_device("cuda:0")
    Group().use_device(torch.device("cuda"))  # alone: nothing to share
    group.use_device(torch.device("cpu"))


def test_processes_that_differ_are_refused(monkeypatch):
    group = Group(0, 2)
    monkeypatch.setattr(group, "exchange", lambda ours: [ours, {**ours, "num_envs": 8}])
    with pytest.raises(ConfigError, match="num_envs is 4 in process 0 and 8 in process 1"):
        group.check_alike(4, rlgym.config.PPOConfig())


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "rlgym.rollout.ray", raising=False)
    with pytest.raises(MissingExtraError, match=r"rlgym-lab\[ray\]"):
        rlgym.train("CartPole-v1", run_dir=tmp_path, collect={"ray": "local"}, console="off")
