"""Firmware for machines without a guest: it does nothing, and lets the CPU sleep while it does so.

A CPU that runs what happens to be in memory would program devices at random; one that waits in a loop costs the host a
core. Targets that can begin with the CPU switched off need none of this.
"""

from __future__ import annotations

import struct

from busdma.qemu.qtest import Qtest

ROM = 64 << 10  #: bytes


def x86() -> bytes:
    """64 KiB, at the reset vector ``cli; hlt``, again and again."""
    code = bytes.fromhex("faf4ebfc")
    return bytes(ROM - 16) + code + bytes(16 - len(code))


def quiet(qtest: Qtest) -> None:
    """Have the interval timer of a PC, which ticks from power-on, count down once and then be silent.

    Where QEMU's time does not wait for ours it would tick without a pause, and QEMU keep a core of the host busy.

    Source: Intel 8254 data sheet, "Mode definitions" (mode 0), "Control word format".
    """
    for port, value in ((0x43, 0x30), (0x40, 0xFF), (0x40, 0xFF)):
        qtest.port_write(port, 1, value)


def sparc(power_down: int) -> bytes:
    """64 KiB that store to the register at physical address `power_down`, a multiple of 1 KiB, again and again.

    Source: SPARC Architecture Manual V8, B.4 (STBA), B.9 (SETHI), B.21 (BA); I.4 (ASI 0x20 to 0x2F).
    """
    high, low = divmod(power_down, 1 << 32)
    sethi, stba = 0x0300_0000 | low >> 10, 0xC0A8_4000 | (0x20 | high) << 5
    return struct.pack(">4I", sethi, stba, 0x10BF_FFFF, 0x0100_0000) + bytes(ROM - 16)


def alpha() -> bytes:
    """An ELF file, loaded at physical address 0: ``wtint`` (wait for an interrupt), again and again.

    Source: Alpha Architecture Handbook 4, appendix C (opcodes, functions of PALcode); System V ABI, chapter 4 (ELF).
    """
    code = struct.pack("<2I", 0x0000_003E, 0b110000 << 26 | 31 << 21 | 0x1F_FFFE)  # call_pal wtint; br back to it
    header, segment = 64, 56  # bytes
    at = header + segment
    entry = 0xFFFF_FC00_0000_0000  # where the kernel has physical memory: QEMU's PALcode runs there
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little-endian
    return b"".join(
        (
            identity,
            struct.pack("<2HI3QI6H", 2, 0x9026, 1, entry, header, 0, 0, header, segment, 1, 0, 0, 0),  # of an Alpha
            struct.pack("<2I6Q", 1, 7, at, entry, entry, len(code), len(code), 8),  # load it
            code,
        )
    )
