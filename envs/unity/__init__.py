"""Scenes of Unity ML-Agents: player processes, their protocol, and their agents as slots.

    player <- gRPC -> connector (bytes) -> codec (arrays) -> slots -> world -> vector_env

`compat` and `messages` make Unity's own Python package and message types work on today's Python.
"""
