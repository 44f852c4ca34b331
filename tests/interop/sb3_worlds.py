"""A world of any spaces, and tiny SB3 models whose actions vary."""

import copy
import warnings

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC, TD3

BOX = spaces.Box(-1, 1, (3,))
ARM = spaces.Box(np.array([-2, -1], np.float32), np.array([1, 3], np.float32))
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
MIXED = spaces.Dict(
    {"z": spaces.Box(-1, 1, (2,)), "a": spaces.Discrete(3), "m": spaces.MultiDiscrete([2, 4])}
)
PIXELS = spaces.Dict(
    {"privileged": BOX, "camera": IMAGE, "a": spaces.MultiBinary(2)}  # no key is special to SB3
)
QUICK = {
    PPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 2},
    A2C: {"n_steps": 16},
    SAC: {"learning_starts": 40, "buffer_size": 300, "batch_size": 16},
    TD3: {"learning_starts": 40, "buffer_size": 300, "batch_size": 16},
}


class World(gymnasium.Env):
    """Random observations; episodes of ten steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        reward = float(np.sum(action))
        return self.observation_space.sample(), reward, False, self.steps == 10, {}


def model_of(kind, observation_space, action_space, steps=64, **settings):
    """Train a little, then move the parameters so that actions differ between observations."""
    images = any(
        isinstance(part, spaces.Box) and part.dtype == np.uint8
        for part in getattr(observation_space, "spaces", {"": observation_space}).values()
    )
    settings = copy.deepcopy(settings)  # SB3 writes into policy_kwargs
    policy = "MlpPolicy"
    if isinstance(observation_space, spaces.Dict):
        policy = "MultiInputPolicy"
    elif images:
        policy = "CnnPolicy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = World(observation_space, action_space)
        model = kind(policy, env, seed=0, device="cpu", **(QUICK[kind] | settings))
        model.learn(steps)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(1.0 / (1 + parameter[0].numel()) ** 0.5 * torch.randn_like(parameter))
    return model


def observations(space, count=300, seed=3):
    """A batch of observations."""
    space.seed(seed)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: _dimmed(np.stack([obs[key] for obs in drawn])) for key in space.spaces}
    return _dimmed(np.stack(drawn))


def _dimmed(values):
    """Images get darker from the first to the last: noise alone looks the same to a network."""
    if values.ndim < 4:
        return values
    light = np.linspace(1, 0, len(values)).reshape(-1, 1, 1, 1)
    return (values * light).astype(values.dtype)
