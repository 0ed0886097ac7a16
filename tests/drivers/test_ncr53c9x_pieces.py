"""The pieces of the 53C9x driver by themselves: registers, pointers, messages, DMA engines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.drivers.ncr53c9x import chip as ncr
from busdma.drivers.ncr53c9x import jazz, messages, pci, sbus
from busdma.drivers.ncr53c9x.chip import Chip, timing
from busdma.drivers.ncr53c9x.jazz import JazzChannel
from busdma.drivers.ncr53c9x.nexus import Pointers
from busdma.drivers.ncr53c9x.pci import PciEngine
from busdma.drivers.ncr53c9x.sbus import EspDma
from busdma.errors import ConfigurationError, DeviceFault


class Bank:
    """Registers that hold what is written, but for those with `answers`; every write is kept."""

    def __init__(self, **answers: int) -> None:
        self.values: dict[int, int] = {int(name[1:], 16): value for name, value in answers.items()}
        self.fixed = set(self.values)
        self.writes: list[tuple[int, int]] = []

    def read8(self, offset: int) -> int:
        return self.values.get(offset, 0)

    def write8(self, offset: int, value: int) -> None:
        self.writes.append((offset, value))
        if offset not in self.fixed:
            self.values[offset] = value

    read16 = read32 = read64 = read8
    write16 = write32 = write64 = write8

    def barrier(self) -> None:
        pass


def chip(bank: Bank, counter: int = 16, **more: int) -> Chip:
    return Chip("esp0", bank, stride=1, counter=counter, clock=40, **more)


def test_where_the_registers_are() -> None:
    bank = Bank()
    Chip("esp0", bank, base=0x10000, stride=4, counter=16, clock=40).write(ncr.CONFIG_3, 7)
    assert bank.writes == [(0x10030, 7)]


@pytest.mark.parametrize(
    ("counter", "length", "low", "middle", "high"),
    [(16, 0x1234, 0x34, 0x12, None), (16, 65536, 0, 0, None), (24, 0x123456, 0x56, 0x34, 0x12), (24, 1 << 24, 0, 0, 0)],
)
def test_the_count(counter: int, length: int, low: int, middle: int, high: int | None) -> None:
    bank = Bank()
    unit = chip(bank, counter)
    unit.count(length)
    assert bank.values == {0: low, 1: middle} | ({} if high is None else {0xE: high})
    assert unit.most == 1 << counter
    assert unit.left(length) == length  # also where it is 0 in the registers
    bank.values[ncr.STATUS] = ncr.COUNTED_OUT
    assert unit.left(length) == 0


def test_a_counter_at_zero_that_was_not_the_most() -> None:
    assert chip(Bank()).left(512) == 0


def test_timing() -> None:
    assert timing(40) == (0, 153)  # 8 is written as 0; 250 ms at 40 MHz
    assert timing(25) == (5, 153)
    assert timing(20) == (4, 153)
    for clock in range(10, 41):
        factor, timeout = timing(clock)
        assert 250 <= timeout * 8192 * (factor or 8) / clock / 1000 < 252


@pytest.mark.parametrize(("counter", "features"), [(16, 0), (24, ncr.FEATURES)])
def test_reset_configures_the_chip(counter: int, features: int) -> None:
    bank = Bank()
    chip(bank, counter, own=6).reset()
    assert bank.writes[:2] == [(ncr.COMMAND, ncr.RESET_CHIP), (ncr.COMMAND, ncr.NOTHING)]
    assert bank.values[ncr.CONFIG_1] == 6 | ncr.CHECK_PARITY | ncr.QUIET_RESET
    assert bank.values[ncr.CONFIG_2] == ncr.SCSI_2 | features


def test_a_chip_that_is_not_there() -> None:
    with pytest.raises(DeviceFault, match="no 53C9x answers"):
        chip(Bank(x8=0xFF)).reset()


def test_a_chip_without_the_features() -> None:
    with pytest.raises(DeviceFault, match="counter=16"):
        chip(Bank(xB=0x08), 24).reset()


def test_what_a_chip_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="16 or 24 bits, not 20"):
        chip(Bank(), 20)
    with pytest.raises(ConfigurationError, match="0 to 7, not 8"):
        chip(Bank(), own=8)
    with pytest.raises(ConfigurationError, match="10 to 40 MHz, not 66"):
        Chip("esp0", Bank(), stride=1, counter=16, clock=66)


def test_the_fifo() -> None:
    bank = Bank(x7=0xE3)  # three bytes, and the sequence step above
    unit = chip(bank)
    assert unit.held == 3
    assert len(unit.take()) == 3
    unit.put(b"\x80\x12")
    assert bank.writes == [(ncr.COMMAND, ncr.FLUSH_FIFO), (ncr.FIFO, 0x80), (ncr.FIFO, 0x12)]


def test_the_cause_is_read_last() -> None:
    order: list[int] = []

    class Watched(Bank):
        def read8(self, offset: int) -> int:
            order.append(offset)
            return 0xFF

    assert chip(Watched()).acknowledge() == (0xFF, 0x07, 0xFF)
    assert order[-1] == ncr.CAUSE
    assert set(order) == {ncr.STATUS, ncr.STEP, ncr.CAUSE}


# -- pointers ---------------------------------------------------------------------------------------------------------


def test_pieces_of_segments() -> None:
    pointers = Pointers([(0x1000, 10), (0x8000, 5)])
    assert pointers.length == 15
    found = []
    while (piece := pointers.piece())[1]:
        found.append(piece)
        pointers.advance(min(4, piece[1]))
    assert found == [(0x1000, 10), (0x1004, 6), (0x1008, 2), (0x8000, 5), (0x8004, 1)]
    assert pointers.residual == 0
    assert Pointers().piece() == (0, 0)


def test_a_target_that_comes_back_goes_on_where_it_saved() -> None:
    pointers = Pointers([(0x1000, 10), (0x8000, 5)])
    pointers.advance(9)
    pointers.save()
    pointers.advance(1)
    pointers.advance(2)
    pointers.resume()
    assert pointers.piece() == (0x1009, 1)
    assert pointers.residual == 3  # moved once, and to be moved again: it did get there


def test_restored_bytes_do_not_count() -> None:
    pointers = Pointers([(0x1000, 10)])
    pointers.advance(10)
    pointers.restore()
    assert (pointers.piece(), pointers.residual) == ((0x1000, 10), 10)


def test_strays_after_the_saved_pointer_come_again() -> None:
    pointers = Pointers([(0x1000, 10)])
    pointers.advance(3)
    pointers.stray(b"a")
    pointers.save()
    pointers.advance(2)
    pointers.stray(b"bc")
    assert pointers.strays == [(2, b"a"), (3, b"bc")]
    pointers.resume()
    assert pointers.strays == [(2, b"a")]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(["move", "save", "resume", "restore"]), st.integers(1, 60))),
)
def test_any_walk_touches_the_right_bytes(lengths: list[int], plan: list[tuple[str, int]]) -> None:
    """Against a flat array: byte n of the data is at its own address, whatever was saved and restored."""
    segments: list[tuple[int, int]] = []
    flat: list[int] = []
    for number, length in enumerate(lengths):
        base = 0x10000 * (number + 1)
        segments.append((base, length))
        flat += range(base, base + length)
    pointers, at, saved, furthest = Pointers(segments), 0, 0, 0
    for what, count in plan:
        if what == "move":
            address, here = pointers.piece()
            assert (address if here else None) == (flat[at] if at < len(flat) else None)
            count = min(count, here)
            assert list(range(address, address + count)) == flat[at : at + count]
            pointers.advance(count)
            at += count
            furthest = max(furthest, at)
        elif what == "save":
            pointers.save()
            saved = at
        else:
            getattr(pointers, what)()
            at = saved
            furthest = saved if what == "restore" else furthest
    assert pointers.residual == len(flat) - furthest


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "length"),
    [(b"\0", 1), (b"\4", 1), (b"\xc0", 1), (b"\x20", 2), (b"\x23", 2), (b"\1", 2), (b"\1\3", 5), (b"\1\0", 258)],
)
def test_how_long_messages_are(begun: bytes, length: int) -> None:
    assert messages.length(begun) == length


def test_identify_lets_the_target_disconnect() -> None:
    assert messages.identify(3) == b"\xc3"


# -- engines ----------------------------------------------------------------------------------------------------------


def test_espdma_is_drained_after_the_chip() -> None:
    bank = Bank(x0=0)
    engine = EspDma(bank)
    engine.aim(0xFC005000, 512, True)
    assert bank.writes[-2:] == [(sbus.ADDRESS, 0xFC005000), (0, sbus.INTERRUPT_ENABLE | sbus.ENABLE | sbus.TO_MEMORY)]
    before = len(bank.writes)
    assert not engine.emptied(0, 1)  # the chip still has a byte for it
    bank.values[0] = sbus.REQUEST_PENDING
    assert not engine.emptied(0, 0)
    assert len(bank.writes) == before
    bank.values[0] = sbus.DRAINING
    assert not engine.emptied(0, 0)
    assert bank.writes[-1][1] & sbus.DRAIN
    bank.values[0] = 0
    assert engine.emptied(0, 0)
    assert len(bank.writes) == before + 1


def test_engines_have_nothing_to_empty_on_the_way_out() -> None:
    for engine in (EspDma(Bank(x0=sbus.DRAINING)), JazzChannel(Bank()), PciEngine(Bank(), lambda memory: None)):
        engine.aim(0x1000, 512, False)
        engine.go()
        assert engine.emptied(100, 16)


def test_a_jazz_channel() -> None:
    bank = Bank()
    engine = JazzChannel(bank)
    engine.reset()
    engine.aim(0x8000, 512, True)
    assert bank.writes[-4:] == [(jazz.ENABLE, 0x700), (jazz.ADDRESS, 0x8000), (jazz.COUNT, 512), (jazz.ENABLE, 1)]
    assert not engine.emptied(0, 2)
    assert engine.emptied(0, 1)  # the odd byte: the channel moves two at a time
    engine.aim(0x8000, 512, False)
    assert bank.values[jazz.ENABLE] == jazz.RUN | jazz.TO_DEVICE
    engine.stop()
    assert bank.values[jazz.ENABLE] == 0


def test_the_am53c974_is_told_to_blast_what_it_keeps() -> None:
    bank = Bank()
    engine = PciEngine(bank, lambda memory: None)
    engine.aim(0x8000, 512, True)
    assert bank.writes == [(pci.DMA_COMMAND, 0x80), (pci.START_COUNT, 512), (pci.START_ADDRESS, 0x8000)]
    engine.go()
    assert bank.writes[-1] == (pci.DMA_COMMAND, 0x83)
    bank.values[pci.WORKING_COUNT] = 130  # 382 bytes in memory, 2 in the engine
    assert not engine.emptied(128, 2)  # and two in the chip, which are on their way
    assert not engine.emptied(128, 0)
    assert bank.writes[-1] == (pci.DMA_COMMAND, 0x81)
    bank.values[pci.DMA_STATUS] = pci.BLASTED
    assert engine.emptied(128, 0)


def test_the_am53c974_that_has_written_all() -> None:
    bank = Bank(x4C=129)
    engine = PciEngine(bank, lambda memory: None)
    engine.aim(0x8000, 512, True)
    engine.go()
    assert engine.emptied(128, 1)  # the odd byte stays in the chip's FIFO
    assert bank.writes[-1] == (pci.DMA_COMMAND, 0x83)


def test_faults_in_words() -> None:
    assert "0xfc000000" in EspDma(Bank(x0=sbus.ERROR_PENDING, x4=0xFC000000)).fault()
    assert "not translated" in JazzChannel(Bank(x1008=jazz.TRANSLATION_ERROR, x1018=0x5000)).fault()
    assert "0x04" in PciEngine(Bank(x54=pci.ABORTED), lambda memory: None).fault()
    for engine in (EspDma(Bank()), JazzChannel(Bank()), PciEngine(Bank(), lambda memory: None)):
        assert engine.fault() == ""
