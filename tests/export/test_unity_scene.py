"""From a scene of the stand-in to the file that goes back into it."""

from __future__ import annotations

import pytest
import torch

import rlgym
from rlgym.agents.policy import ActorCritic
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import NetworkConfig
from rlgym.export.bundle import UNITY, write_bundle
from rlgym.export.describe import describe
from rlgym.export.golden import record
from rlgym.export.read import read_policy
from rlgym.export.verify import verify
from tests.export.bundles import members
from tests.export.unity_loader import Behavior, failures

SCENES = {
    "3dball": {"normalize_obs": True},
    "grid": {},
    "hybrid": {"squash": True},
    "buffer": {"recurrent": "lstm", "recurrent_size": 8},
    "camera": {},
    "memory": {"recurrent": "gru", "recurrent_size": 8},
}
QUICK = ("3dball",)


@pytest.mark.parametrize(
    "scene", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SCENES]
)
@pytest.mark.parametrize("soft", [False, True], ids=["ppo", "sac"])
def test_a_scene_takes_its_policy_back(scene, soft, tmp_path):
    settings = SCENES[scene]
    if soft:
        if "recurrent" in settings:
            pytest.skip("SAC has no memory")
        settings = {**settings, "squash": True, "std": "state"}
    env = rlgym.make_vec("unity:standin", scene=scene, seed=1)
    try:
        kind = SoftPolicy if soft else ActorCritic
        config = NetworkConfig(hidden=(16,), **settings)
        policy = kind.build(env.obs_layout, env.action_layout, config, seed=3)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        graph = read_policy(policy, masked=env.mask_size > 0)
        golden = record(policy, env, graph, 40)
        spec = env.unwrapped.behavior_spec
        deployment = env.unwrapped.deployment()
    finally:
        env.close()
    path = tmp_path / "scene.rlpolicy"
    write_bundle(path, graph, golden, describe(graph, deployment, {"run": "a"}), ("unity",))
    (check,) = [check for check in verify(path) if check.name == "unity"]
    assert check.passed and not check.skipped, check.text
    sensors = tuple(one.decoded_shape for one in spec.observations)
    behavior = Behavior(sensors, spec.continuous, spec.branches)
    for deterministic in (False, True):
        assert failures(members(path)[UNITY], behavior, deterministic) == []
