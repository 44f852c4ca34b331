"""Robots, motion clips and their licences, installed as `rlgym.assets`."""
