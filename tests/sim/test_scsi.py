"""The disk's side of the SCSI bus: each command's phases, data, status and sense, by SCSI-2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.sim.disk import Disk
from busdma.sim.scsi.target import CHECK_CONDITION, GOOD, RETRIES, SPIN_UP, Busy, DataIn, DataOut, ScsiTarget, Sense

BLOCKS = 4096


class Initiator:
    """Runs commands one at a time, on a clock that Busy phases move."""

    def __init__(self, target: ScsiTarget) -> None:
        self.target = target
        self.time = 0
        self.data = b""
        self.wanted = 0

    def run(self, cdb: bytes, out: bytes = b"", lun: int = 0) -> int:
        """The status; data in is left in `data`, the length that the target asked for in `wanted`."""
        phases = self.target.execute(lun, cdb, lambda: self.time)
        self.data, self.wanted, answer = b"", 0, None
        while True:
            try:
                phase = next(phases) if answer is None else phases.send(answer)
            except StopIteration as end:
                status: int = end.value
                return status
            answer = None
            if isinstance(phase, Busy):
                self.time += phase.ns
            elif isinstance(phase, DataIn):
                self.data += phase.data
            elif isinstance(phase, DataOut):
                self.wanted += phase.length
                answer = out

    def sense(self) -> tuple[int, int, int]:
        """Key, code and qualifier of the last error."""
        assert self.run(bytes((0x03, 0, 0, 0, 18, 0))) == GOOD
        assert len(self.data) == 18
        assert self.data[0] & 0x7F == 0x70
        assert self.data[7] == 10
        return self.data[2], self.data[12], self.data[13]


def ten(opcode: int, lba: int = 0, count: int = 0, flags: int = 0) -> bytes:
    """A 10-byte CDB."""
    return bytes((opcode, flags)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def six(opcode: int, lba: int = 0, length: int = 0) -> bytes:
    """A 6-byte CDB."""
    return bytes((opcode,)) + lba.to_bytes(3, "big") + bytes((length, 0))


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A small drive."""
    with Disk(None, blocks=BLOCKS) as drive:
        yield drive


@pytest.fixture
def initiator(disk: Disk) -> Initiator:
    """Its target, whose unit attention has been told."""
    found = Initiator(ScsiTarget(disk))
    assert found.run(six(0x00)) == CHECK_CONDITION
    return found


def test_power_on_is_told_once_by_a_unit_attention(disk: Disk) -> None:
    initiator = Initiator(ScsiTarget(disk))
    assert initiator.run(six(0x12, 0, 36)) == GOOD  # INQUIRY neither reports nor clears it
    assert initiator.run(six(0x00)) == CHECK_CONDITION
    assert initiator.sense() == (6, 0x29, 0)
    assert initiator.run(six(0x00)) == GOOD
    initiator.target.reset()
    assert initiator.sense() == (6, 0x29, 0)  # REQUEST SENSE tells it too
    assert initiator.run(six(0x00)) == GOOD


def test_inquiry_names_a_scsi_2_disk(disk: Disk) -> None:
    initiator = Initiator(ScsiTarget(disk, vendor="ACME", product="DRIVE", revision="2"))
    assert initiator.run(six(0x12, 0, 36)) == GOOD
    assert initiator.data == bytes((0, 0, 2, 2, 31, 0, 0, 0x10)) + b"ACME    DRIVE           2   "
    assert initiator.run(six(0x12, 0, 5)) == GOOD
    assert initiator.data == bytes((0, 0, 2, 2, 31))
    assert initiator.run(six(0x12, 0, 255)) == GOOD
    assert len(initiator.data) == 36
    assert initiator.run(bytes((0x12, 0x01, 0x80, 0, 36, 0))) == CHECK_CONDITION  # no vital product data
    assert initiator.sense() == (5, 0x24, 0)


def test_other_logical_units_do_not_exist(initiator: Initiator) -> None:
    assert initiator.run(six(0x12, 0, 36), lun=1) == GOOD
    assert initiator.data[0] == 0x7F
    assert initiator.run(six(0x00), lun=1) == CHECK_CONDITION
    assert initiator.run(bytes((0x03, 0x20, 0, 0, 18, 0)), lun=1) == GOOD
    assert (initiator.data[2], initiator.data[12]) == (5, 0x25)


def test_capacity_is_the_last_block_and_the_block_size(initiator: Initiator) -> None:
    assert initiator.run(ten(0x25)) == GOOD
    assert initiator.data == (BLOCKS - 1).to_bytes(4, "big") + (512).to_bytes(4, "big")
    assert initiator.run(ten(0x25, lba=1)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x24, 0)


def test_six_byte_commands_reach_21_bits_and_256_blocks(initiator: Initiator, disk: Disk) -> None:
    data = bytes(range(256)) * 512
    assert initiator.run(six(0x0A, 7, 0), data) == GOOD
    assert initiator.wanted == len(data)
    assert disk.read(7, 256) == data
    assert initiator.run(six(0x08, 7, 0)) == GOOD
    assert initiator.data == data
    assert initiator.run(six(0x08, 0xE00007, 1)) == GOOD  # the top three bits were the unit number once
    assert initiator.data == data[:512]


def test_ten_byte_commands_move_nothing_for_a_count_of_zero(initiator: Initiator) -> None:
    assert initiator.run(ten(0x28, 5, 0)) == GOOD
    assert initiator.data == b""
    assert initiator.run(ten(0x2A, 5, 0), b"") == GOOD
    assert initiator.wanted == 0


def test_a_block_beyond_the_end_is_out_of_range(initiator: Initiator) -> None:
    for cdb in (ten(0x28, BLOCKS - 1, 2), ten(0x2A, 0xFFFFFFFF, 1), six(0x08, BLOCKS, 1)):
        assert initiator.run(cdb) == CHECK_CONDITION
        assert initiator.sense() == (5, 0x21, 0)
        assert initiator.data[0] & 0x80
        assert int.from_bytes(initiator.data[3:7], "big") >= BLOCKS
    assert initiator.run(ten(0x28, BLOCKS - 1, 1)) == GOOD


def test_unknown_commands_and_fields_are_illegal(initiator: Initiator) -> None:
    assert initiator.run(six(0x15)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x20, 0)
    linked = six(0x00)[:5] + b"\x01"
    assert initiator.run(linked) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x24, 0)
    assert initiator.run(ten(0x28, 0, 1, flags=1)) == CHECK_CONDITION  # relative address
    assert initiator.sense() == (5, 0x24, 0)


def test_sense_is_told_once_and_cleared_by_the_next_command(initiator: Initiator) -> None:
    assert initiator.run(six(0x15)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x20, 0)
    assert initiator.sense() == (0, 0, 0)
    assert initiator.run(six(0x15)) == CHECK_CONDITION
    assert initiator.run(six(0x00)) == GOOD
    assert initiator.sense() == (0, 0, 0)
    assert initiator.run(bytes((0x03, 0, 0, 0, 0, 0))) == GOOD
    assert len(initiator.data) == 4  # an allocation length of 0


def test_a_bad_block_is_read_up_to_and_repaired_by_writing(initiator: Initiator, disk: Disk) -> None:
    disk.write(10, b"\x77" * 512 * 4)
    initiator.target.bad.update((12, 13))
    before = initiator.time
    assert initiator.run(ten(0x28, 10, 4)) == CHECK_CONDITION
    assert initiator.data == b"\x77" * 1024
    assert initiator.time - before > RETRIES * disk.geometry.revolution
    assert initiator.sense() == (3, 0x11, 0)
    assert initiator.data[0] & 0x80
    assert int.from_bytes(initiator.data[3:7], "big") == 12
    assert initiator.run(ten(0x2A, 12, 2), bytes(1024)) == GOOD
    assert initiator.run(ten(0x28, 10, 4)) == GOOD
    assert initiator.data == b"\x77" * 1024 + bytes(1024)


def test_a_write_protected_disk_is_read_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x42" * 2048)
    with Disk(path, read_only=True) as disk:
        initiator = Initiator(ScsiTarget(disk))
        initiator.run(six(0x00))
        assert initiator.run(ten(0x2A, 0, 1), bytes(512)) == CHECK_CONDITION
        assert initiator.wanted == 0
        assert initiator.sense() == (7, 0x27, 0)
        assert initiator.run(ten(0x28, 0, 4)) == GOOD
        assert initiator.data == b"\x42" * 2048
        assert initiator.run(six(0x1A, 0x003F00, 255)) == GOOD
        assert initiator.data[2] == 0x80


def test_an_error_of_the_host_is_a_medium_error(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with Disk(path, blocks=8) as disk:
        initiator = Initiator(ScsiTarget(disk))
        initiator.run(six(0x00))
        path.write_bytes(b"")
        assert initiator.run(ten(0x28, 3, 1)) == CHECK_CONDITION
        assert initiator.sense() == (3, 0x11, 0)


def test_mode_sense_describes_the_drive(initiator: Initiator, disk: Disk) -> None:
    assert initiator.run(six(0x1A, 0x003F00, 255)) == GOOD
    data = initiator.data
    assert data[0] == len(data) - 1
    assert data[3] == 8
    assert int.from_bytes(data[5:8], "big") == BLOCKS
    assert int.from_bytes(data[9:12], "big") == 512
    geometry, caching = data[12:36], data[36:48]
    assert (geometry[0], geometry[1]) == (0x04, 22)
    assert int.from_bytes(geometry[2:5], "big") == disk.cylinders
    assert geometry[5] == disk.geometry.heads
    assert int.from_bytes(geometry[20:22], "big") == disk.geometry.rpm
    assert caching == bytes((0x08, 10)) + bytes(10)  # no write cache
    assert initiator.run(bytes((0x1A, 0x08, 0x08, 0, 255, 0))) == GOOD  # without block descriptors
    assert initiator.data == bytes((15, 0, 0, 0)) + caching
    assert initiator.run(six(0x1A, 0x004400, 255)) == GOOD  # changeable values of page 4: none
    assert initiator.data[12:] == bytes((0x04, 22)) + bytes(22)
    assert initiator.run(six(0x1A, 0x000500, 255)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x24, 0)
    assert initiator.run(six(0x1A, 0x00C400, 255)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x39, 0)


def test_a_stopped_drive_must_be_started(initiator: Initiator) -> None:
    assert initiator.run(six(0x1B)) == GOOD
    for cdb in (six(0x00), ten(0x28, 0, 1), ten(0x25), ten(0x35)):
        assert initiator.run(cdb) == CHECK_CONDITION
        assert initiator.sense() == (2, 0x04, 2)
    before = initiator.time
    assert initiator.run(six(0x1B, 0, 1)) == GOOD
    assert initiator.time - before == SPIN_UP
    assert initiator.run(six(0x00)) == GOOD
    assert initiator.run(six(0x1B)) == GOOD
    assert initiator.run(bytes((0x1B, 0x01, 0, 0, 0x01, 0))) == GOOD  # immediate: the status does not wait
    assert initiator.run(six(0x00)) == CHECK_CONDITION
    assert initiator.sense() == (2, 0x04, 1)
    initiator.time += SPIN_UP
    assert initiator.run(six(0x00)) == GOOD
    assert initiator.run(six(0x1B, 0, 2)) == CHECK_CONDITION
    assert initiator.sense() == (5, 0x24, 0)


def test_synchronize_cache_is_good(initiator: Initiator) -> None:
    assert initiator.run(ten(0x35)) == GOOD


def test_a_write_that_is_closed_before_its_end_writes_nothing(initiator: Initiator, disk: Disk) -> None:
    phases = initiator.target.execute(0, ten(0x2A, 0, 1), lambda: 0)
    assert next(phases) == DataOut(512)
    assert isinstance(phases.send(b"\xff" * 512), Busy)
    phases.close()
    assert disk.read(0, 1) == bytes(512)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 15), st.integers(0, 255), st.integers(0, 255), st.none() | st.integers(0, 0xFFFFFFFF))
def test_fixed_sense_has_its_fields_in_their_places(key: int, asc: int, ascq: int, information: int | None) -> None:
    data = Sense(key, asc, ascq, information).pack()
    assert (len(data), data[2], data[12], data[13]) == (18, key, asc, ascq)
    assert data[0] == (0x70 if information is None else 0xF0)
    assert int.from_bytes(data[3:7], "big") == (information or 0)
