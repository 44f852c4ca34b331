"""Learners and networks, installed and imported as `rlgym.agents`."""
