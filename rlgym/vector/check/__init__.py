"""The contract as tests that run on anyone's env: `rlgym.vector.contract.check`, `rlgym doctor`.

conformance      check: takes an env, a world or an id, runs the rules, returns findings
rules            what a vector env must do; rules_of_output: what its arrays must be
world_check      what a single world must do
trial            what a rule gets to work with, and what it answers
"""
