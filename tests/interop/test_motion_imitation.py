"""Policies of the original motion_imitation, from files made here in its format."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rlgym.errors import CheckpointError, SpaceError
from rlgym.interop.motion_imitation import load_policy
from tests.interop.sb2_files import parameters, save


def test_the_action_is_the_mean_of_two_relu_layers_and_a_linear_one(tmp_path: Path) -> None:
    arrays = parameters()
    policy = load_policy(save(tmp_path / "pace.zip", arrays))
    obs = np.random.default_rng(1).normal(size=(7, 160)).astype(np.float32)

    hidden = obs
    for layer in ("pi_fc0", "pi_fc1"):
        hidden = np.maximum(hidden @ arrays[f"model/{layer}/w:0"] + arrays[f"model/{layer}/b:0"], 0)
    expected = hidden @ arrays["model/pi/w:0"] + arrays["model/pi/b:0"]

    np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)
    np.testing.assert_allclose(policy.act(obs[3]), expected[3], atol=1e-5)


def test_actions_are_clipped_to_two_pi_and_samples_have_the_fixed_deviation(tmp_path: Path) -> None:
    arrays = parameters()
    arrays["model/pi/b:0"][0] = 100.0
    policy = load_policy(save(tmp_path / "pace.zip", arrays))
    obs = np.zeros((4000, 160), np.float32)

    mean, sample = policy.act(obs), policy.act(obs, deterministic=False)

    assert mean[0, 0] == np.float32(6.28318548203)
    assert np.std(sample[:, 1] - mean[:, 1]) == pytest.approx(0.125, rel=0.05)


def test_an_observation_of_another_width_is_refused(tmp_path: Path) -> None:
    policy = load_policy(save(tmp_path / "pace.zip", parameters()))
    with pytest.raises(SpaceError, match="160"):
        policy.act(np.zeros(104))


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in parameters().items() if key != name}


def swapped(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return parameters() | {name: value}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("model/pi_fc1/b:0"), "no parameter model/pi_fc1/b:0"),
        (swapped("model/pi/b:0", np.full(12, np.nan, np.float32)), "NaN"),
        (swapped("model/pi/b:0", np.zeros(12)), "float64"),
        (swapped("model/pi/b:0", np.array([{}], object)), "object"),
        (swapped("model/pi/w:0", np.zeros((256, 8), np.float32)), "make no layer"),
        (swapped("model/pi_fc0/w:0", np.zeros((84, 512), np.float32)), "84"),
    ],
)
def test_a_file_with_other_arrays_is_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_policy(save(tmp_path / "bad.zip", arrays))
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("model/pi/b:0.npy", header.getvalue() + bytes(48))
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("parameters", inner.getvalue())
    with pytest.raises(CheckpointError, match="claims"):
        load_policy(path)


def test_what_is_no_such_file_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sdist"):
        load_policy(tmp_path / "absent.zip")
    (tmp_path / "text.zip").write_text("a text")
    with pytest.raises(CheckpointError, match="not a zip"):
        load_policy(tmp_path / "text.zip")
    with pytest.raises(CheckpointError, match="Stable-Baselines 2"):
        load_policy(save(tmp_path / "sb3.zip", parameters(), name="policy.pth"))
