"""The DES card register by register: against published test vectors, and against the library."""

from __future__ import annotations

import random
import sys

import pytest
from Crypto.Cipher import DES as library
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DeviceFault
from busdma.machine.spec import parse
from busdma.runtime import by_name
from busdma.runtime.clock import VirtualClock
from busdma.sim.cards import add_des_isa, add_des_pci
from busdma.sim.chips.des import (
    ACKNOWLEDGE,
    ADDRESS,
    BAD_COMMAND,
    BAD_LENGTH,
    BAD_LIST,
    BLOCK,
    BUS_ERROR,
    BUSY,
    BYTE_TIME,
    CHAINED,
    CONTROL,
    DECRYPT,
    DONE,
    ENCRYPT,
    ENTRY,
    FIFO,
    IDENTITY,
    INTERRUPT,
    NO_KEY,
    RESET,
    SET_KEY,
    SETUP_TIME,
    SIGNATURE,
    STATUS,
    DesIsa,
    DesPci,
)
from busdma.sim.pc_isa import PcIsa
from busdma.sim.x86_64 import X8664

KEY = bytes.fromhex("0123456789abcdef")
VECTOR = bytes.fromhex("1234567890abcdef")
COMMAND_AT, KEY_AT, IN_AT, OUT_AT = 0x100, 0x200, 0x1000, 0x4000
SIZE = 1 << 18

Entries = list[tuple[int, int]]


class Memory:
    """Memory that the card sees at 0, and what it did there."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)
        self.reads: Entries = []
        self.writes: Entries = []
        self.broken = range(0)

    def dma_read(self, address: int, length: int) -> bytes:
        self._ask(address)
        self.reads.append((address, length))
        return bytes(self.bytes[address : address + length])

    def dma_write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._ask(address)
        self.writes.append((address, len(data)))
        self.bytes[address : address + len(data)] = data

    def _ask(self, address: int) -> None:
        if address in self.broken:
            raise DeviceFault("not mapped", address)


class Pin:
    def __init__(self) -> None:
        self.level = False

    def assert_(self) -> None:
        self.level = True

    def deassert(self) -> None:
        self.level = False


class Bench:
    """A card for PCI on a bench: memory, a pin, a clock."""

    def __init__(self) -> None:
        self.memory, self.pin, self.clock = Memory(), Pin(), VirtualClock()
        self.card = DesPci(self.memory, self.pin, self.clock.call_at, self.clock.now)

    def read(self, register: int) -> int:
        return self.card.read(0, register, 4)

    def write(self, register: int, value: int) -> None:
        self.card.write(0, register, 4, value)

    def prepare(self, command: int, inputs: Entries, outputs: Entries) -> None:
        memory = self.memory.bytes
        BLOCK.pack_into(memory, COMMAND_AT, command, 0, IN_AT, len(inputs), OUT_AT, len(outputs))
        for at, entries in ((IN_AT, inputs), (OUT_AT, outputs)):
            for number, entry in enumerate(entries):
                ENTRY.pack_into(memory, at + number * ENTRY.size, *entry)

    def run(self) -> None:
        while self.clock.advance():
            pass

    def status(self) -> int:
        return int(BLOCK.unpack_from(self.memory.bytes, COMMAND_AT)[1])

    def do(self, command: int, inputs: Entries, outputs: Entries = []) -> int:  # noqa: B006
        """Have the card do it, acknowledge, and return the status word."""
        self.prepare(command, inputs, outputs)
        self.write(ADDRESS, COMMAND_AT)
        assert self.read(STATUS) & BUSY
        self.run()
        assert (self.read(STATUS), self.pin.level) == (INTERRUPT, True)
        self.write(CONTROL, ACKNOWLEDGE)
        assert (self.read(STATUS), self.pin.level) == (0, False)
        return self.status()

    def set_key(self, key: bytes, vector: bytes = b"") -> int:
        secret = key + vector
        self.memory.bytes[KEY_AT : KEY_AT + len(secret)] = secret
        return self.do(SET_KEY, [(KEY_AT, len(secret))])

    def cipher(self, command: int, data: bytes) -> bytes:
        """`data` from 0x10000 to 0x20000, both in one piece."""
        self.memory.bytes[0x10000 : 0x10000 + len(data)] = data
        assert self.do(command, [(0x10000, len(data))], [(0x20000, len(data))]) == DONE
        return bytes(self.memory.bytes[0x20000 : 0x20000 + len(data)])


@pytest.fixture
def bench() -> Bench:
    return Bench()


# FIPS 81, appendix B1 and C1, in 7-bit ASCII
TEXT = b"Now is the time for all "
ECB = bytes.fromhex("3fa40e8a984d48156a271787ab8883f9893d51ec4b563b53")
CBC = bytes.fromhex("e5c7cdde872bf27c43e934008c389c0f683788499a7c05f6")


def test_the_examples_of_fips_81(bench: Bench) -> None:
    assert bench.set_key(KEY, VECTOR) == DONE
    assert bench.cipher(ENCRYPT, TEXT) == ECB
    assert bench.cipher(DECRYPT, ECB) == TEXT
    assert bench.cipher(ENCRYPT | CHAINED, TEXT) == CBC
    assert bench.set_key(KEY, VECTOR) == DONE
    assert bench.cipher(DECRYPT | CHAINED, CBC) == TEXT


@pytest.mark.parametrize(
    ("key", "plain", "cipher"),
    [  # NBS Special Publication 500-20, appendix B
        ("0101010101010101", "8000000000000000", "95f8a5e5dd31d900"),
        ("0101010101010101", "0000000000000001", "166b40b44aba4bd6"),
        ("8001010101010101", "0000000000000000", "95a8d72813daa94d"),
        ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
    ],
)
def test_vectors_of_the_bureau_of_standards(bench: Bench, key: str, plain: str, cipher: str) -> None:
    bench.set_key(bytes.fromhex(key))
    assert bench.cipher(ENCRYPT, bytes.fromhex(plain)).hex() == cipher
    assert bench.cipher(DECRYPT, bytes.fromhex(cipher)).hex() == plain


def test_the_test_of_rivest(bench: Bench) -> None:
    """Sixteen rounds in which every single fault of a DES would show (Rivest, Testing Implementations of DES, 1985)."""
    value = bytes.fromhex("9474b8e8c73bca7d")
    for turn in range(16):
        bench.set_key(value)
        value = bench.cipher(DECRYPT if turn % 2 else ENCRYPT, value)
    assert value.hex() == "1b1a2ddb4c642438"


def test_a_key_without_a_vector_has_one_of_zeros(bench: Bench) -> None:
    bench.set_key(KEY, VECTOR)
    bench.set_key(KEY)
    assert bench.cipher(ENCRYPT | CHAINED, TEXT) == library.new(KEY, library.MODE_CBC, iv=bytes(8)).encrypt(TEXT)


def test_the_chain_goes_on_in_the_next_command(bench: Bench) -> None:
    data = random.Random(1).randbytes(3 * FIFO)
    whole = library.new(KEY, library.MODE_CBC, iv=VECTOR).encrypt(data)
    bench.set_key(KEY, VECTOR)
    found = bench.cipher(ENCRYPT | CHAINED, data[:16])
    bench.cipher(ENCRYPT, data[:80])  # no part of the chain
    assert found + bench.cipher(ENCRYPT | CHAINED, data[16:]) == whole
    bench.set_key(KEY, VECTOR)
    found = bench.cipher(DECRYPT | CHAINED, whole[:FIFO])
    assert found + bench.cipher(DECRYPT | CHAINED, whole[FIFO:]) == data


def test_the_key_may_be_scattered(bench: Bench) -> None:
    bench.memory.bytes[0x300:0x305], bench.memory.bytes[0x400:0x403] = KEY[:5], KEY[5:]
    assert bench.do(SET_KEY, [(0x300, 5), (0x400, 3)]) == DONE
    assert bench.cipher(ENCRYPT, TEXT) == ECB


def test_it_moves_4096_bytes_at_a_time_and_takes_its_time(bench: Bench) -> None:
    bench.set_key(KEY)
    data = random.Random(2).randbytes(FIFO + 8)
    bench.memory.bytes[0x10000 : 0x10000 + len(data)] = data
    bench.memory.reads.clear()
    bench.memory.writes.clear()
    bench.prepare(ENCRYPT, [(0x10000, len(data))], [(0x20000, 100), (0x21000, len(data) - 100)])
    start = bench.clock.now()
    bench.write(ADDRESS, COMMAND_AT)
    assert bench.memory.reads == []
    assert bench.clock.advance()
    assert bench.memory.reads == [(COMMAND_AT, 24), (IN_AT, 8), (OUT_AT, 16)]
    assert bench.memory.writes == []
    assert bench.clock.advance()
    assert bench.memory.reads[3:] == [(0x10000, FIFO)]
    assert bench.memory.writes == [(0x20000, 100), (0x21000, FIFO - 100)]
    bench.memory.bytes[0x10000 + FIFO : 0x10008 + FIFO] = b"too late"  # it has not been read yet
    assert bench.clock.advance()
    assert bench.memory.reads[4:] == [(0x10000 + FIFO, 8)]
    assert bench.memory.writes[2:] == [(0x21000 + FIFO - 100, 8), (COMMAND_AT + 4, 4)]
    assert bench.clock.now() - start == SETUP_TIME + len(data) * BYTE_TIME
    expected = library.new(KEY, library.MODE_ECB).encrypt(data[:FIFO] + b"too late")
    assert bench.memory.bytes[0x21000 : 0x21000 + FIFO + 8 - 100] == expected[100:]


def test_the_output_may_be_the_input(bench: Bench) -> None:
    data = random.Random(3).randbytes(3 * FIFO)
    bench.set_key(KEY)
    bench.memory.bytes[0x10000 : 0x10000 + len(data)] = data
    assert bench.do(ENCRYPT, [(0x10000, len(data))], [(0x10000, len(data))]) == DONE
    expected = library.new(KEY, library.MODE_ECB).encrypt(data)
    assert bench.memory.bytes[0x10000 : 0x10000 + len(data)] == expected


@pytest.mark.parametrize(
    ("command", "inputs", "outputs", "status"),
    [
        (0, [(0x10000, 8)], [(0x20000, 8)], BAD_COMMAND),
        (4, [(0x10000, 8)], [(0x20000, 8)], BAD_COMMAND),
        (SET_KEY | CHAINED, [(0x10000, 8)], [], BAD_COMMAND),
        (0xFFFF_FFFF, [(0x10000, 8)], [(0x20000, 8)], BAD_COMMAND),
        (ENCRYPT, [], [(0x20000, 8)], BAD_LIST),
        (ENCRYPT, [(0x10000, 8)], [], BAD_LIST),
        (SET_KEY, [], [], BAD_LIST),
        (ENCRYPT, [(0x10000, 8), (0x11000, 0)], [(0x20000, 8)], BAD_LIST),
        (ENCRYPT, [(0x10000, 8)] * 257, [(0x20000, 8 * 257)], BAD_LIST),
        (ENCRYPT, [(0x10000, 8000)], [(0x20000, 8)] * 1000, BAD_LIST),
        (ENCRYPT, [(0x10000, 12)], [(0x20000, 12)], BAD_LENGTH),
        (ENCRYPT, [(0x10000, 16)], [(0x20000, 8)], BAD_LENGTH),
        (DECRYPT, [(0x10000, 8)], [(0x20000, 16)], BAD_LENGTH),
        (SET_KEY, [(0x10000, 7)], [], BAD_LENGTH),
        (SET_KEY, [(0x10000, 24)], [], BAD_LENGTH),
    ],
)
def test_commands_that_it_rejects(bench: Bench, command: int, inputs: Entries, outputs: Entries, status: int) -> None:
    bench.set_key(KEY)
    assert bench.do(command, inputs, outputs) == status
    assert bench.memory.writes[1:] == [(COMMAND_AT + 4, 4)]  # the status, and nothing else
    assert bench.card.statistics()["errors"] == 1
    assert bench.cipher(ENCRYPT, TEXT) == ECB  # the key is still there


def test_a_list_may_have_256_entries(bench: Bench) -> None:
    bench.set_key(KEY)
    data = random.Random(4).randbytes(256)
    bench.memory.bytes[0x10000:0x10100] = data
    assert bench.do(ENCRYPT, [(0x10000 + i, 1) for i in range(256)], [(0x20000, 256)]) == DONE
    assert bench.memory.bytes[0x20000:0x20100] == library.new(KEY, library.MODE_ECB).encrypt(data)
    assert bench.card.statistics()["longest_list"] == 256


def test_without_a_key(bench: Bench) -> None:
    assert bench.do(ENCRYPT, [(0x10000, 8)], [(0x20000, 8)]) == NO_KEY
    bench.set_key(KEY)
    bench.write(CONTROL, RESET)
    assert bench.do(ENCRYPT, [(0x10000, 8)], [(0x20000, 8)]) == NO_KEY


@pytest.mark.parametrize("broken", [IN_AT, OUT_AT, 0x10000, 0x20000])
def test_what_the_bus_refuses(bench: Bench, broken: int) -> None:
    bench.set_key(KEY)
    bench.memory.broken = range(broken, broken + 1)
    assert bench.do(ENCRYPT, [(0x10000, 8)], [(0x20000, 8)]) == BUS_ERROR
    assert bench.card.statistics()["faults"] == 1


def test_a_block_that_cannot_be_reached_ends_without_a_status(bench: Bench) -> None:
    bench.memory.broken = range(COMMAND_AT, COMMAND_AT + 24)
    assert bench.do(ENCRYPT, [(0x10000, 8)], [(0x20000, 8)]) == 0
    assert bench.card.statistics()["faults"] == 2


def test_a_doorbell_while_it_is_busy_is_ignored(bench: Bench) -> None:
    bench.set_key(KEY)
    bench.prepare(ENCRYPT, [(0x10000, 8)], [(0x20000, 8)])
    bench.write(ADDRESS, COMMAND_AT)
    bench.write(ADDRESS, 0x9999)
    assert bench.read(ADDRESS) == COMMAND_AT
    bench.run()
    assert bench.status() == DONE
    counts = bench.card.statistics()
    assert (counts["commands"], counts["ignored"]) == (2, 1)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_reset_ends_a_command_at_once(bench: Bench, steps: int) -> None:
    bench.set_key(KEY)
    bench.prepare(ENCRYPT, [(0x10000, 2 * FIFO)], [(0x20000, 2 * FIFO)])
    bench.write(ADDRESS, COMMAND_AT)
    for _ in range(steps):
        assert bench.clock.advance()
    bench.write(CONTROL, RESET)
    assert (bench.read(STATUS), bench.pin.level) == (0, False)
    seen = len(bench.memory.reads), len(bench.memory.writes)
    bench.run()
    assert (len(bench.memory.reads), len(bench.memory.writes)) == seen
    assert bench.status() == 0
    assert bench.set_key(KEY) == DONE
    assert bench.cipher(ENCRYPT, TEXT) == ECB


def test_a_reset_takes_the_interrupt_away(bench: Bench) -> None:
    bench.prepare(SET_KEY, [(KEY_AT, 8)], [])
    bench.write(ADDRESS, COMMAND_AT)
    bench.run()
    assert bench.pin.level
    bench.write(CONTROL, RESET)
    assert (bench.read(STATUS), bench.pin.level) == (0, False)


def test_a_command_that_hangs(bench: Bench) -> None:
    bench.card.inject_hang(deaf=1)
    bench.write(ADDRESS, COMMAND_AT)
    bench.run()
    assert bench.read(STATUS) == BUSY
    bench.write(CONTROL, RESET)
    assert bench.read(STATUS) == BUSY
    bench.write(CONTROL, RESET)
    assert bench.read(STATUS) == 0
    assert bench.set_key(KEY) == DONE


def test_registers_on_pci(bench: Bench) -> None:
    assert bench.read(IDENTITY) == SIGNATURE
    assert bench.read(CONTROL) == 0  # write-only
    bench.write(IDENTITY, 0)
    bench.write(STATUS, 0xFFFF_FFFF)
    assert (bench.read(IDENTITY), bench.read(STATUS)) == (SIGNATURE, 0)
    for size in (1, 2, 8):
        assert bench.card.read(0, IDENTITY, size) == (1 << 8 * size) - 1
        bench.card.write(0, ADDRESS, size, 1)
    assert bench.read(STATUS) == 0


def test_registers_on_isa() -> None:
    memory, pin, clock = Memory(), Pin(), VirtualClock()
    card = DesIsa(memory, pin, clock.call_at, clock.now)
    assert bytes(card.read8(IDENTITY + i) for i in range(4)) == b"DES1"
    memory.bytes[0x1_2345 : 0x1_2345 + 24] = BLOCK.pack(SET_KEY, 0, IN_AT, 1, 0, 0)
    memory.bytes[IN_AT : IN_AT + 8] = ENTRY.pack(KEY_AT, 8)
    for at, byte in enumerate((0x45, 0x23, 0x01)):
        card.write8(ADDRESS + at, byte)
        assert card.read8(STATUS) == 0
    card.write8(ADDRESS + 3, 0)
    assert card.read8(STATUS) == BUSY
    assert [card.read8(ADDRESS + at) for at in range(4)] == [0x45, 0x23, 0x01, 0]
    while clock.advance():
        pass
    assert (card.read8(STATUS), pin.level) == (INTERRUPT, True)
    card.write8(CONTROL + 1, ACKNOWLEDGE)  # not the lowest byte
    assert pin.level
    card.write8(CONTROL, ACKNOWLEDGE)
    assert (card.read8(STATUS), pin.level) == (0, False)
    assert BLOCK.unpack_from(memory.bytes, 0x1_2345)[1] == DONE


def test_without_the_library_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto", None)
    with pytest.raises(ConfigurationError, match=r"pip install pycryptodome"):
        Bench()
    for kind in (PcIsa, X8664):
        machine = kind("sim", by_name("virtual"), parse("sim")[1])
        assert "des0" not in machine.devices
        assert machine.des is None
        with pytest.raises(ConfigurationError, match=r"has no device 'des0': .* pip install pycryptodome"):
            machine.driver("des0")
        machine.close()


def test_it_is_plugged_in_by_one_call() -> None:
    pc = PcIsa("sim", by_name("virtual"), parse("sim")[1])
    tag = pc.devices["des0"].tag
    with pytest.raises(ConfigurationError, match="another base"):
        add_des_isa(pc, pc.bus, 0x248, "des1", tag, irq=3)
    assert add_des_isa(pc, pc.bus, 0x250, "des2", tag, irq=3) is not None
    assert {pc.devices[name].driver for name in ("des0", "des2")} == {"des"}
    assert "des1" not in pc.devices
    pc.close()
    today = X8664("sim", by_name("virtual"), parse("sim")[1])
    with pytest.raises(ConfigurationError, match="slot 5"):
        add_des_pci(today, today.host.root, 5, "des1", tag, irq=3)
    assert add_des_pci(today, today.bridge.secondary, 5, "des1", tag, irq=3) is not None
    today.close()


cuts = st.lists(st.integers(1, 7000), min_size=1, max_size=20)


def entries_of(cut: list[int], size: int, base: int, gap: int) -> Entries:
    """`size` bytes from `base` on, cut there, with gaps between."""
    entries: Entries = []
    for number, length in enumerate([*cut, size]):
        length = min(length, size)
        if length:
            entries.append((base + number * gap + sum(n for _, n in entries), length))
        size -= length
    return entries


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2500), cuts, cuts, st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_against_the_library(
    blocks: int, into: list[int], out_of: list[int], chained: bool, decrypt: bool, seed: int
) -> None:
    """Any lists, cut anywhere: the same as one call of the library over the joined bytes, and no other byte touched."""
    bench = Bench()
    chance = random.Random(seed)
    key, vector, size = chance.randbytes(8), chance.randbytes(8), 8 * blocks
    bench.memory.bytes[:] = chance.randbytes(SIZE)
    assert bench.set_key(key, vector) == DONE
    inputs, outputs = entries_of(into, size, 0x10001, 3), entries_of(out_of, size, 0x20003, 5)
    data = b"".join(bytes(bench.memory.bytes[at : at + length]) for at, length in inputs)
    cipher = library.new(key, library.MODE_CBC, iv=vector) if chained else library.new(key, library.MODE_ECB)
    expected = cipher.decrypt(data) if decrypt else cipher.encrypt(data)
    before = bytearray(bench.memory.bytes)
    command = (DECRYPT if decrypt else ENCRYPT) | (CHAINED if chained else 0)
    assert bench.do(command, inputs, outputs) == DONE
    done = 0
    for at, length in outputs:
        before[at : at + length] = expected[done : done + length]
        done += length
    assert bench.memory.bytes[0x10000:] == before[0x10000:]
