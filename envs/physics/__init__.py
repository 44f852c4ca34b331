"""Rigid-body engines behind one batched protocol, and the robots that they simulate."""
