"""The C that is written does on a Cortex-M4 what it does here: its own test program, under qemu."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

from rlgym.deploy.reference import run
from rlgym.export.c99 import pack_actions, pack_inputs, write_c99
from rlgym.export.read import read_policy
from tests.export.policies import make_policy, observations
from tests.export.test_graph import arrays_of

COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{' and '.join(MISSING)} not found: on Debian they are in gcc-arm-none-eabi, "
        "libnewlib-arm-none-eabi and qemu-system-arm",
    ),
]

STARTUP = """\
#include <stdint.h>

extern uint32_t stack_top;
void _start(void);

static void fault(void)
{
    for (;;)
        ;
}

static void reset(void)
{
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the FPU, or its first use faults */
    __asm__ volatile("dsb\\n isb");
    _start();
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, reset, fault, fault, fault, fault, fault,
};
"""

# The emulator puts .data where it belongs, so nothing is copied at the start.
LINKER = """\
MEMORY { FLASH (rx) : ORIGIN = 0x00000000, LENGTH = 4M
         RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) KEEP(*(.init)) KEEP(*(.fini)) } > FLASH
    .ARM.exidx : { *(.ARM.exidx*) } > FLASH
    .data : { *(.data*) } > RAM
    .bss : { __bss_start__ = .; *(.bss*) *(COMMON) __bss_end__ = .; } > RAM
    . = ALIGN(8);
    end = .;
    __end__ = .;
    stack_top = ORIGIN(RAM) + LENGTH(RAM);
}
"""
CHIP = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
MACHINE = ("-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-monitor", "none")
SEMIHOSTING = ("-serial", "none", "-semihosting-config", "enable=on,target=native")


def run_on_cortex(folder, *flags: str) -> tuple[int, str]:
    """Exit status and output of the test program in a folder."""
    (folder / "startup.c").write_text(STARTUP)
    (folder / "chip.ld").write_text(LINKER)
    sources = [str(folder / name) for name in ("policy.c", "policy_test.c", "startup.c")]
    program = str(folder / "check.elf")
    language = ["-std=c99", "-Wall", "-Wextra", "-Wdouble-promotion", *flags]
    linking = ["--specs=rdimon.specs", "-T", str(folder / "chip.ld"), "-o", program, "-lm"]
    command = [COMPILER, *CHIP, *language, *sources, *linking]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    command = [EMULATOR, *MACHINE, *SEMIHOSTING, "-kernel", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    return done.returncode, done.stdout + done.stderr


def write(folder, kind: str, weights, tolerance: float, shift: float = 0.0) -> None:
    graph = read_policy(make_policy(kind))
    inputs = arrays_of(graph, observations(kind, 32))
    actions = pack_actions(graph, run(graph, inputs)) + np.float32(shift)
    write_c99(
        graph,
        folder,
        weights=weights,
        golden=(pack_inputs(graph, inputs), actions),
        tolerance=tolerance,
    )


@pytest.mark.parametrize(
    ("kind", "weights", "tolerance"),
    [
        ("squashed", "float32", 1e-5),
        ("squashed", "int8", 1e-2),
        ("sac", "float32", 1e-5),
        ("gru", "float32", 1e-5),
        ("lstm", "int8", 2e-2),
        ("discrete", "float32", 0.0),
    ],
)
@pytest.mark.parametrize("flags", [("-O2",), ("-O3", "-ffast-math")], ids=["O2", "fast"])
def test_golden_pairs_and_the_guard(kind, weights, tolerance, flags, tmp_path):
    write(tmp_path, kind, weights, tolerance)
    status, said = run_on_cortex(tmp_path, *flags)
    found = re.search(r"worst error ([0-9.e+-]+), NaN gives (-?\d+)", said)
    assert found is not None, said
    assert float(found[1]) <= tolerance and found[2] == "-1", said
    assert status == 0, said


def test_a_difference_is_found_there_too(tmp_path):
    write(tmp_path, "squashed", "float32", 1e-5, shift=1e-3)
    status, said = run_on_cortex(tmp_path, "-O2")
    assert status != 0 and "worst error 0.00" in said, said
