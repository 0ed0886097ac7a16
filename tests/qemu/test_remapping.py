"""Page tables of ours under QEMU's VT-d and SMMUv3: what a device reaches, and what the models keep in their caches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.errors import DriverError
from busdma.sync import Direction
from qemu.edu_rig import MOST, PAGE, RIGS, EduRig

READ, WRITE, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BOTH
IN, OUT = 0x10_0000, 0x80_0000  #: bus addresses
TABLE = 512 * PAGE  #: of bus addresses under one table of the last level


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Iterator[EduRig]:
    with RIGS[request.param]() as rig:
        yield rig
        assert rig.unit.tables == len(rig.tables)


def test_data_goes_through_scattered_frames(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(5, 5), rig.frame(2, 2)], READ)
    domain.enter(OUT, [rig.frame(9, 0), rig.frame(3, 0)], WRITE)
    half = MOST // 2
    rig.copy(rig.one, IN + PAGE - half, OUT + PAGE - half, MOST)
    assert rig.data(9, PAGE) == bytes(PAGE - half) + b"\5" * half
    assert rig.data(3, PAGE) == b"\2" * half + bytes(PAGE - half)
    assert not rig.unit.pending()
    assert rig.faults() == []


def test_a_device_without_a_domain_reaches_nothing(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], BOTH)
    domain.enter(OUT, [rig.frame(2, 2)], BOTH)
    rig.frame(3, 3)
    for address in (IN, rig.frame(3)):  # another's, and physical
        rig.two.fetch(address)
        rig.two.store(address)
    assert (rig.data(1), rig.data(3)) == (b"\1" * 16, b"\3" * 16)
    rig.faults()
    # what the unit remembers of it does not count once it has one
    other = rig.domain(rig.two)
    other.enter(IN, [rig.frame(3)], READ)
    other.enter(OUT, [rig.frame(4, 4)], WRITE)
    rig.copy(rig.two, IN, OUT)
    assert (rig.data(2), rig.data(4)) == (b"\2" * 16, b"\3" * 16)
    assert rig.faults() == []
    with pytest.raises(DriverError, match="two has a domain for requests of"):
        rig.domain(rig.two)


def test_outside_its_mapping_it_changes_nothing_and_the_fault_says_who_and_where(rig: EduRig) -> None:
    domain = rig.domain(rig.two)
    domain.enter(IN, [rig.frame(1, 1)], READ)
    domain.enter(OUT, [rig.frame(2, 2)], WRITE)
    before = bytes(rig.ram.view)
    rig.two.store(OUT + PAGE + 0x20)
    assert rig.unit.pending()
    (fault,) = rig.faults()
    assert (fault.address, fault.write, fault.source) == (OUT + PAGE, True, rig.two.source)
    rig.two.fetch(IN - 16)
    (fault,) = rig.faults()
    assert (fault.address, fault.write, fault.source) == (IN - PAGE, False, rig.two.source)
    assert not rig.unit.pending()
    assert bytes(rig.ram.view) == before  # also where events are recorded: they are gone again
    rig.copy(rig.two, IN, OUT)
    assert rig.data(2, 32) == b"\1" * 16 + b"\2" * 16


def test_after_clear_and_flush_an_address_leads_nowhere(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)] * 3, READ)
    domain.enter(OUT, [rig.frame(number, 0) for number in (2, 3, 4)], WRITE)
    for page in range(3):
        rig.copy(rig.one, IN, OUT + page * PAGE)
    domain.clear(OUT + PAGE, 1)
    domain.flush(OUT + PAGE, 1)
    rig.frame(3, 7)
    rig.copy(rig.one, IN + PAGE, OUT + PAGE)
    assert rig.data(3) == b"\7" * 16
    assert [(fault.address, fault.write) for fault in rig.faults()] == [(OUT + PAGE, True)]
    for page, number in ((0, 2), (2, 4)):  # the neighbours stay
        rig.frame(number, 0)
        rig.copy(rig.one, IN, OUT + page * PAGE)
        assert rig.data(number) == b"\1" * 16
    assert rig.faults() == []


def test_without_a_flush_the_old_frame_is_still_reached(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], READ)
    domain.enter(OUT, [rig.frame(2, 0)], WRITE)
    rig.copy(rig.one, IN, OUT)
    rig.frame(2, 0)
    domain.clear(OUT, 1)
    rig.one.store(OUT)
    assert rig.data(2) == b"\1" * 16  # cleared in memory, and yet
    rig.frame(2, 0)
    domain.enter(OUT, [rig.frame(3, 0)], WRITE)
    rig.one.store(OUT)
    assert (rig.data(2), rig.data(3)) == (b"\1" * 16, bytes(16))
    assert rig.faults() == []
    domain.flush(OUT, 1)
    rig.frame(2, 0)
    rig.one.store(OUT)
    assert (rig.data(2), rig.data(3)) == (bytes(16), b"\1" * 16)
    assert rig.faults() == []


def test_what_was_not_mapped_needs_no_flush(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], READ)
    rig.one.fetch(IN)
    for page, number in enumerate((2, 3)):
        rig.one.store(OUT + page * PAGE)
        assert [fault.address for fault in rig.faults()] == [OUT + page * PAGE]
        domain.enter(OUT + page * PAGE, [rig.frame(number, 0)], WRITE)
        rig.one.store(OUT + page * PAGE)
        assert rig.data(number) == b"\1" * 16
    assert rig.faults() == []


def test_two_domains_lead_the_same_address_to_different_frames(rig: EduRig) -> None:
    one, two = rig.domain(rig.one), rig.domain(rig.two)
    for number, (domain, edu) in enumerate(((one, rig.one), (two, rig.two)), 1):
        domain.enter(IN, [rig.frame(number, number)], READ)
        domain.enter(OUT, [rig.frame(number + 10, 0)], WRITE)
        rig.copy(edu, IN, OUT)
    assert (rig.data(11), rig.data(12)) == (b"\1" * 16, b"\2" * 16)
    # and what is flushed for one is not for the other
    for domain in (one, two):
        domain.clear(OUT, 1)
    one.flush(OUT, 1)
    for number in (11, 12):
        rig.frame(number, 0)
    rig.one.store(OUT)
    rig.two.store(OUT)
    assert (rig.data(11), rig.data(12)) == (bytes(16), b"\2" * 16)
    assert [(fault.address, fault.source) for fault in rig.faults()] == [(OUT, rig.one.source)]
    two.flush(0x1000, 300)  # many pages: the whole domain
    rig.two.store(OUT)
    assert [(fault.address, fault.source) for fault in rig.faults()] == [(OUT, rig.two.source)]


def test_what_goes_to_a_device_cannot_be_written(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], READ)
    domain.enter(OUT, [rig.frame(2, 2)], BOTH)
    rig.one.fetch(OUT)
    rig.one.store(IN)
    (fault,) = rig.faults()
    assert (fault.address, fault.write, fault.source) == (IN, True, rig.one.source)
    rig.one.fetch(IN)
    rig.one.store(IN)  # the unit knows the page: the model of VT-d refuses it without a word
    rig.faults()
    assert rig.data(1) == b"\1" * 16
    rig.one.store(OUT)
    assert rig.data(2) == b"\1" * 16
    domain.enter(IN, [rig.frame(1)], BOTH)
    domain.flush(IN, 1)
    rig.one.fetch(OUT + 32)
    rig.one.store(IN)
    assert rig.data(1) == b"\2" * 16


@pytest.mark.parametrize("border", [TABLE, 512 * TABLE], ids=["table", "table-of-tables"])
def test_mappings_over_the_borders_of_tables(rig: EduRig, border: int) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1), rig.frame(2, 2)], READ)
    rig.one.fetch(IN + PAGE - 1024, 2048)
    target = border - 3 * PAGE
    taken = len(rig.tables)
    domain.prepare(target, 6)
    needed = len(rig.tables) - taken
    assert needed == (1 if border == TABLE else 3)
    frames = [rig.frame(number, 0) for number in range(10, 16)]
    domain.enter(target, frames, WRITE)
    assert len(rig.tables) == taken + needed
    for page in range(6):
        rig.one.store(target + page * PAGE)
    rig.one.store(border - 1024, 2048)
    assert rig.data(12, PAGE)[-1024:] + rig.data(13, 1024) == b"\1" * 1024 + b"\2" * 1024
    domain.clear(target + PAGE, 4)
    domain.flush(target + PAGE, 4)
    for number in range(10, 16):
        rig.frame(number, 0)
    for page in range(6):
        rig.one.store(target + page * PAGE)
    assert [rig.data(number) != bytes(16) for number in range(10, 16)] == [True, *[False] * 4, True]
    assert len(rig.tables) == taken + needed


def test_as_many_pages_are_flushed_as_was_asked_for(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], READ)
    rig.one.fetch(IN)
    frames = [rig.frame(number, 0) for number in range(10, 50)]
    domain.enter(OUT, frames, WRITE)

    def reached() -> set[int]:
        for number in range(10, 50):
            rig.frame(number, 0)
        for page in range(40):
            rig.one.store(OUT + page * PAGE)
        rig.faults()
        return {page for page in range(40) if rig.data(page + 10) != bytes(16)}

    assert reached() == set(range(40))
    domain.clear(OUT, 40)
    assert reached() == set(range(40))
    domain.flush(OUT + 8 * PAGE, 4)
    assert reached() == set(range(40)) - {8, 9, 10, 11}
    domain.flush(OUT, 16)
    assert reached() == set(range(16, 40))
    domain.flush(OUT, 40)
    assert reached() == set()


def test_a_page_of_another_device_can_be_entered(rig: EduRig) -> None:
    """As the doorbell of message interrupts must be: not all that a device writes is memory."""
    domain = rig.domain(rig.one)
    at = rig.frame(1)
    rig.ram.view[at - rig.base : at - rig.base + 4] = (0x1234_5678).to_bytes(4, "little")
    domain.enter(IN, [at], READ)
    domain.enter(OUT, [rig.two.at], WRITE)
    rig.copy(rig.one, IN, OUT + 4, 4)  # the liveness register
    assert rig.two.registers.read32(4) == 0x1234_5678 ^ 0xFFFF_FFFF
    assert rig.faults() == []
