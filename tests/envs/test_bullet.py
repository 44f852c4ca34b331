"""PyBullet's chatter: gone, and nothing else with it."""

import ctypes
import subprocess
import sys
import types

import pytest

import rlgym
from rlgym.envs.gymnasium import bullet

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="prints through the C library")


@pytest.fixture
def printing(monkeypatch):
    """Stand in for pybullet: `connect` prints, through C's buffer, whatever it is given."""
    module = types.ModuleType("pybullet")

    def connect(text: bytes, fails: bool = False) -> int:
        ctypes.CDLL(None).puts(text)
        if fails:
            raise RuntimeError("no server")
        return 7

    module.connect = connect
    monkeypatch.setitem(sys.modules, "pybullet", module)
    return module


def test_only_the_noise_is_held_back(printing, capfd):
    bullet.hush()
    bullet.hush()
    ctypes.CDLL(None).puts(b"argv[1]= of somebody else, before")
    assert printing.connect(b"argv[0]=\nfirst\nargv[1]=--x\nsecond") == 7
    print("after")
    assert capfd.readouterr().out.splitlines() == [
        "argv[1]= of somebody else, before",
        "first",
        "second",
        "after",
    ]


def test_standard_output_is_back_after_an_error(printing, capfd):
    bullet.hush()
    with pytest.raises(RuntimeError, match="no server"):
        printing.connect(b"argv[0]=\nthis is why", fails=True)
    print("here")
    assert capfd.readouterr().out.splitlines() == ["this is why", "here"]


@pytest.mark.parametrize("backend", ["sync", "process"])
def test_worlds_of_pybullet_are_silent(backend, capfd):
    pytest.importorskip("panda_gym")
    env = rlgym.make_vec("panda_gym:PandaReach-v3", 2, backend=backend, verbose=False)
    env.reset(seed=0)
    env.close()
    shown = "".join(capfd.readouterr())
    assert "argv[" not in shown


def test_without_pybullet_there_is_nothing_to_do(monkeypatch):
    monkeypatch.delitem(sys.modules, "pybullet", raising=False)
    bullet.hush()
    assert "pybullet" not in sys.modules


def test_importing_it_prints_nothing():
    script = "from rlgym.envs.physics.quiet_pybullet import pybullet; print(pybullet.DIRECT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
