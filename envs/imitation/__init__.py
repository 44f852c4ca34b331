"""The motion-imitation task: pure functions of batched arrays, and the worlds made of them.

Importing it registers "rlgym/Imitate-v0" with Gymnasium; `rlgym.make_vec` knows the id already, as
one batch of worlds.
"""

import gymnasium

WORLD = "rlgym/Imitate-v0"

gymnasium.register(id=WORLD, entry_point="rlgym.envs.imitation.world:Imitate")
