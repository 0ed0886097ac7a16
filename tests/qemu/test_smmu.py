"""What is particular to QEMU's SMMUv3: exact addresses, its event ring, and its commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busdma.errors import DeviceFault
from busdma.sync import Direction
from busdma.translators import HardwareFault
from busdma.translators.smmu import F_PERMISSION, F_TRANSLATION, SmmuUnit
from qemu.edu_rig import MOST, PAGE, EduRig, virt

IN, OUT = 0x10_0000, 0x80_0000


@pytest.fixture
def rig() -> Iterator[EduRig]:
    with virt() as rig:
        yield rig


def take_all(unit: SmmuUnit) -> list[HardwareFault]:
    found = []
    while unit.pending():
        fault = unit.take_fault()
        assert fault is not None
        found.append(fault)
    return found


def smmu(rig: EduRig) -> SmmuUnit:
    assert isinstance(rig.unit, SmmuUnit)
    return rig.unit


def test_events_say_exactly_where_and_why(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    domain.enter(IN, [rig.frame(1, 1)], Direction.TO_DEVICE)
    rig.one.fetch(IN)
    rig.one.store(IN + 0x128, 4)
    rig.one.store(OUT + 0x40, 4)
    rig.one.fetch((1 << 39) - 4, 4)
    source = rig.one.source
    assert take_all(smmu(rig)) == [
        HardwareFault(IN + 0x128, True, source, F_PERMISSION),
        HardwareFault(OUT + 0x40, True, source, F_TRANSLATION),
        HardwareFault((1 << 39) - 4, False, source, F_TRANSLATION),
    ]
    assert smmu(rig).take_fault() is None


def test_a_stream_without_a_domain_is_aborted_in_silence(rig: EduRig) -> None:
    rig.frame(1, 1)
    rig.one.store(rig.frame(1))
    assert rig.data(1) == b"\1" * 16
    assert take_all(smmu(rig)) == []


def test_events_go_round_the_ring(rig: EduRig) -> None:
    rig.domain(rig.two)
    for number in range(40):
        rig.two.fetch(IN + number * PAGE, 64)
        assert {fault.address & -PAGE for fault in take_all(smmu(rig))} == {IN + number * PAGE}
    assert smmu(rig).overflows == 0


def test_a_full_ring_loses_events_but_not_in_silence(rig: EduRig) -> None:
    unit = smmu(rig)
    rig.domain(rig.one)
    for losses in (1, 2):
        rig.one.fetch(IN, MOST)  # one for each few bytes
        addresses = [fault.address for fault in take_all(unit)]
        assert (len(addresses), addresses[0]) == (128, IN)
        assert addresses == sorted(set(addresses))
        assert unit.overflows == losses
        rig.one.fetch(OUT, 4)
        assert [fault.address for fault in take_all(unit)] == [OUT]
        assert unit.overflows == losses


def test_what_is_mapped_later_is_reached_after_an_overflow(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    rig.one.fetch(IN, MOST)
    domain.enter(IN, [rig.frame(1, 1)], Direction.TO_DEVICE)
    domain.enter(OUT, [rig.frame(2, 0)], Direction.FROM_DEVICE)
    rig.copy(rig.one, IN, OUT)
    assert rig.data(2) == b"\1" * 16
    assert len(take_all(smmu(rig))) == 128


def test_an_illegal_command_is_named(rig: EduRig) -> None:
    domain = rig.domain(rig.one)
    for _ in range(2):
        with pytest.raises(DeviceFault, match=r"smmu: command 0xff is refused \(CERROR_ILL, an illegal command\)"):
            smmu(rig).commands.run((0xFF, 0))
    with pytest.raises(DeviceFault, match="reset the machine"):
        domain.flush(IN, 1)
