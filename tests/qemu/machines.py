"""The QEMU machines of these tests, with CPUs that do nothing."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from busdma.qemu.process import PACKAGES, Qemu, image
from busdma.qemu.ram import SharedRam

RAM = 32 << 20


def pc_rom() -> bytes:
    """64 KiB; at the reset vector ``cli; hlt``, again and again."""
    return bytes(0xFFF0) + bytes.fromhex("fa f4 eb fc") + bytes(12)


def ss5_rom() -> bytes:
    """64 KiB: stores to the power-down register of the APC, physical 0x6A000000, again and again (SPARC V8, STBA)."""
    return struct.pack(">4I", 0x03000000 | 0x6A000000 >> 10, 0xC0A84000 | 0x20 << 5, 0x10BFFFFF, 0x01000000) + bytes(
        65520
    )


MACHINES = {"x86_64": ("pc", pc_rom), "sparc": ("SS-5", ss5_rom)}


def need(target: str) -> None:
    """Skip the test without that QEMU; where everything must run, fail."""
    name = f"qemu-system-{target}"
    if shutil.which(name) is None:
        why = f"{name} is missing: apt install {PACKAGES[target]}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)


@contextmanager
def running(target: str = "x86_64", *arguments: str, spin: int = 0) -> Iterator[tuple[Qemu, SharedRam]]:
    """A machine of `target`, and its memory."""
    need(target)
    machine, rom = MACHINES[target]
    firmware = image("firmware", rom())
    try:
        with SharedRam(RAM) as ram:
            bios = f"/proc/self/fd/{firmware}"
            qemu = Qemu(
                target,
                ["-M", machine, "-bios", bios, *ram.arguments(), *arguments],
                fds=[firmware, ram.fd],
                spin=spin,
            )
            with qemu:
                yield qemu, ram
    finally:
        os.close(firmware)
