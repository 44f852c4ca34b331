"""Tiny worlds: some a learner must solve in seconds, others crash, hang or lie on purpose."""
