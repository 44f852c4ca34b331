"""Policy times world: collectors and the time-major tensors that they fill."""
