"""The registers' bits, the command block and the lists of the DES card, and where they lie in a slot of control memory.

Source: docs/des-card.md, "Command block and lists", "Registers".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

SIGNATURE: Final = int.from_bytes(b"DES1", "little")
BUSY, INTERRUPT = 1, 2  # status
ACKNOWLEDGE, RESET = 1, 2  # control

SET_KEY, ENCRYPT, DECRYPT = 1, 2, 3  # cbCommand
CHAINED: Final = 0x100
DONE: Final = 1  # cbStatus
ERRORS: Final = {
    0: "it interrupted without one",
    2: "no such command",
    3: "a list of no entries, of more than 256, or with an empty one",
    4: "not a multiple of 8 bytes, or not as many in as out",
    5: "no key",
    6: "an error on the bus",
}
CIPHER_BLOCK: Final = 8
LIST_ENTRIES: Final = 256

_BLOCK: Final = struct.Struct("<6I")
_ENTRY: Final = struct.Struct("<2I")

# a slot: the command block, key and vector, padding, the two lists
KEY_AT, PAD_AT, INPUT_AT = 32, 48, 64
OUTPUT_AT: Final = INPUT_AT + LIST_ENTRIES * _ENTRY.size
SLOT_SIZE: Final = OUTPUT_AT + LIST_ENTRIES * _ENTRY.size


def write_command(
    memory: memoryview,
    offset: int,
    address: int,
    code: int,
    inputs: Sequence[tuple[int, int]],
    outputs: Sequence[tuple[int, int]],
) -> None:
    """Write command and lists into the slot at `offset`, whose bus address is `address`; its status is then 0."""
    _BLOCK.pack_into(memory, offset, code, 0, address + INPUT_AT, len(inputs), address + OUTPUT_AT, len(outputs))
    for at, entries in ((INPUT_AT, inputs), (OUTPUT_AT, outputs)):
        for number, entry in enumerate(entries):
            _ENTRY.pack_into(memory, offset + at + number * _ENTRY.size, *entry)


def read_status(memory: memoryview, offset: int) -> int:
    """The status word in the slot at `offset`."""
    status: int = _BLOCK.unpack_from(memory, offset)[1]
    return status
