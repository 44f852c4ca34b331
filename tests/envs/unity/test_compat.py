"""Unity's own package imports on this Python, by a hook that touches nothing else."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rlgym
from rlgym.envs.unity import compat, messages
from rlgym.errors import MissingExtraError, WorldError

CHECKOUT = Path(rlgym.__file__).resolve().parent.parent

SPEAK = """
import numpy as np
from rlgym.envs.unity import compat, messages
stock = compat.load()
from mlagents_envs.communicator_objects.agent_info_pb2 import AgentInfoProto
from mlagents_envs.communicator_objects.observation_pb2 import NONE
from mlagents_envs.environment import UnityEnvironment
assert UnityEnvironment._check_communication_compatibility("1.0.0", "1.5.0", "x")
assert not UnityEnvironment._check_communication_compatibility("2.0.0", "1.5.0", "x")
agent = AgentInfoProto(id=3, reward=0.5, action_mask=[True, False])
obs = agent.observations.add(shape=[2], compression_type=NONE)
obs.float_data.data.extend([1.0, 2.0])
types = stock.base_env
kind = (types.DimensionProperty.NONE,), types.ObservationType.DEFAULT
spec = types.BehaviorSpec([types.ObservationSpec((2,), *kind, "")], types.ActionSpec(0, (2,)))
decisions, terminals = stock.rpc_utils.steps_from_proto([agent], spec)
assert decisions.obs[0].tolist() == [[1.0, 2.0]], decisions.obs
assert decisions.action_mask[0].tolist() == [[True, False]]
assert len(terminals) == 0
print(stock.__version__)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        cwd=CHECKOUT,
    )


def test_it_imports_and_decodes_in_a_fresh_process() -> None:
    done = python(SPEAK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.28.0"


def test_without_the_hook_it_does_not_import() -> None:
    """Else the hook could go."""
    done = python("import mlagents_envs.environment")
    assert done.returncode != 0
    assert "distutils" in done.stderr or "Descriptors cannot be created directly" in done.stderr


def test_the_hook_answers_for_this_package_only() -> None:
    compat.load()
    compat.install()
    finders = [finder for finder in sys.meta_path if isinstance(finder, compat.UnityFinder)]
    assert len(finders) == 1
    for name in ("json", "google.protobuf.any_pb2", "mlagents_envs.timers", "my_envs.x_pb2"):
        assert finders[0].find_spec(name, None) is None


def test_the_process_wide_pool_does_not_learn_the_names() -> None:
    """A second copy of the messages, of whatever origin, must be able to live beside these."""
    from google.protobuf import descriptor_pool

    compat.load()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("communicator_objects.AgentInfoProto")


def test_one_class_for_a_message_and_it_pickles() -> None:
    """Stock code sends messages through a pickling pipe."""
    compat.load()
    from mlagents_envs.communicator_objects.unity_message_pb2 import UnityMessageProto

    assert messages.message("UnityMessageProto") is UnityMessageProto
    message = UnityMessageProto()
    message.header.status = 200
    assert pickle.loads(pickle.dumps(message)) == message


def test_enums_and_all_modules_are_as_generated() -> None:
    compat.load()
    import importlib

    for stem in messages.descriptors():
        importlib.import_module(f"mlagents_envs.communicator_objects.{stem}")
    from mlagents_envs.communicator_objects import command_pb2

    assert command_pb2.CommandProto.Value("QUIT") == command_pb2.QUIT == 2
    with pytest.raises(ModuleNotFoundError, match="no_such_pb2"):
        importlib.import_module("mlagents_envs.communicator_objects.no_such_pb2")


def test_the_fast_twin_writes_the_same_bytes() -> None:
    import numpy as np

    floats = np.asarray([1.5, -2.0, 3.25], "<f4")
    slow = messages.message("AgentActionProto")(continuous_actions=floats, discrete_actions=[300])
    fast = messages.fast_message("AgentActionProto")(
        continuous_actions=floats.tobytes(), discrete_actions=[300]
    )
    assert slow.SerializeToString() == fast.SerializeToString()


def test_versions_are_compared_by_number() -> None:
    assert compat.StrictVersion("1.5.0").version == (1, 5, 0)
    assert compat.StrictVersion("1.10").version > compat.StrictVersion("1.9.3").version
    for text in ("1", "1.x.0", "1.2.3.4", ""):
        with pytest.raises(ValueError):
            compat.StrictVersion(text)


def test_a_module_without_a_description_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "communicator_objects"
    folder.mkdir()
    (folder / "agent_info_pb2.py").write_text("print('no descriptor')\n")
    monkeypatch.setattr(messages, "package_folder", lambda: tmp_path)
    with pytest.raises(WorldError, match=r"agent_info_pb2\.py describes no messages"):
        messages.descriptors.__wrapped__()


def test_without_the_package_the_error_names_it() -> None:
    done = python(
        "import sys; sys.modules['mlagents_envs'] = None\n"
        "from importlib.machinery import PathFinder\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from rlgym.envs.unity import compat\n"
        "compat.load()"
    )
    assert MissingExtraError.__name__ in done.stderr
    assert "pip install mlagents-envs==0.28.0" in done.stderr


@pytest.mark.slow
def test_the_newest_wheel_works_through_the_same_hook(tmp_path: Path) -> None:
    """Release 1.1.0, which pip refuses on this Python because of its pins."""
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--ignore-requires-python", "--dest", str(tmp_path), "mlagents-envs==1.1.0"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    if fetched.returncode:
        pytest.skip(f"the wheel is not to be had here: {fetched.stderr.splitlines()[-1:]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = python(SPEAK, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.1.0"
