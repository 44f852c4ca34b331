"""The shared block: its layout, what it shows, and that nothing stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlgym.vector.workers.slab import CACHE_LINE, Slab, attach, lay_out

PLAN = {
    "obs:": ((3, 5), np.dtype(np.float32)),
    "flags": ((3,), np.dtype(np.bool_)),
    "empty": ((3, 0), np.dtype(np.bool_)),
    "actions:gear": ((3,), np.dtype(np.int64)),
}


def test_arrays_begin_on_cache_lines_and_do_not_overlap() -> None:
    offsets, size = lay_out(PLAN)
    assert all(offset % CACHE_LINE == 0 for offset in offsets.values())
    # 60 bytes take one line, 3 take one, 0 take none
    assert offsets == {"obs:": 0, "flags": 64, "empty": 128, "actions:gear": 128}
    assert size >= 192


def test_two_views_of_one_block_are_the_same_memory() -> None:
    slab = Slab()
    mine = slab.allocate(PLAN)
    yours = attach(slab.handle, PLAN)
    assert {name: (a.shape, a.dtype) for name, a in yours.items()} == PLAN
    assert not mine["obs:"].any()
    yours["obs:"][2, 4] = 7.0
    mine["actions:gear"][:] = [1, 2, 3]
    assert mine["obs:"][2, 4] == 7.0
    assert mine["obs:"].sum() == 7.0
    assert yours["actions:gear"].tolist() == [1, 2, 3]
    slab.close()
    slab.close()  # again is harmless
    mine["flags"][:] = True  # what is mapped stays valid
    assert yours["flags"].all()


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are how POSIX does it")
def test_a_child_writes_through_the_descriptor_it_inherits() -> None:
    slab = Slab()
    mine = slab.allocate(PLAN)
    code = (
        "import sys, numpy as np; from rlgym.vector.workers.slab import attach\n"
        "plan = {'obs:': ((3, 5), np.dtype('f4'))}\n"
        "attach(sys.argv[1], plan)['obs:'][:] = 3"
    )
    subprocess.run([sys.executable, "-c", code, slab.handle], pass_fds=slab.pass_fds, check=True)
    assert (mine["obs:"] == 3).all()
    slab.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_nothing_is_left_of_a_slab_that_is_let_go() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:rlgym")

    before, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    slab = Slab()
    arrays = slab.allocate(PLAN)
    assert mapped() == before + 1
    slab.close()
    del arrays
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
