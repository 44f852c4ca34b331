"""The C that is written compiles without a warning and computes what the graph means."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from rlgym.deploy import graph as g
from rlgym.deploy.reference import run
from rlgym.errors import UserError
from rlgym.export.c99 import pack_actions, pack_inputs, write_c99
from rlgym.export.read import read_policy
from tests.export.policies import KINDS, make_policy, observations
from tests.export.test_graph import arrays_of

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here")

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
SEEING = ("nested", "nature", "sac-mixed")
VECTORS = [kind for kind in KINDS if kind not in SEEING]
ROWS = 50


def compile_library(folder, name: str, *flags: str) -> ctypes.CDLL:
    library = folder / f"{name}{len(flags)}.so"
    source = folder / f"{name}.c"
    command = ["gcc", *STRICT, *flags, "-shared", "-fPIC", str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def call(library, name: str, inputs: np.ndarray, count: int, reset: bool = True):
    """Step through rows of inputs; (rows, count) actions and (rows,) statuses."""
    pointer = ctypes.POINTER(ctypes.c_float)
    actions, status = np.full((len(inputs), count), 7.0, np.float32), []
    for row, action in zip(inputs, actions, strict=True):
        if reset:
            library[f"{name}_reset"]()
        own = np.ascontiguousarray(row, np.float32)
        status.append(
            library[f"{name}_step"](own.ctypes.data_as(pointer), action.ctypes.data_as(pointer))
        )
    return actions, status


@pytest.mark.parametrize("kind", VECTORS)
def test_every_kind_without_images(kind, tmp_path):
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, ROWS))
    wanted = pack_actions(graph, run(graph, inputs))
    write_c99(graph, tmp_path, "robot")
    library = compile_library(tmp_path, "robot", "-O2")
    found, status = call(library, "robot", pack_inputs(graph, inputs), wanted.shape[1])
    assert set(status) == {0}
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_memory_lasts_until_reset(kind, tmp_path):
    graph = read_policy(make_policy(kind))
    write_c99(graph, tmp_path)
    library = compile_library(tmp_path, "policy", "-O2")
    obs = observations(kind, 30)
    wanted: list = []
    own: dict = {}
    for row in obs:
        outputs = run(graph, {"obs": row[None].numpy(), **own})
        own = {g.STATE: outputs["next_state"]}
        wanted.append(outputs["action"][0])
    library.policy_reset()
    found, _ = call(library, "policy", obs.numpy(), len(wanted[0]), reset=False)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    again, _ = call(library, "policy", obs.numpy(), len(wanted[0]), reset=False)
    assert np.abs(again[0] - found[0]).max() > 1e-3, "the state of before is still there"
    library.policy_reset()
    again, _ = call(library, "policy", obs.numpy(), len(wanted[0]), reset=False)
    np.testing.assert_array_equal(again, found)


def test_masks(tmp_path):
    graph = read_policy(make_policy("multi-discrete"), masked=True)
    inputs = arrays_of(graph, observations("multi-discrete", ROWS))
    inputs[g.MASK] = (torch.rand(ROWS, 7, generator=torch.Generator().manual_seed(0)) < 0.4).numpy()
    inputs[g.MASK][:5] = False
    wanted = pack_actions(graph, run(graph, inputs))
    write_c99(graph, tmp_path)
    library = compile_library(tmp_path, "policy", "-O2")
    found, _ = call(library, "policy", pack_inputs(graph, inputs), 2)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("flags", [("-O2",), ("-O3", "-ffast-math")])
def test_what_is_not_finite_is_refused(flags, tmp_path):
    graph = read_policy(make_policy("clipped"))
    write_c99(graph, tmp_path)
    library = compile_library(tmp_path, "policy", *flags)
    inputs = observations("clipped", 3).numpy()
    inputs[0, 2], inputs[1, 0] = np.nan, -np.inf
    actions, status = call(library, "policy", inputs, 3)
    assert status == [-1, -1, 0]
    assert (actions[:2] == 7.0).all(), "a refused step leaves the action alone"
    huge = np.full((1, 6), 1e38, np.float32)
    assert call(library, "policy", huge, 3)[1] == [0], "normalising bounds what is huge"


def test_bytes_for_weights(tmp_path):
    graph = read_policy(make_policy("squashed"))
    inputs = arrays_of(graph, observations("squashed", ROWS))
    wanted = pack_actions(graph, run(graph, inputs))
    for name, weights in (("whole", "float32"), ("small", "int8")):
        write_c99(graph, tmp_path, name, weights)
    library = compile_library(tmp_path, "small", "-O2")
    found, _ = call(library, "small", pack_inputs(graph, inputs), 3)
    error = np.abs(found - wanted).max()
    assert 1e-6 < error < 0.02, "the range of these actions is 2"
    assert "signed char" in (tmp_path / "small.c").read_text()
    assert "signed char" not in (tmp_path / "whole.c").read_text()


def test_the_test_program_checks_golden_pairs(tmp_path):
    graph = read_policy(make_policy("clipped"))
    inputs = arrays_of(graph, observations("clipped", 8))
    rows, actions = pack_inputs(graph, inputs), pack_actions(graph, run(graph, inputs))
    for shift, status in ((0.0, 0), (1e-3, 1)):
        write_c99(graph, tmp_path, golden=(rows, actions + np.float32(shift)))
        files = [str(tmp_path / name) for name in ("policy.c", "policy_test.c")]
        program = tmp_path / "check"
        subprocess.run(["gcc", *STRICT, "-O2", *files, "-o", str(program), "-lm"], check=True)
        done = subprocess.run([str(program)], capture_output=True, text=True)
        assert done.returncode == status, done.stdout
        assert "NaN gives -1" in done.stdout


def test_what_c_cannot_hold_is_said(tmp_path):
    with pytest.raises(UserError, match="sees images: use onnx"):
        write_c99(read_policy(make_policy("nature")), tmp_path)
    with pytest.raises(UserError, match="cannot name C functions"):
        write_c99(read_policy(make_policy("clipped")), tmp_path, "my-robot")
    assert list(tmp_path.iterdir()) == []
