"""Whole runs on an accelerator, a pretended one where there is none: all is on its own device."""

import numpy as np
import pytest
import torch

import rlgym
from tests import pretend, tape
from tests.training.runs import scalars

TOY = "rlgym.envs.toy:rlgym/"
PPO = {"name": "ppo", "num_steps": 8, "minibatch_size": 16, "epochs": 2}
SAC = {"name": "sac", "num_steps": 2, "learning_starts": 24, "batch_size": 16, "actor_every": 3}
NORMAL = {"normalize_obs": True}
RUNS = {
    "ppo of tensor worlds": ("CartPole-v1", "device", PPO, {}),
    "ppo, torques": ("Pendulum-v1", "device", PPO, NORMAL),
    "ppo of host worlds": (f"{TOY}IdentityBox-v0", "sync", PPO, NORMAL),
    "ppo, memory": (f"{TOY}Memory-v0", "sync", PPO, {"recurrent": "gru", "recurrent_size": 4}),
    "ppo, masks": (f"{TOY}MaskedMulti-v0", "sync", PPO, {}),
    "ppo, mixed actions": (f"{TOY}Mixed-v0", "sync", PPO, {"squash": True}),
    "ppo, noise of states": (f"{TOY}IdentityBox-v0", "sync", PPO, {"std": "gsde"}),
    "ppo, images": (f"{TOY}Dot-v0", "sync", PPO, {}),
    "ppo, privileged": (f"{TOY}Privileged-v0", "sync", PPO, NORMAL),
    "ppo, kl": (
        f"{TOY}DictObs-v0",
        "sync",
        {**PPO, "target_kl": 0.02, "learning_rate_schedule": "kl"},
        {},
    ),
    "sac of tensor worlds": ("Pendulum-v1", "device", SAC, NORMAL),
    "sac of host worlds": (f"{TOY}IdentityBox-v0", "sync", SAC, NORMAL),
    "sac, choices": (f"{TOY}IdentityDiscrete-v0", "sync", SAC, {}),
    "sac, mixed actions": (f"{TOY}Mixed-v0", "sync", {**SAC, "n_step": 3}, {}),
    "sac, priorities": (f"{TOY}IdentityBox-v0", "sync", {**SAC, "prioritized": True}, {}),
    "sac, overlapped": (f"{TOY}IdentityBox-v0", "sync", {**SAC, "overlap": True}, {}),
    "sac, noise of states": (f"{TOY}IdentityBox-v0", "sync", SAC, {"std": "gsde"}),
    "sac, images": (f"{TOY}Dot-v0", "sync", SAC, {}),
}


def run_twice(case, where, device="cuda"):
    """Train, score, save; then go on from what was saved."""
    world, backend, algo, network = RUNS[case]
    rlgym.train(
        world,
        run_dir=where,
        preset=None,
        console="off",
        device=device,
        backend=backend,
        num_envs=4,
        total_steps=160,
        algo=algo,
        network={"hidden": (8,), **network},
        eval={"every": 64, "episodes": 1},
        checkpoint={"every": 64},
    )
    rlgym.resume(where, total_steps=320, console="off")
    lines = scalars(where, but=("time",))
    assert lines[-1]["step"] >= 320
    updates = [line["train/n_updates"] for line in lines if "train/n_updates" in line]
    assert updates[-1] > updates[0] > 0
    return rlgym.load_policy(where)


QUICK = ("ppo of tensor worlds", "ppo of host worlds", "ppo, memory", "sac of host worlds")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in RUNS]
)
def test_everything_is_where_it_should_be(tmp_path, case, monkeypatch, capfd):
    recorded = tape.with_graphs(monkeypatch)
    with pretend.accelerator():
        run_twice(case, tmp_path / "run")
    assert len(recorded) >= 2  # an update before the cut, and one after it
    assert "is not a graph" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if "torques" in case else pytest.mark.slow) for case in RUNS],
)
def test_a_run_needs_no_double_precision(tmp_path, case):
    with pretend.accelerator("mps"):
        run_twice(case, tmp_path / "run", "mps")


@pytest.mark.gpu
@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_an_accelerator_logs_saves_and_goes_on(tmp_path, case, capfd):
    """Never run yet: no GPU was at hand when this was written."""
    assert run_twice(case, tmp_path / "run").policy.device.type == "cpu"
    assert "is not a graph" not in capfd.readouterr().err


def device_of(shape=(2,)):
    return torch.ones(shape, device="cuda")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: device_of() + torch.ones(2),
        lambda: torch.stack((device_of(()), torch.ones(()))),
        lambda: torch.zeros(()).add_(device_of(())),
        lambda: torch.ones(2)[device_of().long()],
        lambda: device_of().numpy(),
        lambda: np.asarray(device_of()),
        lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        lambda: device_of().normal_(generator=torch.Generator()),
        lambda: torch.rand(2, generator=torch.Generator("cuda")),
        lambda: torch.ones(2, device="mps").to(torch.float64),
        lambda: (device_of().requires_grad_() * 2).sum() * torch.ones(2),
    ],
)
def test_the_check_can_fail(wrong):
    said = "two devices|numpy|generator|float64"
    with (
        pretend.accelerator(),
        pytest.raises((RuntimeError, TypeError, AssertionError), match=said),
    ):
        wrong()


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: torch.ones(2).to("cuda"),
        lambda x: torch.as_tensor(torch.ones(2), device="cuda"),
        lambda x: torch.tensor([1.0], device="cuda"),
    ],
)
def test_nothing_crosses_while_a_graph_is_recorded(copy):
    with pretend.accelerator():
        x = device_of()
        copy(x)
        with pytest.raises(RuntimeError, match=r"captur(e|ing)"):
            tape.record(lambda: copy(x), x.device)


def test_what_an_accelerator_allows_is_allowed():
    with pretend.accelerator():
        x = device_of().requires_grad_()
        (torch.tensor(2.0) * x).sum().backward()
        assert x.grad is not None and x.grad.device == x.device == torch.device("cuda:0")
        assert x.detach().cpu().numpy().tolist() == [1.0, 1.0] == x.tolist()
        assert torch.ones(2).copy_(x.detach()).device.type == "cpu"
        assert x[torch.tensor([0])].is_cuda and torch.zeros_like(x).is_cuda
        assert x.to("cpu").to("cuda", torch.float64).dtype == torch.float64
