import torch

from rlgym.agents import normalize
from rlgym.agents.normalize import RunningMeanStd


def test_batches_merge_to_the_statistics_of_everything():
    data = 1000.0 + 3.0 * torch.randn(500, 4, dtype=torch.float64)
    norm = RunningMeanStd((4,))
    for batch in data.split([1, 99, 250, 150]):
        norm.update(batch)
    torch.testing.assert_close(norm.mean, data.mean(0))
    torch.testing.assert_close(norm.var, data.var(0, unbiased=False))
    assert norm.count == 500


def test_rows_without_weight_do_not_count():
    data = torch.randn(6, 5, 3)
    weights = torch.rand(6, 5) < 0.5
    norm, other = RunningMeanStd((3,)), RunningMeanStd((3,))
    spoiled = torch.where(weights.unsqueeze(-1), data, 1e6)
    norm.update(spoiled, weights)
    other.update(data[weights])
    torch.testing.assert_close(norm.mean, other.mean)
    torch.testing.assert_close(norm.var, other.var)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.update(spoiled, torch.zeros(6, 5))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_large_counts_still_learn():
    norm = RunningMeanStd(())
    norm.count.fill_(1e9)
    norm.update(torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(norm.mean, torch.tensor(2.0 / (1e9 + 2), dtype=torch.float64))


def test_normalize_centres_scales_and_clips():
    norm = RunningMeanStd((1,), clip=2.0)
    x = torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(norm.normalize(x), torch.tensor([[1.0], [2.0]]))  # nothing seen yet
    norm.update(torch.tensor([[1.0], [5.0]]))  # mean 3, std 2
    torch.testing.assert_close(norm.normalize(x), torch.tensor([[-1.0], [0.0]]))
    torch.testing.assert_close(norm.normalize(torch.tensor([[99.0]])), torch.tensor([[2.0]]))
    torch.testing.assert_close(norm.rescale(x), torch.tensor([[0.5], [1.5]]))


def test_a_constant_input_stays_finite():
    norm = RunningMeanStd((2,))
    norm.update(torch.full((10, 2), 7.0))
    assert torch.isfinite(norm.normalize(torch.full((1, 2), 7.0))).all()


def test_accumulators_stay_behind_where_a_device_has_no_float64(monkeypatch):
    data = 1e4 + torch.randn(50, 3)
    plain, moved = RunningMeanStd((3,)), RunningMeanStd((3,))
    monkeypatch.setattr(normalize, "has_float64", lambda device: device.type == "cpu")
    moved.to("meta")  # stands for such a device: it takes copies, and gives none back
    for norm in (plain, moved):
        norm.update(data)
    for name in ("mean", "var", "count"):
        here = getattr(moved, name)
        assert (here.device.type, here.dtype) == ("cpu", torch.float64)
        assert torch.equal(here, getattr(plain, name))
    assert moved.shift.is_meta
    assert moved.scale.is_meta
    assert [*moved.state_dict()] == [*plain.state_dict()]


def test_accumulators_move_along_where_a_device_has_float64():
    norm = RunningMeanStd((3,)).to("meta")
    assert all(buffer.is_meta for buffer in norm.buffers())
    assert norm.mean.dtype == torch.float64
