"""Gymnasium's classic control worlds as batched tensors, equal to it in each step.

Sources of the dynamics are named at each world; constants are Gymnasium's. Scores are evaluated in
Gymnasium's own worlds.
"""

from rlgym.envs.classic.acrobot import Acrobot
from rlgym.envs.classic.cartpole import CartPole
from rlgym.envs.classic.mountain_car import MountainCar, MountainCarContinuous
from rlgym.envs.classic.pendulum import Pendulum

__all__ = ["Acrobot", "CartPole", "MountainCar", "MountainCarContinuous", "Pendulum"]
