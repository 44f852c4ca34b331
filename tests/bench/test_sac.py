"""The SAC benchmarks: the matrix products by hand, the clock that stands still, both sides."""

import json

import numpy as np
import pytest
import torch

from rlgym import bench
from rlgym.bench import sac, sac_pendulum
from rlgym.bench.baselines import make_sb3, settings_of, settings_of_preset
from rlgym.bench.sac import Product, matmul_limit, products
from rlgym.bench.sac_pendulum import THRESHOLD, Watch, mean_return


def test_products_of_an_update_by_hand():
    # HalfCheetah: 17 numbers, 6 actions. Terms per row of a batch, two layers of 256:
    actor = 17 * 256 + 256 * 256 + 256 * 12
    critic = 23 * 256 + 256 * 256 + 256 * 1
    through = 256 * 256 + 256 * 1  # a backward pass that stops before the first layer
    per_row = (
        2 * actor  # the actor on observations and next observations
        + 3 * 2 * critic  # two critics: target, loss, the actor's actions
        + 2 * critic  # critics' weights
        + 2 * through  # critics' hidden layers
        + 2 * (through + 6 * 256)  # and again down to the actions
        + actor  # actor's weights
        + 256 * 256 + 256 * 12  # actor's hidden layers
    )  # fmt: skip
    flop = sum(product.flop for product in products(17, 6))
    assert flop == 2 * 256 * per_row
    assert flop == pytest.approx(0.58e9, rel=0.02)


@pytest.mark.parametrize("product", [Product(2, 3, 4, 5), Product(1, 6, 2, 1, "left")])
def test_a_product_is_timed_with_its_own_shapes(product, monkeypatch):
    called = []
    monkeypatch.setattr(sac, "_seconds_per_pass", lambda calls, _: called.append(calls[0]) or 1.0)
    shapes = []
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, lambda a, b, out: shapes.append((a.shape, b.shape)))
    sac._faster_form(product)
    for call in called:
        call()
    left, right = (product.rows, product.inner), (product.inner, product.columns)
    batched = ((product.count, *left), (product.count, *right))
    assert shapes == [batched, *[(left, right)] * product.count]


def test_the_limit_is_consistent():
    threads = torch.get_num_threads()
    try:
        found = matmul_limit(world="Pendulum-v1", threads=1, seconds=0.05)
    finally:
        torch.set_num_threads(threads)
    assert found["gflops"] == pytest.approx(found["gflop"] * found["rate"])
    assert 1.0 < found["rate"] < 1e5


def test_evaluation_starts_from_the_same_states_and_counts_every_reward():
    seen = []

    def act(obs: np.ndarray) -> np.ndarray:
        seen.append(obs)
        return np.zeros((len(obs), 1), np.float32)

    first = mean_return(act, 2)
    starts = seen[0].copy()
    assert (len(seen), seen[0].shape) == (200, (2, 3))
    # a pendulum that hangs free costs at most pi^2 + 0.1 * 8^2 a step, and it never stays upright
    assert -200 * (np.pi**2 + 6.4) < first < -200.0
    seen.clear()
    assert mean_return(act, 2) == first
    np.testing.assert_array_equal(seen[0], starts)


def test_the_clock_stands_still_during_evaluations(monkeypatch):
    now = [0.0]
    scores = iter([-900.0, -181.0, THRESHOLD, -150.0])

    def play(act, episodes):
        now[0] += 100.0
        return next(scores)

    monkeypatch.setattr(sac_pendulum.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sac_pendulum, "mean_return", play)
    watch = Watch(every=10, episodes=3, limit=60.0)
    for steps in range(4, 80, 4):  # passes 10, 20, 30, ... without meeting them
        now[0] += 1.0
        watch.look(steps, lambda obs: obs)
    outcome = watch.outcome()
    assert outcome["curve"] == [(3.0, -900.0), (5.0, -181.0), (8.0, -180.0)]
    assert (outcome["seconds"], outcome["reached"], outcome["steps"]) == (8.0, True, 32)
    assert watch.over


def test_a_run_that_takes_too_long_counts_as_the_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sac_pendulum.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sac_pendulum, "mean_return", lambda act, episodes: -1.0)
    watch = Watch(every=10, episodes=3, limit=60.0)
    now[0] = 61.0
    assert watch.over
    watch.look(10, lambda obs: obs)
    assert watch.outcome() == {"seconds": 60.0, "reached": False, "steps": 0, "curve": []}


def test_sb3_gets_the_zoo_settings_of_sac():
    model = make_sb3("Pendulum-v1", seed=0, algo="sac")
    try:
        assert model.learning_rate == 1e-3
        assert (model.batch_size, model.learning_starts) == (256, 100)
    finally:
        model.env.close()
    assert settings_of("pybullet_envs_gymnasium:HopperBulletEnv-v0", "sac").algo["tau"] == 0.02


def test_sb3_gets_the_settings_of_our_preset():
    settings = settings_of_preset("cartpole-ppo")
    model = make_sb3("CartPole-v1", seed=0, settings=settings)
    try:
        assert (model.n_steps, model.n_envs, model.batch_size, model.n_epochs) == (64, 16, 128, 3)
        # learning rate and clip range fall to zero; half of the run remains
        assert (model.lr_schedule(0.5), model.clip_range(0.5)) == (1.5e-3, 0.1)
        assert isinstance(model.policy.mlp_extractor.policy_net[1], torch.nn.ReLU)
        model.env.reset()
        _, rewards, _, _ = model.env.step(np.zeros(16, np.int64))
        np.testing.assert_allclose(rewards, 0.1)
    finally:
        model.env.close()
    with pytest.raises(ValueError, match="pendulum-ppo"):
        settings_of_preset("pendulum-ppo")


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_sac_from_end_to_end(capsys):
    assert bench.run(["sac", "--quick", "--json"]) == 1
    case = last_line(capsys)["cases"][0]
    assert case["name"] == "Pendulum-v1, 1 thread"
    assert case["ratio"] == pytest.approx(case["value"] / case["baseline"])
    parts = case["details"]["milliseconds"]
    assert set(parts) == {*sac.PARTS, "everything else", "all"}
    assert all(parts[name] > 0.0 for name in parts)
    assert parts["all"] == pytest.approx(1e3 / case["value"])
    assert case["details"]["share_of_limit"] < 1.0


@pytest.mark.slow
def test_sac_pendulum_from_end_to_end(capsys):
    assert bench.run(["sac-pendulum", "--quick", "--json"]) == 1
    case = last_line(capsys)["cases"][0]
    ours, theirs = case["details"]["ours"][0], case["details"]["sb3"][0]
    assert len(ours["curve"]) == len(theirs["curve"]) == 4
    assert case["values"] == [600.0]  # 1,000 steps are not enough: the limit counts
    assert case["conditions"] == {"each of our runs gets there": False}
