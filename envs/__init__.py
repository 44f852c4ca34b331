"""Worlds, installed and imported as `rlgym.envs`."""
