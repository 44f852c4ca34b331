"""Worlds with random spaces, for property tests."""

import gymnasium
import numpy as np
from gymnasium import spaces
from hypothesis import strategies as st


class RandomWorld(gymnasium.Env):
    """Draws observations of any space from np_random; episodes end at random."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(self.observation_space), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        dice = self.np_random.random(3)
        terminated, truncated = bool(dice[0] < 0.2), bool(dice[1] < 0.2)
        return self._draw(self.observation_space), float(dice[2]), terminated, truncated, {}

    def _draw(self, space):
        rng = self.np_random
        if isinstance(space, spaces.Dict):
            return {key: self._draw(part) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._draw(part) for part in space.spaces)
        if isinstance(space, spaces.Discrete):
            return space.dtype.type(rng.integers(space.n) + space.start)
        if isinstance(space, spaces.MultiDiscrete):
            return (rng.integers(space.nvec) + space.start).astype(space.dtype)
        if isinstance(space, spaces.MultiBinary):
            return rng.integers(0, 2, space.shape).astype(space.dtype)
        if space.dtype.kind in "iu":
            return rng.integers(space.low, space.high, endpoint=True).astype(space.dtype)
        return rng.uniform(-1, 1, space.shape).astype(space.dtype)


SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
LEAVES = st.one_of(
    st.builds(lambda shape: spaces.Box(-1, 1, shape, np.float32), SHAPES),
    st.builds(lambda shape: spaces.Box(-np.inf, np.inf, shape, np.float32), SHAPES),
    st.builds(lambda shape: spaces.Box(0, 255, shape, np.uint8), SHAPES),
    st.builds(lambda shape: spaces.Box(-5, 5, shape, np.int32), SHAPES),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-2, 2)
    ),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(lambda shape: spaces.MultiBinary(list(shape)), SHAPES.filter(len)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(
            st.sampled_from(["a", "b c", "d.e", "zeta"]), inner, min_size=1, max_size=3
        ).map(spaces.Dict),
    ),
    max_leaves=5,
)
