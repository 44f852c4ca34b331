"""Below the `process` backend: the processes that step worlds, and how one talks to them.

link      the parent's end: starts workers, writes to them, hears from them, ends them
worker    what runs in such a process
life      how such a process ends with its parent, and its end of the pipes
wire      the bytes that go both ways
slab      the one block of memory that all of them share
"""
