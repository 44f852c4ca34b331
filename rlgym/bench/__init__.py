"""Measured promises: one module per claim, run with `rlgym bench NAME`."""
