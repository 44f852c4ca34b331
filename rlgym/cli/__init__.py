"""The `rlgym` command: one module per verb."""
