"""The page holds the policy, asks nobody for anything, and does in a browser what the lab did."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlgym.cli.main import main
from rlgym.deploy import graph as g
from rlgym.deploy.bundle import Bundle
from rlgym.deploy.errors import BundleError
from rlgym.deploy.graph import Action, Graph, Port
from rlgym.deploy.policy import Policy
from rlgym.deploy.reference import run, to_world
from rlgym.errors import UserError
from rlgym.export import web
from rlgym.export.bundle import write_bundle
from rlgym.export.describe import describe
from rlgym.export.golden import Golden
from rlgym.export.read import read_policy
from rlgym.export.verify import verify
from tests.export.bundles import make_bundle, manifest_of, members, pack, sealed
from tests.export.policies import KINDS, make_policy, observations
from tests.export.test_graph import arrays_of

HOME = files("rlgym.assets") / "web"
CARTPOLE = {"run": "cart", "world": {"env_id": "CartPole-v1"}}
START = [0.01, -0.02, 0.03, -0.04]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def balancing() -> Graph:
    """Pushes to the side to which the pole falls: good for 500 steps."""
    weight = np.float32([[0, 0, 0, 0], [0.1, 0.3, 3.0, 1.0]])
    ops = (
        g.Dense("logits", ("obs",), weight, np.zeros(2, np.float32)),
        g.Choose("action", ("logits",), (2,), (0,)),
    )
    ports = Port("logits", (2,), "float32"), Port("action", (1,), "int64")
    action = Action("", "action", "discrete", (), "logits")
    return Graph((Port("obs", (4,), "float32"),), ops, ports, (action,))


def bundle_of(path: Path, graph: Graph, inputs: Any, provenance: Any, to: tuple = ("web",)) -> Path:
    rows = len(next(iter(inputs.values())))
    if graph.state_size:
        inputs = {**inputs, "state": np.zeros((rows, graph.state_size), np.float32)}
    outputs = run(graph, inputs)
    told = to_world(graph, outputs)
    world = told if isinstance(told, dict) else {"": told}
    golden = Golden(inputs, outputs, world, np.ones(rows, bool))
    write_bundle(path, graph, golden, describe(graph, {}, provenance), to)
    return path


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that balances CartPole, with its page."""
    inputs = {"obs": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)}
    path = tmp_path_factory.mktemp("bundles") / "cart.rlpolicy"
    return bundle_of(path, balancing(), inputs, CARTPOLE)


def kind_of(path: Path, kind: str) -> Path:
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, 20))
    return bundle_of(path, graph, inputs, {"run": kind})


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Stands for the real one, where the page is not opened."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in web.RUNTIME_FILES:
        (folder / name).write_bytes(b"stands for " + name.encode())
    return folder


# ----- What is written ----------------------------------------------------------------------------


def test_the_bundle_holds_the_page_and_verify_knows_it(cart: Path) -> None:
    held = {name for name in members(cart) if name.startswith("extras/web/")}
    assert held == {f"extras/web/{name}" for name in (*web.PAGE, "policy.json", "policy.onnx")}
    (entry,) = (e for e in Bundle(cart).manifest["artefacts"] if e["format"] == "web")
    assert entry["max_error"] is None
    (check,) = (check for check in verify(cart) if check.name == "web")
    assert check.passed and not check.skipped


@pytest.mark.parametrize("name", ["page.js", "policy.json", "policy.onnx"])
def test_another_page_is_pointed_out(name: str, cart: Path, tmp_path: Path) -> None:
    held = members(cart)
    held[f"extras/web/{name}"] += b" "
    changed = pack(tmp_path / "changed.rlpolicy", sealed(held, manifest_of(held)))
    (check,) = (check for check in verify(changed) if check.name == "web")
    assert check.skipped and "NOT what this version writes" in check.text


def test_a_page_behind_ours_is_pointed_out(cart: Path, tmp_path: Path) -> None:
    held = members(cart)
    manifest = manifest_of(held)
    (entry,) = (e for e in manifest["artefacts"] if e["format"] == "web")
    entry["files"].insert(0, "extras/page.js")
    held["extras/page.js"] = b"another page"
    changed = pack(tmp_path / "changed.rlpolicy", sealed(held, manifest))
    (check,) = (check for check in verify(changed) if check.name == "web")
    assert check.skipped and "NOT what this version writes" in check.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_is_told_in_json(kind: str) -> None:
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, 20))
    if graph.state_size:
        inputs["state"] = np.zeros((20, graph.state_size), np.float32)
    told = to_world(graph, run(graph, inputs))
    world = told if isinstance(told, dict) else {"": told}
    page = web.page_files(graph, inputs, world, describe(graph, {}, {"run": kind}), b"")
    about = json.loads(page["policy.json"], parse_constant=pytest.fail)
    assert [port["name"] for port in about["inputs"]] == [port.name for port in graph.inputs]
    rows, total = about["golden"]["rows"], 0
    for port in graph.inputs:
        given = about["golden"]["inputs"][port.name]
        np.testing.assert_array_equal(given, inputs[port.name][:rows].ravel())
        total += len(given)
    assert rows == 20 and total <= web.NUMBERS
    for action in about["actions"]:
        given = about["golden"]["world"][action["key"]]
        np.testing.assert_array_equal(given, np.ravel(world[action["key"]]))


def test_large_observations_are_fewer() -> None:
    graph = read_policy(make_policy("nature"))
    inputs = {"obs": np.zeros((64, 4, 40, 44), np.uint8)}
    page = web.page_files(graph, inputs, {"": np.zeros(64, np.int64)}, {}, b"")
    assert json.loads(page["policy.json"])["golden"]["rows"] == web.NUMBERS // (4 * 40 * 44)


def test_a_strangers_bundle_gets_our_page(cart: Path, tmp_path: Path, runtime: Path) -> None:
    held = members(cart)
    held["extras/web/page.js"] = b"steal()"
    changed = pack(tmp_path / "x.rlpolicy", sealed(held, manifest_of(held)))
    folder = web.write_page(changed, tmp_path / "page", runtime)
    assert (folder / "page.js").read_bytes() == (HOME / "page.js").read_bytes()
    assert "MIT License" in (folder / "onnxruntime-web.LICENSE.txt").read_text()
    names = {*web.PAGE, *web.RUNTIME_FILES, "policy.json", "policy.onnx"}
    assert {file.name for file in folder.iterdir()} == names | {"onnxruntime-web.LICENSE.txt"}


def test_a_bundle_that_was_changed_gets_none(tmp_path: Path, runtime: Path) -> None:
    held = members(make_bundle(tmp_path / "hop.rlpolicy"))
    held["policy.onnx"] = held["policy.onnx"][:-1]
    changed = pack(tmp_path / "x.rlpolicy", held)
    with pytest.raises(BundleError):
        web.write_page(changed, tmp_path / "page", runtime)
    assert not (tmp_path / "page").exists()


def test_the_page_asks_nobody_else() -> None:
    text = "".join((HOME / name).read_text() for name in web.PAGE)
    assert "://" not in text and "eval(" not in text and "innerHTML" not in text
    assert "default-src 'none'" in text and "connect-src 'self'" in text
    for name in web.RUNTIME_FILES:
        assert name in text


# ----- Where the runtime comes from ---------------------------------------------------------------


def test_a_folder_that_lacks_the_runtime_is_named(cart: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks ort\.wasm\.bundle\.min\.mjs, ort-wasm"):
        web.write_page(cart, tmp_path / "page", tmp_path)


def test_without_npm_the_error_says_what_to_do(
    cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--out", str(tmp_path / "page"), "--write-only"]
    assert main(["web", str(cart), *words]) == 2
    said = capsys.readouterr().err
    assert "install npm" in said and "--runtime" in said and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="a script stands for npm")
def test_an_npm_that_gives_something_else_is_refused(
    cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match="npm did not give it; the page needs onnxruntime-web@"):
        web.write_page(cart, tmp_path / "page")


# ----- Serving ------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """A folder, and its address."""
    with web.make_server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_have_types_that_browsers_insist_on(tmp_path: Path, served: str) -> None:
    wanted = {"a.mjs": "text/javascript", "a.wasm": "application/wasm", "a.js": "text/javascript"}
    for name, kind in wanted.items():
        (tmp_path / name).write_bytes(b"x")
        with urllib.request.urlopen(f"{served}/{name}") as answer:
            assert answer.headers["Content-Type"] == kind and answer.read() == b"x"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{served}/../../../etc/passwd")


def test_a_port_that_is_taken_is_named(served: str, tmp_path: Path) -> None:
    port = int(served.rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port} cannot be used"):
        web.make_server(tmp_path, port)
    with pytest.raises(UserError, match="--port"):
        web.make_server(tmp_path, 99999)


@pytest.mark.skipif(os.name == "nt", reason="stopped as POSIX does")
def test_the_command_serves_until_it_is_stopped(cart: Path, tmp_path: Path, runtime: Path) -> None:
    command = [sys.executable, "-m", "rlgym", "web", str(cart), "--port", "0"]
    words = ["--out", str(tmp_path / "page"), "--runtime", str(runtime)]
    process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        with urllib.request.urlopen(f"{found}policy.json") as answer:
            assert json.load(answer)["world"] == "CartPole-v1"
        process.send_signal(signal.SIGTERM)  # jobs in the background may be deaf to SIGINT
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# ----- What it does -------------------------------------------------------------------------------


def node(script: str) -> Any:
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node here")
    command = [program, "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def address(name: str) -> str:
    return json.dumps(Path(str(HOME / name)).as_uri())


def test_the_cart_is_gymnasiums() -> None:
    actions = np.random.default_rng(2).integers(0, 2, 40).tolist()
    found = node(
        f"const {{ CartPole }} = await import({address('cartpole.js')});"
        f"const world = new CartPole({START}); const trace = [];"
        f"for (const a of {actions}) {{ world.step(a); trace.push([world.over, ...world.state]); }}"
        "console.log(JSON.stringify(trace));"
    )
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    env.state = np.array(START)
    seen = []
    for action, (over, *state) in zip(actions, found, strict=True):
        obs, _, terminated, _, _ = env.step(action)
        np.testing.assert_allclose(state, obs, atol=1e-5)
        assert over == terminated
        seen.append(terminated)
        if terminated:
            break
    assert seen[-1] and len(seen) > 5


def test_what_the_world_is_told_is_what_python_says() -> None:
    graph = read_policy(make_policy("sac-mixed"))
    outputs = run(graph, arrays_of(graph, observations("sac-mixed", 8)))
    given = {name: array.ravel().tolist() for name, array in outputs.items()}
    actions = [web._action(action) for action in graph.actions]
    found = node(
        f"const {{ Policy }} = await import({address('policy.js')});"
        f"const about = {json.dumps({'actions': actions, 'state': 0, 'inputs': []})};"
        f"const policy = new Policy(null, null, about);"
        f"console.log(JSON.stringify(policy.toWorld({json.dumps(given)})));"
    )
    for key, wanted in to_world(graph, outputs).items():
        np.testing.assert_allclose(found[key], np.ravel(wanted), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def real_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web through npm, once."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    folder = tmp_path_factory.mktemp("runtime")
    try:
        web._fetch(folder)
    except UserError as error:
        pytest.skip(str(error))
    return folder


def opened(folder: Path) -> dict[str, str]:
    """Open a page in a real browser; returns what it wrote down, and its visible text."""
    assert BROWSER is not None
    with web.make_server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["--headless", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
        words += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        address = f"http://127.0.0.1:{server.server_port}/"
        done = subprocess.run(
            [BROWSER, *words, address], capture_output=True, text=True, timeout=240
        )
        server.shutdown()
    (body,) = re.findall(r"<body([^>]*)>", done.stdout)
    found = {key: html.unescape(value) for key, value in re.findall(r'data-(\w+)="([^"]*)"', body)}
    cells = re.findall(r'<td id="(\w+)"[^>]*>([^<]*)<', done.stdout)
    return {**{key: html.unescape(value) for key, value in cells}, **found}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_browser_balances_the_pole_as_python_does(
    cart: Path, real_runtime: Path, tmp_path: Path
) -> None:
    found = opened(web.write_page(cart, tmp_path / "page", real_runtime))
    assert found["state"] == "done", found
    assert float(found["error"]) == 0.0 and found["steps"] == "500"
    policy = Policy(Bundle(cart), "numpy")
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    env.state = np.array(START)
    obs = np.float32(START)
    for state in json.loads(found["trace"])[1:]:
        obs, *_ = env.step(int(policy.act(obs)))
        np.testing.assert_allclose(state, obs, atol=1e-4)
    assert "of 500; the last episode had 500" in found["world"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["squashed", "nested", "nature", "lstm"])
def test_a_browser_repeats_the_golden_pairs(kind: str, real_runtime: Path, tmp_path: Path) -> None:
    bundle = kind_of(tmp_path / "x.rlpolicy", kind)
    found = opened(web.write_page(bundle, tmp_path / "page", real_runtime))
    assert found["state"] == "done", found
    assert float(found["error"]) <= 1e-5
    assert "20 recorded observations" in found["golden"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_page_whose_policy_differs_says_no(
    cart: Path, real_runtime: Path, tmp_path: Path
) -> None:
    folder = web.write_page(cart, tmp_path / "page", real_runtime)
    about = json.loads((folder / "policy.json").read_text())
    about["golden"]["world"][""][3] = 1 - about["golden"]["world"][""][3]
    (folder / "policy.json").write_text(json.dumps(about))
    found = opened(folder)
    assert found["golden"].startswith("NO: ") and float(found["error"]) == 1.0
    (folder / "ort.wasm.bundle.min.mjs").unlink()
    found = opened(folder)
    assert found["state"] == "failed" and "rlgym web puts it there" in found["golden"]
