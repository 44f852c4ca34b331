"""Worlds behind one contract: many copies of an environment as one batch of tensors."""
