"""An Ethernet controller by data sheet: AMD's Am79C970A, the PCnet-PCI II, with its rings of descriptors.

The controller reads its initialization block and its descriptors, reads frames to send and writes those it receives,
all through its bus master, by bus addresses of 32 bits. A frame is gathered from, or spread over, as many descriptors
as it needs. Its registers are behind an address register and a data register; it begins with registers of 16 bits
(WIO) and changes to 32 (DWIO) at the first 32-bit write to the data register.

It has what a driver needs: INIT, STRT, STOP, TDMD, suspension, the address filter, padding of short frames, missed
frames, interrupts and their masks, loopback inside the chip. Left out: software styles other than 2, in which it never
ends its initialization (counted); periodic polling of the transmit ring: it looks when told by TDMD, when started,
and when a frame has gone; collisions and the medium's other troubles; look-ahead packet processing, stripping of
padding, runt acceptance, magic packets, the EEPROM, I/O space.

What the data sheet leaves open, and what this model does: all of a frame is fetched when its transmission begins, and
its descriptors but the last are given back then; what arrives while it is suspended or deaf is lost and not counted.

Source: AMD Am79C970A data sheet (publication 19436, June 2000): "Control and Status Registers", "Bus Configuration
Registers", "Buffer Management", "I/O Resources" (WIO, DWIO, reset), "Master Abort", "Target Abort".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from busdma.errors import ConfigurationError, DeviceFault
from busdma.sim.bus.pci_config import Bar
from busdma.sim.chips.nic_ring import (
    ADD_FCS,
    BAM,
    CRC,
    ENP,
    ERR,
    LAFM,
    OWN,
    PAM,
    RX_BUFF,
    STP,
    TX_BUFF,
    UFLO,
    Descriptor,
    InitBlock,
    Ring,
)
from busdma.sim.chips.wire import Wire
from busdma.sim.wiring import CallAt, Memory, Pin

RDP, RAP, RESET, BDP = "RDP", "RAP", "reset", "BDP"
WIO: Final = MappingProxyType({0x10: RDP, 0x12: RAP, 0x14: RESET, 0x16: BDP})
DWIO: Final = MappingProxyType({0x10: RDP, 0x14: RAP, 0x18: RESET, 0x1C: BDP})

# CSR0
INIT, STRT, STOP, TDMD, TXON, RXON, IENA, INTR = (1 << bit for bit in range(8))
IDON, TINT, RINT, MERR, MISS, CERR, BABL, CSR0_ERR = (1 << bit for bit in range(8, 16))
CAUSES: Final = BABL | MISS | MERR | RINT | TINT | IDON  #: of interrupts; CSR3 masks them, bit by bit
DXSUFLO: Final = 1 << 6  # CSR3
APAD_XMT, MFCO, MFCOM = 1 << 11, 1 << 9, 1 << 8  # CSR4
SINT, SINTE, SPND = 1 << 11, 1 << 10, 1 << 0  # CSR5
PROM, DRCVBC, INTL, DXMTFCS, LOOP, DTX, DRX = 1 << 15, 1 << 14, 1 << 6, 1 << 3, 1 << 2, 1 << 1, 1 << 0  # CSR15
CSR4_RESET: Final = 0x0115
STYLE: Final = 2  #: the software style that it has; CSR58 and BCR20
SSIZE32: Final = 1 << 8  # BCR20: read-only, set in every style of 32 bits
CHIP_ID: Final = 0x0262_1003  #: CSR88, CSR89
BCR_DWIO: Final = 1 << 7  # BCR18

SHORTEST, LONGEST = 64, 1518  #: bytes of a frame, its check sequence included
BROADCAST: Final = b"\xff" * 6

#: Virtual time, in ns.
INIT_TIME: Final = 20_000
FETCH_TIME: Final = 1_000  #: from a transmit demand to the descriptor


class Nic:
    """One controller at power-on, at one end of `wire`: a `busdma.sim.bus.pci.PciFunction`.

    `address`: its 6 bytes of station address. `call_at` and `now` are the machine's clock, in ns. Not thread-safe: the
    caller holds the bus's lock around register accesses and around what `call_at` calls, the wire's included.
    """

    vendor, device = 0x1022, 0x2000
    class_code = 0x020000  # network, Ethernet
    bars: Mapping[int, Bar] = MappingProxyType({1: Bar(32)})  # 0 is the same in I/O space

    def __init__(
        self,
        master: Memory,
        pin: Pin,
        call_at: CallAt,
        now: Callable[[], int],
        *,
        wire: Wire,
        address: bytes,
    ) -> None:
        if len(address) != 6 or address[0] & 1:
            raise ConfigurationError(
                f"{address.hex(':')} is no station's address: give 6 bytes, the first of them even"
            )
        self._master, self._call_at, self._now = master, call_at, now
        self._raise, self._lower = pin.assert_, pin.deassert
        self._plug = wire.plug(self._arrive)
        self._prom = _prom(address)
        self._names: Mapping[int, str] = WIO
        self._rap = self._style = 0
        self._csr = dict.fromkeys((1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15), 0) | {4: CSR4_RESET}
        self._receive, self._transmit = Ring(master), Ring(master)
        self._epoch = 0  # a stop makes a new one; what was begun before it does not go on
        self._csr0, self._missed = STOP, 0
        self._initialised = self._looking = self._transmitting = False
        self._injected = ""
        self.counts = dict.fromkeys(("sent", "received", "missed", "faults", "refused"), 0)

    def inject_stuck_transmit(self) -> None:
        """The next frame to be sent is fetched, and never gone."""
        self._injected = "stuck"

    def inject_underflow(self) -> None:
        """In the middle of the next frame to be sent, memory is too slow to go on."""
        self._injected = "underflow"

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int) -> int:
        """As `busdma.sim.bus.pci.PciFunction.read`; ones for a width that the mode does not have."""
        if offset < 0x10:
            return int.from_bytes(self._prom[offset : offset + size], "little")
        name = self._named(offset, size)
        if name == RESET:
            self._soft_reset()
            return 0
        if name == RAP:
            return self._rap
        if name == RDP:
            return self._read_csr(self._rap)
        return self._read_bcr(self._rap) if name == BDP else (1 << 8 * size) - 1

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `busdma.sim.bus.pci.PciFunction.write`. A 32-bit write to the data register changes to DWIO."""
        if offset == 0x10 and size == 4:
            self._names = DWIO
        name, value = self._named(offset, size), value & 0xFFFF
        if name == RAP:
            self._rap = value & 0x7F
        elif name == RDP:
            self._write_csr(self._rap, value)
        elif name == BDP and self._rap == 20:
            self._write_csr(58, value)

    def _named(self, offset: int, size: int) -> str:
        return self._names.get(offset, "") if size == (4 if self._names is DWIO else 2) else ""

    def _read_bcr(self, number: int) -> int:
        values = {18: BCR_DWIO if self._names is DWIO else 0, 20: self._style | (SSIZE32 if self._style else 0)}
        return values.get(number, 0)

    def _read_csr(self, number: int) -> int:
        if number == 0:
            error = CSR0_ERR if self._csr0 & (BABL | CERR | MISS | MERR) else 0
            return self._csr0 | error | (INTR if self._wants_interrupt() else 0)
        if number == 5 and self._transmitting:
            return self._csr[5] & ~SPND  # not before the frame has gone
        values = {58: self._read_bcr(20), 88: CHIP_ID & 0xFFFF, 89: CHIP_ID >> 16, 112: self._missed}
        values |= {76: -self._receive.size & 0xFFFF, 78: -self._transmit.size & 0xFFFF}
        return values[number] if number in values else self._csr.get(number, 0)

    def _write_csr(self, number: int, value: int) -> None:
        if number == 0:
            self._command(value)
        elif number == 3:
            self._csr[3] = value
        elif number == 4:
            self._csr[4] = value & ~MFCO | self._csr[4] & ~value & MFCO
        elif number == 5:
            self._csr[5] = value & (SINTE | SPND) | self._csr[5] & ~value & SINT
            self._look_soon()
        elif self._csr0 & STOP or self._csr[5] & SPND:
            if number == 58:
                self._style = value & 0xFF
            elif number in self._csr:
                self._csr[number] = value
        self._interrupt()

    def _command(self, value: int) -> None:
        """Write CSR0: causes are cleared by ones; STOP comes before INIT, STRT and TDMD."""
        self._csr0 = (self._csr0 & ~(value & (CAUSES | CERR)) & ~IENA) | value & IENA
        if value & STOP:
            self._stop()
            return
        begin = value & (INIT | STRT) & ~self._csr0
        if begin:
            self._csr0 = self._csr0 & ~STOP | begin
            if begin & INIT:
                self._later(INIT_TIME, self._initialise)
            elif self._initialised or not self._csr0 & INIT:
                self._start()
        if value & TDMD:
            self._look_soon()

    def _stop(self) -> None:
        """STOP: all activity ends, whatever it was (CSR0, bit 2)."""
        self._epoch += 1
        self._plug.abort()
        self._csr0 = STOP
        self._csr[5] &= ~SPND
        self._missed = 0
        self._looking = self._transmitting = self._initialised = False
        self._interrupt()

    def _soft_reset(self) -> None:
        """S_RESET: what a read of the reset register does; BCRs, and so the software style, stay."""
        self._csr |= {3: 0, 4: CSR4_RESET, 5: 0}
        self._rap = 0
        self._stop()

    def _wants_interrupt(self) -> bool:
        overflow = self._csr[4] & MFCO and not self._csr[4] & MFCOM
        return bool(self._csr0 & CAUSES & ~self._csr[3] or overflow)

    def _interrupt(self) -> None:
        system = self._csr[5] & SINT and self._csr[5] & SINTE  # does not depend on IENA, which STOP has cleared
        if system or (self._csr0 & IENA and self._wants_interrupt()):
            self._raise()
        else:
            self._lower()

    def _cause(self, bits: int) -> None:
        self._csr0 |= bits
        self._interrupt()

    # -- activity -----------------------------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], object]) -> Callable[[], None]:
        """`step`, unless STOP comes first. After a fault on the bus the controller cannot go on ("Target Abort")."""
        epoch = self._epoch

        def guarded() -> None:
            try:
                if epoch == self._epoch:
                    step()
            except DeviceFault:
                self.counts["faults"] += 1
                self._csr[5] |= SINT
                self._stop()

        return guarded

    def _later(self, time: int, step: Callable[[], object]) -> None:
        self._call_at(self._now() + time, self._guarded(step))

    def _initialise(self) -> None:
        if self._style != STYLE:
            self.counts["refused"] += 1
            return
        block = InitBlock.fetch(self._master, self._csr[2] << 16 | self._csr[1])
        self._csr[15] = block.mode
        for n in range(3):
            self._csr[12 + n] = int.from_bytes(block.station[2 * n : 2 * n + 2], "little")
        for n in range(4):
            self._csr[8 + n] = block.filter >> 16 * n & 0xFFFF
        self._receive, self._transmit = Ring(self._master, *block.receive), Ring(self._master, *block.transmit)
        self._initialised = True
        if self._csr0 & STRT:
            self._start()
        self._cause(IDON)

    def _start(self) -> None:
        mode = self._csr[15]
        self._csr0 |= (0 if mode & DTX else TXON) | (0 if mode & DRX else RXON)
        self._look_soon()

    # -- transmission -------------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if self._csr0 & TXON and not self._looking:
            self._looking = True
            self._later(FETCH_TIME, self._look)

    def _look(self) -> None:
        self._looking = False
        if self._transmitting or not self._csr0 & TXON or self._csr[5] & SPND:
            return
        ring, first = self._transmit, self._transmit.fetch()
        while first.word & OWN and not first.word & STP:  # what does not begin a frame is skipped
            ring.release(first, first.word)
            first = ring.fetch()
        if not first.word & OWN:
            return
        last, data = first, bytearray(self._master.dma_read(first.address, first.length))
        while not last.word & ENP:
            following = ring.fetch(1)
            if not following.word & OWN:
                self._underflow(last, TX_BUFF | UFLO)
                return
            ring.release(last, last.word)
            last = following
            data += self._master.dma_read(last.address, last.length)
        padded = self._csr[4] & APAD_XMT and len(data) < SHORTEST - 4
        if padded:
            data += bytes(SHORTEST - 4 - len(data))
        if padded or first.word & ADD_FCS or not self._csr[15] & DXMTFCS:
            data += zlib.crc32(data).to_bytes(4, "little")
        injected, self._injected = self._injected, ""
        if injected == "underflow":
            self._underflow(last, UFLO)
            return
        self._transmitting = True
        if injected:
            return
        frame = bytes(data)
        inside = bool(self._csr[15] & LOOP)
        self._plug.transmit(frame, self._guarded(lambda: self._gone(last, len(frame))), inside=inside)

    def _underflow(self, last: Descriptor, detail: int) -> None:
        """The frame does not go on, or goes on in a descriptor that the controller does not own (TMD2: UFLO, BUFF)."""
        self._transmit.release(last, last.word | ERR, detail)
        if not self._csr[3] & DXSUFLO:
            self._csr0 &= ~TXON
        self._cause(TINT)
        self._look_soon()

    def _gone(self, last: Descriptor, length: int) -> None:
        self._transmitting = False
        self.counts["sent"] += 1
        self._transmit.release(last, last.word, 0)
        self._cause(TINT | (BABL if length > LONGEST else 0))
        self._look_soon()

    # -- reception ----------------------------------------------------------------------------------------------------

    def _arrive(self, frame: bytes) -> None:
        if self._csr0 & RXON and not self._csr[5] & SPND and len(frame) >= SHORTEST:
            match = self._match(frame[:6])
            if match is not None:
                self._guarded(lambda: self._store(frame, match))()

    def _match(self, to: bytes) -> int | None:
        """By which part of the address filter a frame is taken (RMD1); None: it is not."""
        csr = self._csr
        if to == BROADCAST and not csr[15] & DRCVBC:
            return BAM
        if to == b"".join(csr[number].to_bytes(2, "little") for number in (12, 13, 14)):
            return PAM
        if to[0] & 1:
            bit = (~zlib.crc32(to) & 0xFFFF_FFFF) >> 26  # of 64, by the upper bits of the CRC ("CSR8")
            if csr[8 + bit // 16] >> bit % 16 & 1:
                return LAFM
        return 0 if csr[15] & PROM else None

    def _store(self, frame: bytes, match: int) -> None:
        ring, at, begin = self._receive, 0, STP
        descriptor = ring.fetch()
        if not descriptor.word & OWN:
            self._miss()
            return
        while True:
            self._master.dma_write(descriptor.address, frame[at : at + descriptor.length])
            at += descriptor.length
            if at >= len(frame):
                break
            following = ring.fetch(1)
            if not following.word & OWN:
                ring.release(descriptor, descriptor.word & 0xFFFF | begin | ERR | RX_BUFF)
                self._cause(RINT)
                return
            ring.release(descriptor, descriptor.word & 0xFFFF | begin)
            descriptor, begin = following, 0
        good = zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little")
        status = begin | ENP | match | (0 if good else ERR | CRC)
        self.counts["received"] += 1
        ring.release(descriptor, descriptor.word & 0xFFFF | status, len(frame) & 0xFFF)
        self._cause(RINT)

    def _miss(self) -> None:
        """No descriptor is the controller's (CSR0: MISS; CSR112)."""
        self.counts["missed"] += 1
        self._missed = self._missed + 1 & 0xFFFF
        if not self._missed:
            self._csr[4] |= MFCO
        self._cause(MISS)


def _prom(address: bytes) -> bytes:
    """The address PROM: the station address, a check sum, and "WW"."""
    content = bytearray(address + bytes(8) + b"WW")
    content[12:14] = sum(content).to_bytes(2, "little")
    return bytes(content)
