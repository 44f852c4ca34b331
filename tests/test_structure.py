"""The house rules of CONTRIBUTING.md, read off the source; each is also tried on violations."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rlgym
from tests.conftest import MAPPED, bare_imports

ROOT = Path(rlgym.__file__).resolve().parent.parent
SHIPPED = ("rlgym", *MAPPED)
MAX_LINES = 550

# Who may import whom; a room may always import itself. A new room needs a line here.
FOUNDATION = {
    "config",
    "config_rules",
    "configs",
    "device",
    "errors",
    "plain_yaml",
    "settings",
    "space_json",
    "spaces",
}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "assets": set(),
    "vector": FOUNDATION,
    "envs": FOUNDATION | {"assets", "vector"},
    "registry": FOUNDATION | {"envs", "vector"},
    "rollout": FOUNDATION | {"vector"},
    "agents": FOUNDATION | {"rollout"},  # the learner never sees a world
    "training": FOUNDATION | {"agents", "registry", "rollout", "vector"},
    "export": FOUNDATION | {"agents", "assets", "deploy"},
    "deploy": set(),  # also a distribution of its own, on a robot without torch
    "interop": FOUNDATION | {"agents", "envs", "registry", "rollout", "training", "vector"},
    "report": FOUNDATION | {"envs", "registry", "training", "vector"},
    "__init__": {"registry", "training"},
    "__main__": {"cli"},
}
MAY_IMPORT_ALL = {"bench", "cli"}
DEPLOY_NEEDS = {"numpy", "onnxruntime"}

# What a module may import or call although UNSAFE_* names it: (path, name) -> the reason.
REVIEWED: dict[tuple[str, str], str] = {
    ("rlgym/vector/workers/wire.py", "cloudpickle"): (
        "carries a callable from a parent to the worker processes that it started itself"
    ),
    ("rlgym/bench/unity.py", "pickle"): (
        "copies a message as Unity's own client does, to measure that client; reads what it wrote"
    ),
    ("rlgym/interop/sb3_normalize.py", "pickle"): (
        "VecNormalize saves nothing else; only with --trust, for a file that the person names"
    ),
}
DEVICE_PACKAGES = {"libtpu", "mujoco_warp", "torch_tpu", "torch_xla", "torchax", "warp"}
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    *("compile", "eval", "exec", "os.popen", "os.system", "torch.load"),
    *("yaml.full_load", "yaml.load", "yaml.unsafe_load"),
}
UNSAFE_FLAGS = {"allow_pickle", "shell"}
POSIX_ONLY = {
    *("crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource"),
    *("syslog", "termios", "tty"),
}

# Put together here, so that this file does not accuse itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}])/(?:" + "|".join(("home", "root", "Users", "work")) + r")/\w"
)
INDEX_HOST = re.compile(r"https?://" + r"(?:pypi|registry|deb)[.]")
TEXT = {".cfg", ".in", ".json", ".md", ".py", ".rst", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}

TOP_LEVEL = {
    *(*SHIPPED, "tests", "docs", "pyproject.toml", "Makefile", "MANIFEST.in", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
}


# ----- Reading the source ------------------------------------------------------------------------


def sources(root: Path, folders: tuple[str, ...] = SHIPPED) -> dict[str, ast.Module]:
    """Return the syntax tree of each Python file, by its path relative to `root`."""
    files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
    return {file.relative_to(root).as_posix(): ast.parse(file.read_text("utf-8")) for file in files}


def module_name(path: str) -> str:
    """Return the dotted name that imports a file: rlgym.envs.toy.a for `envs/toy/a.py`."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts if parts[0] in ("rlgym", "tests") else ["rlgym", *parts])


def room_of(module: str) -> str:
    """Return the part of the house that a module stands in: `vector` for rlgym.vector.sync."""
    parts = module.split(".")
    if parts[0] != "rlgym":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) for each import, wherever it stands, lazy ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                # `from rlgym import make` means make's home, `from rlgym import vector` the room
                home = rlgym._HOME_OF.get(alias.name, f"rlgym.{alias.name}")
                yield node.lineno, home if base == "rlgym" else f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            yield from (
                (node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant)
            )


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for such an expression, and an empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


# ----- The rules: each returns what breaks it ----------------------------------------------------


def against_the_arrows(root: Path) -> list[str]:
    """Imports that go the wrong way through the house."""
    broken = []
    for path, tree in sources(root).items():
        room = room_of(module_name(path))
        if room in MAY_IMPORT_ALL:
            continue
        if room not in MAY_IMPORT:
            broken.append(f"{path}: the room '{room}' is not in MAY_IMPORT; add it there")
            continue
        for line, name in imports(path, tree):
            if not name.startswith("rlgym") or name == "rlgym.__version__":
                continue
            if (target := room_of(name)) != room and target not in MAY_IMPORT[room]:
                broken.append(f"{path}:{line}: {room} may not import {target} ({name})")
    return broken


def bare_names(root: Path) -> list[str]:
    """Imports of a mapped folder by its bare name, which make a second copy of each class."""
    return [
        f"{path}:{line}: write rlgym.{name}"
        for path, tree in sources(root, (*SHIPPED, "tests")).items()
        for line, name in imports(path, tree)
        if bare_imports([name])
    ]


def heavy_deploy(root: Path) -> list[str]:
    """Imports that would keep `rlgym.deploy` from running alone on a robot."""
    broken = []
    for path, tree in sources(root, ("rlgym/deploy",)).items():
        allowed = DEPLOY_NEEDS | set(sys.stdlib_module_names)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            broken += [
                f"{path}:{node.lineno}: deploy may not import {name}"
                for name in names
                if name.split(".")[0] not in allowed
            ]
    return broken


def unsafe(root: Path) -> list[str]:
    """Whatever could run code out of a file that a stranger has made."""
    broken = []
    for path, tree in sources(root).items():
        found = [
            (line, name.split(".")[0])
            for line, name in imports(path, tree)
            if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if (called := dotted(node.func)) in UNSAFE_CALLS:
                found.append((node.lineno, called))
            for word in node.keywords:
                off = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in UNSAFE_FLAGS and not off:
                    found.append((node.lineno, word.arg))
        broken += [f"{path}:{n}: {what}" for n, what in found if (path, what) not in REVIEWED]
    return broken


def posix_only(root: Path) -> list[str]:
    """Imports at module top that fail on Windows, unless guarded by a try or a platform test."""
    return [
        f"{path}:{line}: {name} exists on POSIX only; import it in the function that needs it"
        for path, tree in sources(root, (*SHIPPED, "tests")).items()
        for statement in unguarded(tree.body)
        for line, name in imports(path, statement)
        if name.split(".")[0] in POSIX_ONLY
    ]


def unguarded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the imports that run on every platform when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.ClassDef | ast.With):
            yield from unguarded(node.body)
        elif isinstance(node, ast.If):
            if not re.search(r"platform|os\.name", ast.unparse(node.test)):
                yield from unguarded(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(h.type) for h in node.handlers if h.type)
            if not re.search(r"ImportError|ModuleNotFoundError", caught):
                yield from unguarded(node.body)


def too_long(root: Path) -> list[str]:
    """Python files beyond what a person reads in one sitting."""
    files = (file for folder in (*SHIPPED, "tests") for file in (root / folder).rglob("*.py"))
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in files}
    return [f"{file.relative_to(root)}: {n} lines" for file, n in lengths.items() if n > MAX_LINES]


def tied_to_a_device(root: Path) -> list[str]:
    """Packages of one maker's accelerator, where torch is to be asked; Warp has its two modules."""
    own = {"envs/physics/warp.py", "envs/physics/warp_model.py"}
    return [
        f"{path}:{line}: {name}: ask rlgym.device"
        for path, tree in sources(root).items()
        for line, name in imports(path, tree)
        if name.split(".")[0] in DEVICE_PACKAGES and path not in own
    ]


def names_a_machine(root: Path) -> list[str]:
    """Paths of somebody's machine and hosts of package indexes, which help nobody else."""
    shown = [*root.glob(".*")]
    shown += [
        file for top in {*TOP_LEVEL, ".ci"} for file in [root / top, *(root / top).rglob("*")]
    ]
    broken = []
    for file in {file for file in shown if file.is_file() and file.suffix in TEXT}:
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            if MACHINE_PATH.search(line) or INDEX_HOST.search(line):
                broken.append(f"{file.relative_to(root)}:{number}: {line.strip()}")
    return broken


def unlisted_packages(root: Path) -> list[str]:
    """Differences between the packages in pyproject.toml and those in the tree."""
    listed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {
        module_name((file.parent / "x").relative_to(root).as_posix()).removesuffix(".x")
        for folder in SHIPPED
        for file in (root / folder).rglob("*.py")
    }
    found_without_init = {
        f"{folder.relative_to(root)}: has no __init__.py"
        for top in SHIPPED
        for folder in [root / top, *(file.parent for file in (root / top).rglob("*.py"))]
        if not (folder / "__init__.py").is_file()
    }
    packages = listed["packages"]
    return [
        *(f"{name}: list it under [tool.setuptools] packages" for name in found - {*packages}),
        *(f"{name}: listed in pyproject.toml, but not there" for name in {*packages} - found),
        *found_without_init,
        *([] if packages == sorted(packages) else ["packages: keep the list sorted"]),
    ]


def stray_top_level(names: list[str]) -> list[str]:
    """Files and folders at the root that have a better place."""
    return sorted({name for name in names if name not in TOP_LEVEL and not name.startswith(".")})


# ----- The tree obeys ----------------------------------------------------------------------------

RULES = [
    against_the_arrows,
    bare_names,
    heavy_deploy,
    unsafe,
    posix_only,
    too_long,
    tied_to_a_device,
    names_a_machine,
    unlisted_packages,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_obeys(rule: Callable[[Path], list[str]]) -> None:
    broken = rule(ROOT)
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


def test_the_root_holds_only_what_belongs_there() -> None:
    # git, not the disk: runs, builds and editors leave things that .gitignore names
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line.split("/")[0] for line in done.stdout.splitlines()]
    assert not stray_top_level(names)
    assert stray_top_level(["rlgym", ".ci", "utils.py"]) == ["utils.py"]


def test_every_reviewed_exception_is_still_needed() -> None:
    for path, what in REVIEWED:
        assert what in (ROOT / path).read_text("utf-8"), f"{path} no longer uses {what}"


# ----- Each rule can fail ------------------------------------------------------------------------

VIOLATIONS = [
    (against_the_arrows, "rlgym/spaces.py", "import rlgym.vector.sync"),
    (against_the_arrows, "rlgym/vector/sync.py", "from rlgym.rollout import buffer"),
    (against_the_arrows, "rlgym/vector/sync.py", "from ..rollout.buffer import Buffer"),
    (against_the_arrows, "rlgym/rollout/collector.py", "from rlgym import agents"),
    (against_the_arrows, "rlgym/rollout/collector.py", "def f():\n    import rlgym.envs.toy"),
    (against_the_arrows, "agents/ppo.py", "from rlgym.vector import VectorEnv"),
    (against_the_arrows, "agents/ppo.py", "if TYPE_CHECKING:\n    import rlgym.envs"),
    (against_the_arrows, "agents/ppo.py", "from rlgym import make"),
    (against_the_arrows, "agents/ppo.py", "import rlgym"),
    (against_the_arrows, "agents/ppo.py", "import_module('rlgym.envs.toy')"),
    (against_the_arrows, "envs/toy/identity.py", "from rlgym.agents import ppo"),
    (against_the_arrows, "envs/toy/identity.py", "from rlgym.registry import make"),
    (against_the_arrows, "rlgym/training/on_policy.py", "from rlgym.cli import main"),
    (against_the_arrows, "rlgym/training/on_policy.py", "from rlgym.envs import toy"),
    (against_the_arrows, "rlgym/deploy/runtime.py", "from rlgym import spaces"),
    (against_the_arrows, "rlgym/export/onnx.py", "from rlgym.training import run"),
    (against_the_arrows, "rlgym/attic/old.py", ""),
    (bare_names, "rlgym/registry.py", "import envs.toy"),
    (bare_names, "tests/test_ppo.py", "from agents import ppo"),
    (heavy_deploy, "rlgym/deploy/runtime.py", "import torch"),
    (heavy_deploy, "rlgym/deploy/runtime.py", "from rlgym.deploy import limits"),
    (unsafe, "rlgym/training/checkpoint.py", "import pickle"),
    (unsafe, "rlgym/training/checkpoint.py", "from cloudpickle import dumps"),
    (unsafe, "rlgym/training/checkpoint.py", "torch.load('a')"),
    (unsafe, "rlgym/training/checkpoint.py", "from torch import load"),
    (unsafe, "rlgym/config.py", "yaml.load(text, Loader)"),
    (unsafe, "rlgym/config.py", "eval('1')"),
    (unsafe, "envs/unity/launch.py", "subprocess.run('x', shell=True)"),
    (unsafe, "envs/unity/launch.py", "np.load('x', allow_pickle=anything)"),
    (posix_only, "rlgym/vector/process.py", "import fcntl"),
    (posix_only, "rlgym/vector/process.py", "if FAST:\n    from resource import getrusage"),
    (too_long, "agents/ppo.py", "\n" * (MAX_LINES + 1)),
    (tied_to_a_device, "agents/ppo.py", "import torch_tpu"),
    (tied_to_a_device, "envs/imitation/task.py", "def f():\n    import warp as wp"),
    (names_a_machine, "docs/start.md", "cd " + "/ho" + "me/ann/rlgym"),
    (names_a_machine, "Makefile", "pip install --index-url https:" + "//pypi.example/simple"),
    (unlisted_packages, "rlgym/attic/__init__.py", ""),
    (unlisted_packages, "envs/attic/room/world.py", ""),
    (unlisted_packages, "pyproject.toml", '[tool.setuptools]\npackages = ["rlgym", "rlgym.gone"]'),
    (unlisted_packages, "pyproject.toml", '[tool.setuptools]\npackages = ["rlgym", "rlgym"]'),
]


@pytest.fixture
def tiny_tree(tmp_path: Path) -> Path:
    """A checkout of empty packages that breaks no rule."""
    names = []
    for folder in SHIPPED:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
        names.append(folder if folder == "rlgym" else f"rlgym.{folder}")
    (tmp_path / "tests").mkdir()
    listed = ", ".join(f'"{name}"' for name in sorted(names))
    (tmp_path / "pyproject.toml").write_text(f"[tool.setuptools]\npackages = [{listed}]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    VIOLATIONS,
    ids=[f"{rule.__name__}-{path}-{n}" for n, (rule, path, _) in enumerate(VIOLATIONS)],
)
def test_a_violation_is_found(
    tiny_tree: Path, rule: Callable[[Path], list[str]], path: str, code: str
) -> None:
    assert rule(tiny_tree) == []
    (tiny_tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tiny_tree / path).write_text(code)
    assert rule(tiny_tree)


LAWFUL = [
    (against_the_arrows, "rlgym/cli/train.py", "import rlgym\nfrom rlgym import envs, agents"),
    (against_the_arrows, "agents/ppo.py", "from rlgym import __version__, spaces"),
    (against_the_arrows, "agents/ppo.py", "from . import networks\nfrom rlgym.rollout import x"),
    (heavy_deploy, "rlgym/deploy/runtime.py", "import json, numpy\nfrom .limits import clip"),
    (unsafe, "agents/ppo.py", "policy.eval()\nre.compile('a')\nyaml.safe_load(text)"),
    (unsafe, "agents/ppo.py", "np.load('x', allow_pickle=False)\ntorch.compile(f)"),
    (posix_only, "rlgym/cli/run.py", "def f():\n    import fcntl"),
    (posix_only, "rlgym/cli/run.py", "try:\n    import pty\nexcept ImportError:\n    pty = None"),
    (posix_only, "rlgym/cli/run.py", "if sys.platform != 'win32':\n    import termios"),
    (too_long, "agents/ppo.py", "\n" * MAX_LINES),
    (tied_to_a_device, "envs/physics/warp.py", "import mujoco_warp, warp"),
    (names_a_machine, "docs/start.md", "https://example.org/home/ann ~/src/x $ROOT/root/y"),
]


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    LAWFUL,
    ids=[f"{rule.__name__}-{path}-{n}" for n, (rule, path, _) in enumerate(LAWFUL)],
)
def test_what_is_allowed_is_not_accused(
    tiny_tree: Path, rule: Callable[[Path], list[str]], path: str, code: str
) -> None:
    (tiny_tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tiny_tree / path).write_text(code)
    assert rule(tiny_tree) == []


# ----- What importing does -----------------------------------------------------------------------


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a fresh process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_import_rlgym_loads_neither_torch_nor_gymnasium() -> None:
    code = "import rlgym, sys; dir(rlgym); print({'torch', 'gymnasium', 'numpy'} & {*sys.modules})"
    done = python("-c", code)
    assert done.stdout.strip() == "set()", done.stderr


def test_every_public_name_loads() -> None:
    assert set(dir(rlgym)) == set(rlgym.__all__) == {"__version__", *rlgym._HOME_OF}
    for name in rlgym._HOME_OF:
        assert callable(getattr(rlgym, name)), name


def test_an_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="make_vec"):
        _ = rlgym.make_vectors  # pyright: ignore[reportAttributeAccessIssue]


def test_a_checkout_without_install_finds_the_mapped_folders() -> None:
    # -S -E: no site-packages, so no editable install can help
    code = "import rlgym.envs, rlgym.agents, rlgym.configs, rlgym.assets as a; print(a.__file__)"
    done = python("-S", "-E", "-c", code)
    assert done.stdout.strip() == str(ROOT / "assets" / "__init__.py"), done.stderr


def test_the_suite_fails_when_a_test_imports_a_bare_name(tmp_path: Path) -> None:
    (tmp_path / "envs.py").touch()
    (tmp_path / "test_bare.py").write_text("def test_bare():\n    import envs\n")
    run = ["-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest"]
    run += ["--rootdir", str(tmp_path), "-o", f"pythonpath={tmp_path} {ROOT}", str(tmp_path)]
    done = python(*run, cwd=ROOT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "imported by their bare names: ['envs']" in done.stdout


# ----- What pyproject.toml promises --------------------------------------------------------------


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_import_name_differs_from_the_distribution(pyproject: dict) -> None:
    assert pyproject["project"]["name"] == "rlgym-lab"
    assert pyproject["project"]["scripts"] == {"rlgym": "rlgym.cli.main:main"}


def test_all_holds_every_extra_but_the_ones_for_special_machines(pyproject: dict) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    (line,) = extras["all"]
    held = set(re.fullmatch(r"rlgym-lab\[(.*)\]", line).group(1).split(","))  # pyright: ignore
    assert held == set(extras) - {"all", "dev", "gpu", "coreml", "executorch", "fpga"}
