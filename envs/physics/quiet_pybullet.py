"""PyBullet, imported without the line that its first import prints on standard error.

from rlgym.envs.physics.quiet_pybullet import pybullet as p
"""

from rlgym.envs.gymnasium.bullet import GREETING, without_noise

with without_noise(GREETING, descriptor=2):
    import pybullet

__all__ = ["pybullet"]
