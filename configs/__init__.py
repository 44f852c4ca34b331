"""Presets as YAML files, installed as `rlgym.configs`."""
