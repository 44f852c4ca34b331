"""Worlds by id: what is found, and what a person is told when it is not."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import rlgym
from rlgym.errors import ConfigError, ContractError, MissingExtraError, WorldError
from rlgym.registry import VECTOR_ENTRY_POINTS, WorldSpec, choose_backend, make_vec
from rlgym.vector.sync import SyncVectorEnv


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole-v9", "did you mean CartPole-v1"),
        ("HopperBulletEnv-v0", "pip install pybullet_envs_gymnasium"),
        ("NothingLikeIt", "rlgym envs"),
    ],
)
def test_unknown_id_names_the_nearest_and_the_package(name: str, hint: str, monkeypatch) -> None:
    monkeypatch.delitem(gymnasium.registry, name, raising=False)  # others may have imported it
    with pytest.raises(WorldError, match=hint) as caught:
        rlgym.make(name)
    assert "\n" not in str(caught.value)


def test_an_old_version_that_moved_away_names_the_new_one() -> None:
    with pytest.raises(WorldError, match="no longer part of gymnasium: use Ant-v5"):
        rlgym.make("Ant-v3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = (", r"importing own_lab failed: SyntaxError: .*own_lab.py, line 1"),
        (
            "raise KeyError('port')",
            r"importing own_lab failed: KeyError: 'port' \(.*own_lab.py:1\)",
        ),
        (
            "import gymnasium\n"
            "def build():\n    raise OSError('no robot.urdf')\n"
            "gymnasium.register('OwnLab-v0', build)",
            r"OwnLab-v0 cannot be built: OSError: no robot.urdf \(.*own_lab.py:3\)",
        ),
        ("", r"unknown world 'OwnLab-v0'"),
    ],
)
def test_faults_of_a_world_of_ones_own_are_told_in_a_line(tmp_path, monkeypatch, text, says):
    (tmp_path / "own_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_lab", raising=False)
    monkeypatch.delitem(gymnasium.registry, "OwnLab-v0", raising=False)
    with pytest.raises(WorldError, match=says) as caught:
        rlgym.make("own_lab:OwnLab-v0")
    assert "\n" not in str(caught.value)
    gymnasium.registry.pop("OwnLab-v0", None)
    sys.modules.pop("own_lab", None)


def test_missing_module_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match="folder that holds it, or install what brings it"):
        rlgym.make("no_such_package:World-v0")


def test_wrong_world_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sutton_barto_reward'"):
        rlgym.make("CartPole-v1", sutton_barto_rewards=True)


def test_module_prefix_imports_the_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_worlds.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', entry_point=CartPoleEnv, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make_vec("my_worlds:Mine-v0", 2, backend="sync")
    env.reset(seed=0)
    assert env.traits.spec_id == "Mine-v0"
    env.close()


def test_callables_and_their_arguments() -> None:
    def build(length: float) -> gymnasium.Env:
        env = gymnasium.make("CartPole-v1")
        env.unwrapped.length = length
        return env

    env = make_vec(build, 2, env_kwargs={"length": 0.25}, backend="sync")
    assert isinstance(env, SyncVectorEnv)
    assert env._slots[1].world.unwrapped.length == 0.25
    env.close()


def test_callable_that_returns_something_else_is_refused() -> None:
    with pytest.raises(WorldError, match="returned int"):
        make_vec(lambda: 3, 1, backend="sync")


def test_register_makes_a_world_trainable_by_name() -> None:
    from gymnasium.envs.classic_control import PendulumEnv

    rlgym.register("test/Swing-v0", PendulumEnv, max_episode_steps=5)
    env = make_vec("test/Swing-v0", 1, backend="sync")
    env.reset(seed=0)
    for _ in range(5):
        _, _, terminated, truncated, _ = env.step(np.zeros((1, 1), np.float32))
    assert bool(truncated[0]) and not bool(terminated[0])
    env.close()


def test_register_a_ready_vector_env() -> None:
    def build(num_envs: int, **kwargs: object) -> SyncVectorEnv:
        return SyncVectorEnv(WorldSpec("CartPole-v1"), num_envs, **kwargs)  # type: ignore[arg-type]

    rlgym.register("test/Batch-v0", build, vector=True)
    try:
        env = make_vec("test/Batch-v0", 3, seed=5)
        assert env.num_envs == 3 and env.seed == 5
        env.close()
    finally:
        del VECTOR_ENTRY_POINTS["test/Batch-v0"]


def test_a_batch_is_given_what_its_builder_names(monkeypatch, tmp_path) -> None:
    seen: dict[str, object] = {}

    def build(num_envs, *, device, seed, output, crash_dir, robot="a") -> str:
        seen.update(num_envs=num_envs, crash_dir=crash_dir, robot=robot)
        return "made"

    monkeypatch.setitem(VECTOR_ENTRY_POINTS, "test/Named-v0", build)
    made: object = make_vec("test/Named-v0", 3, crash_dir=tmp_path, env_kwargs={"robot": "b"})
    assert made == "made" and seen == {"num_envs": 3, "crash_dir": tmp_path, "robot": "b"}
    with pytest.raises(ConfigError, match="no argument 'robots': did you mean 'robot'"):
        make_vec("test/Named-v0", 3, env_kwargs={"robots": "b"})


def test_auto_says_what_it_chose(capfd) -> None:
    env = make_vec("CartPole-v1", 2)
    assert "backend sync for CartPole-v1" in capfd.readouterr().err
    env.close()


def test_auto_chooses_processes_for_costly_worlds() -> None:
    assert choose_backend(WorldSpec("rlgym/Slow-v0"), 8, num_workers=2)[0] == "process"
    assert choose_backend(WorldSpec("rlgym/Slow-v0"), 1)[0] == "sync"


def test_unknown_backend_and_bad_counts() -> None:
    with pytest.raises(ConfigError, match='use "auto", "sync", "process"'):
        make_vec("CartPole-v1", 1, backend="threads")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a tensor world"):
        make_vec("rlgym/Counter-v0", 1, backend="device")
    with pytest.raises(ContractError, match="use num_envs 4 or num_groups 1"):
        make_vec("CartPole-v1", 3, backend="sync", num_groups=2)
    with pytest.raises(ContractError, match="at least 1"):
        make_vec("CartPole-v1", 0, backend="sync")


def test_worlds_are_built_without_torch() -> None:
    """Workers start fast because torch is not imported to build or describe a world."""
    code = (
        "import sys, rlgym\n"
        "from rlgym.vector.slot import inspect_world\n"
        "world = rlgym.make('CartPole-v1'); inspect_world(world)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
