"""The motion-imitation task: pure functions of batched arrays, and the worlds made of them."""
