"""The tests; a regular package, so that no `tests` in site-packages can stand in for it."""
