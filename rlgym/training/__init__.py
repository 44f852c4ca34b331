"""The loops: collect, learn, log, save, resume."""
