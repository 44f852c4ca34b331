"""Recipes: files with which someone else's tools make or run what cannot be made or run here.

Each is written from the policy and its manifest, with the names, shapes and rates of this policy in
it. None was executed on the hardware or service that it is for, and each says so; what of it is
Python is run by our tests.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from rlgym.deploy.graph import Graph
from rlgym.export.golden import TOLERANCE, Golden

PAIRS = 32
"""Golden pairs that a recipe brings along, at most."""
VERSION = "1.0.0"
"""Of a component; whoever publishes a second one counts on."""


def tensorrt(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> dict[str, bytes]:
    """Commands for `trtexec` on a Jetson or a PC, golden inputs for it, and what compares."""
    rows = golden.spread(PAIRS)
    batch = len(rows)
    files: dict[str, bytes] = {}
    loads, shapes = [], {"min": [], "opt": [], "max": []}
    for port in graph.inputs:
        name = f"{_plain(port.name)}.bin"
        files[name] = np.ascontiguousarray(golden.inputs[port.name][rows]).tobytes()
        loads.append(f"{port.name}:{name}")
        for kind, size in (("min", 1), ("opt", 1), ("max", batch)):
            shapes[kind].append(f"{port.name}:{'x'.join(map(str, (size, *port.shape)))}")
        shapes.setdefault("run", []).append(
            f"{port.name}:{'x'.join(map(str, (batch, *port.shape)))}"
        )
    files["build.sh"] = _TRTEXEC.format(
        bounds=" ".join(
            f"--{kind}Shapes={','.join(shapes[kind])}" for kind in ("min", "opt", "max")
        ),
        loads=",".join(loads),
        run=",".join(shapes["run"]),
    ).encode()
    expected = {
        port.name: golden.outputs[port.name][rows].astype(float).ravel().tolist()
        for port in graph.outputs
    }
    files["expected.json"] = (json.dumps(expected) + "\n").encode()
    files["compare.py"] = _COMPARE.encode()
    return files


def edgetpu(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> dict[str, bytes]:
    """Commands for Google's Edge TPU compiler, beside the full int8 LiteRT file that it takes."""
    from rlgym.export import tflite

    data = tflite.to_tflite(graph, "full", golden.inputs)
    return {"policy.tflite": data, "build.sh": _EDGETPU.encode()}


def greengrass(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> dict[str, bytes]:
    """A recipe of AWS IoT Greengrass v2 that runs the bundle with rlgym-deploy."""
    name = _plain(str(description.get("provenance", {}).get("run") or "policy"))
    bundle = f"{name}.rlpolicy"
    component = f"com.example.rlgym.{name}"
    artifacts = "{artifacts:path}"
    recipe = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": component,
        "ComponentVersion": VERSION,
        "ComponentDescription": f"The policy '{name}', exported by rlgym",
        "ComponentPublisher": "you",
        "ComponentConfiguration": {"DefaultConfiguration": {"robot": "dry-run", "seconds": "3600"}},
        "Manifests": [
            {
                "Platform": {"os": "linux"},
                "Lifecycle": {
                    "install": {
                        "Script": (
                            "python3 -m venv {work:path}/venv && {work:path}/venv/bin/pip install "
                            f"{artifacts}/rlgym_deploy.whl"
                        ),
                        "Timeout": 600,
                    },
                    "run": {
                        "Script": (
                            f"{{work:path}}/venv/bin/rlgym-deploy {artifacts}/{bundle} "
                            "--robot {configuration:/robot} --seconds {configuration:/seconds}"
                        )
                    },
                },
                "Artifacts": [
                    {"URI": f"s3://BUCKET/{component}/{VERSION}/{bundle}"},
                    {"URI": f"s3://BUCKET/{component}/{VERSION}/rlgym_deploy.whl"},
                ],
            }
        ],
    }
    return {
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False).encode(),
        "README.md": _GREENGRASS.format(
            bundle=bundle, component=component, version=VERSION
        ).encode(),
    }


def sagemaker(graph: Graph, golden: Golden, description: Mapping[str, Any]) -> dict[str, bytes]:
    """A model archive for a SageMaker endpoint: the ONNX and the four functions it is served by."""
    from rlgym.export.onnx import to_onnx

    actions = [
        {
            "key": action.key,
            "output": action.output,
            **{
                name: None if (value := getattr(action, name)) is None else value.tolist()
                for name in ("scale", "offset", "low", "high")
            },
        }
        for action in graph.actions
    ]
    contract = {
        "inputs": {p.name: {"shape": p.shape, "dtype": p.dtype} for p in graph.inputs},
        "actions": actions,
    }
    members = {
        "policy.onnx": to_onnx(graph).SerializeToString(),
        "contract.json": (json.dumps(contract, allow_nan=True) + "\n").encode(),
        "code/inference.py": _SAGEMAKER.encode(),
        "code/requirements.txt": b"numpy\nonnxruntime\n",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return {"model.tar.gz": gzip.compress(packed.getvalue(), mtime=0)}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "policy"


_TRTEXEC = """\
#!/bin/sh
# Builds a TensorRT engine of the policy on the machine that will run it, and holds it against the
# golden pairs. Written by rlgym; not run by it: it needs trtexec (JetPack, or TensorRT on a PC).
# Start it in this folder, with policy.onnx of the bundle beside it.
set -e
trtexec --onnx=policy.onnx --saveEngine=policy.engine {bounds} "$@"
trtexec --loadEngine=policy.engine --shapes={run} --loadInputs={loads} \\
        --exportOutput=found.json --iterations=1 --warmUp=0 --duration=0
python3 compare.py found.json
# Faster and less exact: sh build.sh --fp16, then python3 compare.py found.json 0.01
"""

_COMPARE = f'''\
"""Compare what trtexec --exportOutput wrote with the golden outputs. Needs Python alone."""

import json
import sys

found = {{entry["name"]: entry["values"] for entry in json.load(open(sys.argv[1]))}}
expected = json.load(open("expected.json"))
allowed = float(sys.argv[2]) if len(sys.argv) > 2 else {10 * TOLERANCE:g}
worst = 0.0
for name, values in expected.items():
    if name not in found or len(found[name]) != len(values):
        sys.exit(f"output {{name}}: {{len(found.get(name, []))}} values instead of {{len(values)}}")
    for a, b in zip(found[name], values):
        worst = max(worst, abs(a - b) if a == a else float("inf"))  # NaN differs from itself
print(f"largest error {{worst:.2g}}, {{allowed:g}} is allowed")
sys.exit(not worst <= allowed)
'''

_EDGETPU = """\
#!/bin/sh
# Compiles the policy for a Coral Edge TPU. Written by rlgym; not run by it: edgetpu_compiler is
# Google's and exists for Debian on x86-64. Layers of bytes run on the Edge TPU; the normaliser
# before and the bounds after them are floats and stay on the processor, as the compiler will say.
set -e
edgetpu_compiler --show_operations policy.tflite     # writes policy_edgetpu.tflite
"""

_GREENGRASS = """\
# AWS IoT Greengrass v2

Written by rlgym from the policy; not run by it on AWS. With your bucket in place of BUCKET:

    pip wheel --no-deps -w . PATH/TO/rlgym/deploy && mv rlgym_deploy-*.whl rlgym_deploy.whl
    aws s3 cp {bundle} s3://BUCKET/{component}/{version}/
    aws s3 cp rlgym_deploy.whl s3://BUCKET/{component}/{version}/
    aws greengrassv2 create-component-version --inline-recipe fileb://recipe.yaml

The component starts with `--robot dry-run`, which moves nothing; set `robot` and `seconds` in the
deployment's configuration when the contract with the robot has been checked.
"""

_SAGEMAKER = '''\
"""Serves a policy: POST {"inputs": {"obs": [[...], ...]}} gives {"actions": {"": [[...], ...]}}."""

import json
import os

import numpy as np
import onnxruntime


def model_fn(model_dir):
    """Load the network and its contract."""
    with open(os.path.join(model_dir, "contract.json"), encoding="utf-8") as file:
        contract = json.load(file)
    path = os.path.join(model_dir, "policy.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), contract


def input_fn(body, content_type):
    """Read one request."""
    if content_type != "application/json":
        raise ValueError(f"send application/json, not {content_type}")
    return json.loads(body)["inputs"]


def predict_fn(inputs, model):
    """Decide; actions are in the world's units."""
    session, contract = model
    missing = sorted(set(contract["inputs"]) - set(inputs))
    if missing:
        raise ValueError(f"the policy needs the inputs {missing}, too")
    arrays = {
        name: np.asarray(inputs[name], port["dtype"]).reshape(-1, *port["shape"])
        for name, port in contract["inputs"].items()
    }
    names = [action["output"] for action in contract["actions"]]
    found = {}
    for action, value in zip(contract["actions"], session.run(names, arrays)):
        if action["scale"] is not None:
            value = np.asarray(action["offset"]) + np.asarray(action["scale"]) * value
            value = np.clip(value, action["low"], action["high"])
        found[action["key"]] = value.tolist()
    return found


def output_fn(prediction, accept):
    """Write one answer."""
    return json.dumps({"actions": prediction})
'''
