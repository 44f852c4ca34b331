"""Drawing in proportion: frequencies, importance weights and sums against plain arithmetic."""

import numpy as np
import pytest
import torch

from rlgym.errors import CheckpointError
from rlgym.rollout.priorities import FLOOR, WIDTH, Priorities, Prioritized

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(weights, exponent=1.0, importance=1.0):
    tree = Priorities(len(weights), CPU, Prioritized(exponent, importance))
    tree.put(torch.arange(len(weights)), torch.tensor(weights))
    return tree


@pytest.mark.parametrize("size", [1, WIDTH, WIDTH + 1, 5000])
def test_rows_are_drawn_as_often_as_their_weights_say(size):
    rng = np.random.default_rng(0)
    weights = (rng.random(size) * (rng.random(size) < 0.5)).astype(np.float32)
    weights[0] = 0.5
    tree = build(weights.tolist())
    counts = np.zeros(size)
    for seed in range(50):
        rows, _ = tree.draw(2000, seeded(seed))
        counts += np.bincount(rows.numpy(), minlength=size)
    assert (counts[weights == 0] == 0).all()
    expected = 100_000 * weights / weights.sum()
    drawn = expected > 0
    chi = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert chi < drawn.sum() + 5 * np.sqrt(2 * drawn.sum())


def test_the_root_is_cut_into_equal_shares():
    # weights 1, 1, 2: of four draws the first is row 0, the second row 1, the others row 2
    for seed in range(20):
        rows, _ = build([1.0, 1.0, 2.0]).draw(4, seeded(seed))
        assert rows.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("batch_size", [4, 50, 100, 800])
def test_the_largest_number_that_can_be_drawn_falls_on_a_row(monkeypatch, batch_size):
    # 1 - 2^-24, the largest below 1 in float32, in the last of 50 shares is 1 after rounding
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(*shape, 1.0 - 2.0**-24))
    rows, weights = build([1.0] * 5000).draw(batch_size, seeded())
    assert rows[-1] == 4999 and (rows < 5000).all() and torch.isfinite(weights).all()


def test_importance_weights_by_hand():
    # P = 1/4, 1/4, 1/2 of three rows: (3 P)^-beta = (4/3)^beta, (4/3)^beta, (2/3)^beta; the largest
    # becomes 1, so the last is 2^-beta
    for beta in (0.0, 0.5, 1.0):
        rows, weights = build([1.0, 1.0, 2.0], importance=beta).draw(4, seeded())
        assert weights.tolist() == pytest.approx([1, 1, 2**-beta, 2**-beta])
        assert rows.tolist() == [0, 1, 2, 2]


def test_new_errors_become_weights_and_the_largest_is_remembered():
    tree = build([1.0, 1.0, 0.0, 1.0], exponent=0.5)
    tree.update(torch.tensor([0, 2, 3]), torch.tensor([-4.0, 9.0, float("nan")]))
    found = tree.state()["priorities"].tolist()
    # row 2 holds nothing and keeps 0; what is not finite counts as 0
    assert found == pytest.approx([(4 + FLOOR) ** 0.5, 1, 0, FLOOR**0.5])
    assert tree.highest.item() == pytest.approx(3)
    tree.fresh(torch.tensor([1, 2, 3]), torch.tensor([True, True, False]))
    assert tree.state()["priorities"].tolist() == pytest.approx([(4 + FLOOR) ** 0.5, 3, 3, 0])


def test_a_million_rows_stay_summed_exactly():
    """After many changes each node is still the sum of its children, bit for bit."""
    size = 1_000_000
    tree = Priorities(size, CPU, Prioritized())
    generator = seeded()
    tree.put(torch.arange(size), torch.rand(size, generator=generator))
    for _ in range(30):
        rows = torch.randint(size, (256,), generator=generator)
        tree.update(rows, torch.randn(256, generator=generator)[rows % 256])  # equal where twice
    other = Priorities(size, CPU, Prioritized())
    other.load_state({name: value.clone() for name, value in tree.state().items()})
    for one, two in zip(tree.levels, other.levels, strict=True):
        assert torch.equal(one, two)
    assert len(tree.levels) == 4
    rows, weights = tree.draw(4096, seeded())
    assert (rows >= 0).all() and (rows < size).all() and torch.isfinite(weights).all()
    assert ((rows // WIDTH**3).diff() >= 0).all()  # the root's shares are in order


def test_another_number_of_rows_is_refused():
    with pytest.raises(CheckpointError, match=r"shape \[3\], this buffer has 4 rows"):
        build([1.0] * 4).load_state(build([1.0] * 3).state())
