"""Worlds that a learner which works solves in seconds."""

import pytest

from tests.training.runs import train

TOY = "rlgym.envs.toy:rlgym/"
QUICK = {
    "algo": {
        "num_steps": 64,
        "minibatch_size": 128,
        "epochs": 5,
        "learning_rate": 3e-3,
        "gae_lambda": 0.9,
        "gamma": 0.5,
    },
    "num_envs": 8,
    "backend": "sync",
    "eval": {"every": 0, "episodes": 20},
    "network": {"hidden": (32, 32)},
}


class Above:
    def __init__(self, score):
        self.score = score

    def on_update(self, run, metrics):
        return metrics.get("rollout/ep_rew_mean", 0.0) >= self.score


@pytest.mark.parametrize(
    "kind",
    [
        "IdentityDiscrete",
        "IdentityBox",
        pytest.param("IdentityMultiDiscrete", marks=pytest.mark.slow),
        pytest.param("IdentityMultiBinary", marks=pytest.mark.slow),
    ],
)
def test_identity_is_solved(kind, tmp_path):
    run = train(f"{TOY}{kind}-v0", tmp_path, Above(18.0), total_steps=20_000, **QUICK)
    assert run.result.mean > 18.0, run.result


def test_truncation_is_not_mistaken_for_an_end(tmp_path):
    algo = {**QUICK["algo"], "gamma": 0.9}
    run = train(f"{TOY}TruncationTrap-v0", tmp_path, total_steps=8_000, **{**QUICK, "algo": algo})
    value = run.policy.values(run.buffer.obs[0, :1])
    # every step pays 1: 1 / (1 - 0.9) = 10; 3.6 would be the value if a cut were an end
    assert value.item() == pytest.approx(10.0, abs=1.0)


def test_cartpole_reaches_195(tmp_path):
    import rlgym

    run = rlgym.train(
        "CartPole-v1",
        run_dir=tmp_path,
        console="off",
        backend="sync",
        total_steps=60_000,
        hooks=Above(195.0),
        eval={"every": 0},
    )
    assert "hook" in run.stopped, run.state.returns
    assert run.result.mean >= 195
