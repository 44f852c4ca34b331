"""A player without Unity: small scenes behind the protocol that a Unity build speaks.

    python -m rlgym.envs.unity.standin --scene 3dball --agents 12 --mlagents-port 5004

It is the gRPC client, as every Unity player is, and is started by the same code. `scenes` holds
what can be played, `academy` the life of agents between two messages, `__main__` the wire and the
ways in which a player can fail. It needs neither torch nor Unity.
"""
