"""The words of a floppy disk controller: registers, commands, status, and the formats of 3.5-inch media.

Source: Intel 82077AA data sheet: 2.1 (registers), 5 (commands), 6 (status register encoding), table 5-1 (bytes of each
command).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from busdma.errors import DeviceFault

# registers, as offsets from the base (2.1)
DOR, MSR, FIFO, DIR, CCR = 2, 4, 5, 7, 7

MOTOR, DMA_GATE, NOT_RESET = 0x10, 0x08, 0x04  # DOR, with drive 0 selected (2.1.3)
READY, TO_HOST, BUSY = 0x80, 0x40, 0x10  # MSR (2.1.6)
DISK_CHANGED: Final = 0x80  # DIR (2.1.8)

# commands (table 5-1): all tracks of a cylinder, MFM
SPECIFY, WRITE_DATA, READ_DATA, RECALIBRATE, SENSE_INTERRUPT = 0x03, 0xC5, 0xC6, 0x07, 0x08
READ_ID, SEEK, PERPENDICULAR = 0x4A, 0x0F, 0x12
RESULT: Final = 7  #: bytes of READ DATA's, WRITE DATA's and READ ID's results

# status register 0 (6.1)
CODE, ABNORMAL, INVALID, POLLED = 0xC0, 0x40, 0x80, 0xC0
SEEK_END, EQUIPMENT_CHECK = 0x20, 0x10
NOT_WRITABLE: Final = 0x02  # status register 1 (6.2)

#: (which status register, bit): what it says (6.1 to 6.3)
WORDS: Final = {
    (0, 0x10): "track 0 was not found",
    (1, 0x80): "the end of the cylinder came before the end of the data",
    (1, 0x20): "CRC error",
    (1, 0x10): "overrun: the bus was too late for a byte",
    (1, 0x04): "no such sector",
    (1, 0x02): "the medium is write-protected; open its write-protect hole, or only read",
    (1, 0x01): "no address mark: the medium is not formatted like this",
    (2, 0x40): "the sector is marked as deleted",
    (2, 0x20): "in the data of the sector",
    (2, 0x10): "the heads are at another cylinder",
    (2, 0x02): "the track is marked as bad",
    (2, 0x01): "no data address mark",
}

BLOCK: Final = 512
SIZE_CODE: Final = 2  #: N: 128 << N bytes a sector
HEADS, CYLINDERS = 2, 80


class FdcFault(DeviceFault):
    """A command that failed. ``status``: status registers 0, 1 and 2, as far as the command has them."""

    def __init__(self, message: str, status: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.status = status

    @property
    def hopeless(self) -> bool:
        """Would another try end the same way?"""
        return len(self.status) > 1 and bool(self.status[1] & NOT_WRITABLE)


@dataclass(frozen=True, slots=True)
class Format:
    """How a medium is recorded: 80 cylinders of two tracks."""

    name: str
    rate: int  #: as in the configuration control register (2.1.9)
    sectors: int  #: a track
    gap: int  #: between sectors, for READ DATA and WRITE DATA
    step: int  #: the step rate field of SPECIFY (5.2.6): 3 or 4 ms, at this rate

    @property
    def cylinder(self) -> int:
        """Blocks of a cylinder."""
        return HEADS * self.sectors

    @property
    def blocks(self) -> int:
        """Of the whole medium."""
        return CYLINDERS * self.cylinder

    def place(self, lba: int) -> tuple[int, int, int]:
        """(cylinder, head, sector) of block `lba`. Sectors count from 1."""
        track, sector = divmod(lba, self.sectors)
        return track // HEADS, track % HEADS, sector + 1


#: in the order in which they are tried
FORMATS: Final = (
    Format("1.44 MB", rate=0, sectors=18, gap=0x1B, step=0xD),
    Format("720 KB", rate=2, sectors=9, gap=0x2A, step=0xE),
    Format("2.88 MB", rate=3, sectors=36, gap=0x1B, step=0xA),
)
LARGEST: Final = max(format.cylinder for format in FORMATS) * BLOCK  #: bytes of one transfer


def data_command(write: bool, lba: int, format: Format) -> bytes:
    """WRITE DATA, or READ DATA, from block `lba` to the end of its cylinder, or terminal count (5.1.1, 5.1.3)."""
    cylinder, head, sector = format.place(lba)
    code = WRITE_DATA if write else READ_DATA
    return bytes((code, head << 2, cylinder, head, sector, SIZE_CODE, format.sectors, format.gap, 0xFF))


def specify(format: Format) -> bytes:
    """SPECIFY: the step rate, the longest head unload time, the shortest head load time, DMA (5.2.6)."""
    return bytes((SPECIFY, format.step << 4 | 0xF, 1 << 1))


def perpendicular(format: Format) -> bytes:
    """PERPENDICULAR MODE of drive 0, as its medium wants it (5.2.11)."""
    return bytes((PERPENDICULAR, 0x80 | (0x04 if format.rate == 3 else 0)))


def name_command(command: bytes) -> str:
    """In words, such as ``READ DATA at cylinder 3, head 0, sector 5``."""
    names = {READ_DATA: "READ DATA", WRITE_DATA: "WRITE DATA", READ_ID: "READ ID", SEEK: "SEEK"}
    name = names.get(command[0], "RECALIBRATE")
    if command[0] == SEEK:
        return f"{name} to cylinder {command[2]}"
    return f"{name} at cylinder {command[2]}, head {command[3]}, sector {command[4]}" if len(command) > 4 else name


def failed(status: tuple[int, ...]) -> bool:
    """Did the command end otherwise than normally?"""
    return status[0] & CODE != 0


def name_status(status: tuple[int, ...]) -> str:
    """What the status registers say went wrong."""
    if status[0] & CODE == INVALID:
        return "the controller does not know the command"
    words = [words for (which, bit), words in WORDS.items() if which < len(status) and status[which] & bit]
    return "; ".join(words) or "the drive gave no reason: is there a medium in it?"
