"""The client of the qtest protocol, against a server that follows a script."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.qemu.qtest import Order, Qtest
from busdma.qemu.wire import DEPTH
from qemu.fake_qemu import FakeQemu

ORDERS: tuple[Order, Order] = ("little", "big")
IRQS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=3)


@st.composite
def accesses(draw: st.DrawFn) -> tuple[str, int, int, int, Order]:
    size = draw(st.sampled_from([1, 2, 4, 8]))
    address = draw(st.integers(0, 4)) * 8
    kind = draw(st.sampled_from(["read", "write", "write", "bytes", "flush", "poll"]))
    return kind, address, size, draw(st.integers(0, (1 << 8 * size) - 1)), draw(st.sampled_from(ORDERS))


@given(
    st.lists(accesses(), max_size=30),
    st.sampled_from(ORDERS),
    st.lists(st.integers(1, 20), max_size=4),
    st.lists(IRQS, max_size=30),
    st.sampled_from([0, 20_000]),
    st.booleans(),
)
def test_any_interleaving_gives_what_memory_has_and_the_interrupts_in_order(
    script: list[tuple[str, int, int, int, Order]],
    target: Order,
    cuts: list[int],
    irqs: list[list[tuple[int, bool]]],
    spin: int,
    listen: bool,
) -> None:
    fake = FakeQemu(order=target, cuts=cuts, irqs=lambda number: irqs[number] if number < len(irqs) else ())
    memory = bytearray(64)
    seen: list[tuple[int, bool]] = []
    with closing(Qtest(fake.ours, spin=spin)) as qtest:
        sent = list(irqs[0]) if irqs else []
        assert qtest.order == target
        for line in range(4):
            qtest.on_interrupt(line, lambda level, line=line: seen.append((line, level)))  # type: ignore[misc]
        del seen[:]  # what was high already
        if listen:
            qtest.listen()
        for kind, address, size, value, order in script:
            if kind == "read":
                assert qtest.read(address, size, order) == int.from_bytes(memory[address : address + size], order)
            elif kind == "write":
                qtest.write(address, size, value, order)
                memory[address : address + size] = value.to_bytes(size, order)
            elif kind == "bytes":
                qtest.write_bytes(address, value.to_bytes(size, order))
                memory[address : address + size] = value.to_bytes(size, order)
                assert qtest.read_bytes(0, 64) == memory
            elif kind == "flush":
                qtest.flush()
            else:
                qtest.poll()
        qtest.flush()
        sent = [irq for number in range(1, len(fake.commands)) if number < len(irqs) for irq in irqs[number]]
    fake.join()
    assert fake.memory[:64] == memory
    assert seen == sent


def test_a_read_comes_after_all_that_was_posted_however_much_it_was() -> None:
    """More than both sides of the socket hold: if nobody took in replies, both ends would wait to send."""
    fake = FakeQemu()
    with closing(Qtest(fake.ours)) as qtest:
        for number in range(100 * DEPTH):
            qtest.write(8, 4, number)
        assert qtest.read(8, 4) == 100 * DEPTH - 1
    assert len(fake.commands) == 100 * DEPTH + 2


@pytest.mark.parametrize("later", ["flush", "read", "write", "check"])
def test_a_refused_write_is_named_once_by_a_later_call(later: str) -> None:
    fake = FakeQemu(refuse=lambda command: command == "writel 0x10 0x7")
    with closing(Qtest(fake.ours)) as qtest:
        calls: dict[str, Any] = {
            "flush": qtest.flush,
            "read": lambda: qtest.read(0, 4),
            "write": lambda: qtest.write(0, 4, 1),
            "check": qtest.check,
        }
        qtest.write(0x10, 4, 7)
        if later in ("write", "check"):  # they do not wait for replies: have this one taken in
            while qtest._wire._pending:
                qtest._wire._receive(wait=True)
        with pytest.raises(DeviceFault, match="QEMU refuses 'writel 0x10 0x7': FAIL Unknown device"):
            calls[later]()
        assert qtest.read(0x20, 4) == 0
        qtest.check()


def test_a_refused_question_says_why() -> None:
    fake = FakeQemu(refuse=lambda command: command.startswith("irq"))
    with closing(Qtest(fake.ours)) as qtest:
        with pytest.raises(DeviceFault, match="'irq_intercept_in /machine/none': FAIL Unknown device"):
            qtest.intercept("/machine/none", "in")
        qtest.check()


def test_ports_and_wrong_arguments() -> None:
    fake = FakeQemu()
    with closing(Qtest(fake.ours)) as qtest:
        qtest.port_write(0x3F0, 2, 0x1234)
        assert qtest.port_read(0x3F0, 2) == 0x1234
        assert fake.commands[1:] == ["outw 0x3f0 0x1234", "inw 0x3f0"]
        with pytest.raises(DriverError, match="no access of 8 bytes: give one of 1, 2, 4"):
            qtest.port_read(0, 8)
        with pytest.raises(DriverError, match="no access of 3 bytes"):
            qtest.read(0, 3)
        with pytest.raises(DriverError, match="cannot write 0x100 to 0x8: that register has 8 bits"):
            qtest.write(8, 1, 0x100)
        with pytest.raises(ConfigurationError, match="is no QOM path"):
            qtest.intercept("/machine\nwriteb 0 0", "in")
        assert qtest.read_bytes(0, 0) == b""


def test_the_listener_delivers_what_nobody_waits_for() -> None:
    fake = FakeQemu()
    high = threading.Event()
    with closing(Qtest(fake.ours)) as qtest:
        qtest.on_interrupt(5, lambda level: high.set() if level else None)
        qtest.listen()
        qtest.listen()
        for _ in range(20):
            fake.say("IRQ raise 5\n")
            assert high.wait(60)
            high.clear()
            assert qtest.read(0, 4) == 0
            fake.say("IRQ lower 5\n")


def test_without_a_listener_poll_delivers() -> None:
    fake = FakeQemu()
    seen: list[bool] = []
    with closing(Qtest(fake.ours)) as qtest:
        qtest.on_interrupt(5, seen.append)
        fake.say("IRQ raise 5\nIRQ lo")
        qtest.poll()
        fake.say("wer 5\n")
        qtest.poll()
        assert seen == [True, False]


def test_a_handler_that_comes_late_is_told_of_a_line_that_is_high() -> None:
    fake = FakeQemu()
    seen: list[bool] = []
    with closing(Qtest(fake.ours)) as qtest:
        fake.say("IRQ raise 2\n")
        qtest.poll()
        qtest.on_interrupt(2, seen.append)
        assert seen == [True]


def test_a_handler_may_ask_the_device_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeQemu(irqs=lambda number: [(1, True), (1, False)] if number == 1 else ())
    seen: list[tuple[bool, int]] = []
    with closing(Qtest(fake.ours)) as qtest:

        def handler(level: bool) -> None:
            seen.append((level, qtest.read(8, 1)))
            raise RuntimeError("broken")

        qtest.on_interrupt(1, handler)
        qtest.read(0, 1)
        assert seen == [(True, 0), (False, 0)]
    assert "the handler of interrupt line 1 failed" in caplog.text


def test_many_threads_get_their_own_answers() -> None:
    fake = FakeQemu()
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for turn in range(200):
            qtest.write(8 * number, 4, turn)
            if (found := qtest.read(8 * number, 4)) != turn:
                wrong.append((turn, found))

    with closing(Qtest(fake.ours)) as qtest:
        qtest.listen()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("listen", [False, True])
@pytest.mark.parametrize("spin", [0, 20_000])
def test_a_death_in_mid_command_is_told_to_everybody(spin: int, listen: bool) -> None:
    fake = FakeQemu(dies=3)
    woken = threading.Event()
    with closing(Qtest(fake.ours, spin=spin, last_words=lambda: "it said: Bail out!")) as qtest:
        qtest.on_interrupt(0, lambda level: woken.set())
        if listen:
            qtest.listen()
        qtest.write(0, 4, 1)
        assert qtest.read(0, 4) == 1
        with pytest.raises(DeviceFault, match=r"QEMU has gone.*: it said: Bail out!"):
            qtest.read(0x18, 4)
        for call in (lambda: qtest.write(0, 4, 1), qtest.flush, qtest.poll, qtest.check, lambda: qtest.read(0, 1)):
            with pytest.raises(DeviceFault, match="Bail out!"):
                call()
        assert woken.wait(60)
        late: list[bool] = []
        qtest.on_interrupt(7, late.append)
        assert late == [True]


def test_the_listener_finds_out_by_itself() -> None:
    fake = FakeQemu(dies=1)
    woken = threading.Event()
    with closing(Qtest(fake.ours)) as qtest:
        qtest.on_interrupt(0, lambda level: woken.set())
        qtest.listen()
        qtest.write(0, 1, 1)
        assert woken.wait(60)
        with pytest.raises(DeviceFault, match="QEMU has gone in the middle of 'writeb 0x0 0x1'"):
            qtest.check()


def test_a_silent_qemu_is_given_up() -> None:
    fake = FakeQemu(silent=1)
    with closing(Qtest(fake.ours, patience=0.2)) as qtest:
        with pytest.raises(DeviceFault, match=r"has not answered 'readl 0x40' for 0.2 s: it hangs"):
            qtest.read(0x40, 4)
        with pytest.raises(DeviceFault, match="it hangs"):
            qtest.write(0, 1, 0)


def test_an_answer_without_a_question_is_a_fault() -> None:
    fake = FakeQemu()
    with closing(Qtest(fake.ours)) as qtest:
        fake.say("OK 0x5\n")
        with pytest.raises(DeviceFault, match="QEMU sent 'OK 0x5' and was not asked"):
            qtest.poll()


def test_close_ends_a_wait_and_all_use() -> None:
    fake = FakeQemu(silent=1)
    qtest = Qtest(fake.ours)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            qtest.read(0, 4)
        except DriverError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while len(fake.commands) < 2:
        os.sched_yield()
    qtest.close()
    thread.join()
    assert "was closed meanwhile" in str(failed[0])
    qtest.close()
    for call in (qtest.flush, qtest.check, qtest.listen, lambda: qtest.read(0, 1)):
        with pytest.raises(DriverError, match="closed: open another"):
            call()


def test_after_a_keyboard_interrupt_in_a_wait_answers_still_belong_to_their_questions() -> None:
    """The wait is ended by a signal when its question has been sent; its answer comes after the next question."""
    ours, theirs = socket.socketpair()
    peer = theirs.makefile("rw")

    def serve() -> None:
        assert peer.readline() == "endianness\n"
        theirs.sendall(b"OK little\n")
        assert peer.readline() == "readl 0x0\n"
        os.kill(os.getpid(), signal.SIGINT)
        assert peer.readline() == "endianness\n"
        theirs.sendall(b"IRQ raise 1\nOK 0x111\nIRQ raise 3\nOK little\n")
        assert peer.readline() == "readl 0x8\n"
        theirs.sendall(b"OK 0x222\n")

    thread = threading.Thread(target=serve)
    seen: list[int] = []
    thread.start()
    with closing(theirs), closing(peer), closing(Qtest(ours)) as qtest:
        qtest.on_interrupt(1, lambda level: seen.append(1))
        qtest.on_interrupt(3, lambda level: seen.append(3))
        with pytest.raises(KeyboardInterrupt):
            qtest.read(0, 4)
        assert qtest.read(8, 4) == 0x222
        thread.join()
    assert seen == [1, 3]
