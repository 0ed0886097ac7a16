"""Real QEMUs: how they start, what they say when they cannot, how they end, and that nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.machine.interrupt import Interrupt
from busdma.qemu.process import Qemu, find
from busdma.qemu.qtest import Qtest
from busdma.runtime import by_name
from busdma.runtime.clock import WallClock
from qemu.machines import need, running
from qemu.test_lifeline import ended, marked, parent


def test_it_answers_and_ends_politely_and_is_reaped() -> None:
    with running() as (qemu, _):
        assert qemu.qtest.order == "little"
        assert qemu.qtest.read(0xFFFF0, 4) == 0xFCEBF4FA  # the firmware
        assert str(qemu.pid) in repr(qemu)
    assert qemu.last_words() == "it ended with status 0, and said nothing"
    assert "closed" in repr(qemu)
    qemu.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(qemu.pid, os.WNOHANG)
    with pytest.raises(DriverError, match="closed: open another machine"):
        qemu.qtest.read(0, 4)
    with pytest.raises(DriverError, match="closed: open another machine"):
        _ = qemu.monitor


def test_a_big_endian_target_gives_values_in_the_devices_byte_order() -> None:
    with running("sparc") as (qemu, ram):
        qtest = qemu.qtest
        assert qtest.order == "big"
        qtest.write(0x100, 4, 0x11223344, "big")
        qtest.write(0x104, 4, 0x11223344, "little")
        qtest.write(0x108, 8, 0x1122334455667788)
        qtest.write(0x110, 2, 0x1122, "big")
        qtest.flush()
        expected = bytes.fromhex("11223344 44332211 8877665544332211 1122")
        assert ram.read(0x100, 18) == expected
        assert qtest.read_bytes(0x100, 18) == expected
        assert qtest.read(0x104, 4, "little") == qtest.read(0x100, 4, "big") == 0x11223344


def start_timer(qtest: Qtest) -> None:
    """8254 channel 0 counts down once, and then IRQ 0 of the PC is high (Intel 8254 data sheet, mode 0)."""
    qtest.port_write(0x43, 1, 0x30)
    qtest.port_write(0x40, 1, 0x00)
    qtest.port_write(0x40, 1, 0x01)


def test_interrupt_lines_of_a_real_machine() -> None:
    with running() as (qemu, _):
        qtest = qemu.qtest
        high = threading.Event()
        qtest.intercept("/machine/i440fx/ioapic", "in")
        qtest.on_interrupt(0, lambda level: high.set() if level else None)
        qtest.listen()
        start_timer(qtest)
        assert high.wait(60)
        with pytest.raises(DeviceFault, match="QEMU refuses 'irq_intercept_in /machine/i440fx': FAIL"):
            qtest.intercept("/machine/i440fx", "in")


@pytest.mark.parametrize("name", ["asyncio", "threads"])
def test_an_interrupt_wakes_a_driver_of_every_runtime_with_a_real_clock(name: str) -> None:
    with running() as (qemu, _), by_name(name, clock=WallClock()) as runtime:
        qtest = qemu.qtest
        line = Interrupt("irq 0", runtime)
        qtest.intercept("/machine/i440fx/ioapic", "in")
        rise, fall = line.assert_, line.deassert
        qtest.on_interrupt(0, lambda level: rise() if level else fall())
        qtest.listen()

        async def driver() -> list[int]:
            rises = []
            for _ in range(3):
                start_timer(qtest)
                qtest.flush()  # the new count has lowered the line
                while not (rose := await line.wait(runtime.now() + 60 * 10**9)):
                    await runtime.give_way()  # another thread is about to tell that it has fallen
                rises.append(rose)
            return rises

        assert runtime.run(driver) == [1, 1, 1]


@pytest.mark.parametrize("listen", [False, True])
def test_a_death_in_mid_transfer_has_its_last_words(listen: bool) -> None:
    with running() as (qemu, _):
        woken = threading.Event()
        qemu.qtest.on_interrupt(0, lambda level: woken.set())
        if listen:
            qemu.qtest.listen()
        os.kill(qemu.pid, signal.SIGKILL)
        if listen:
            assert woken.wait(60)
        with pytest.raises(DeviceFault, match=r"QEMU has gone.*it was killed by signal 9 \(Killed\)"):
            while True:
                qemu.qtest.read(0, 4)
        with pytest.raises(DeviceFault, match="signal 9"):
            qemu.qtest.write(0, 4, 0)
        with pytest.raises(DeviceFault, match="QEMU has gone in the middle of the greeting: it was killed"):
            qemu.monitor.execute("query-status")
        assert woken.is_set()


def test_what_qemu_says_as_it_aborts_is_in_the_fault() -> None:
    """A qtest command without its operands is an assertion in QEMU."""
    words = r"(?s)gone in the middle of 'readb': .*signal 6.*ERROR:.*assertion failed"
    with running() as (qemu, _), pytest.raises(DeviceFault, match=words):
        qemu.qtest._wire.ask(b"readb")


def test_a_stopped_qemu_is_ended_firmly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busdma.qemu.process.ENDING", 0.2)
    with running() as (qemu, _):
        assert qemu.monitor.execute("query-status")["running"] is True
        os.kill(qemu.pid, signal.SIGSTOP)
    assert "signal 9" in qemu.last_words()


def test_a_missing_qemu_names_the_package_and_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for target, package in (
        ("x86_64", "qemu-system-x86"),
        ("sparc", "qemu-system-sparc"),
        ("alpha", "qemu-system-misc"),
    ):
        with pytest.raises(
            ConfigurationError, match=f"no qemu-system-{target} .*apt install {package} .*option binary="
        ):
            Qemu(target, [])
    with pytest.raises(ConfigurationError, match="no /nowhere/qemu that can be run"):
        find("sparc", "/nowhere/qemu")
    with pytest.raises(ConfigurationError, match="no target 'vax': give one of x86_64"):
        find("vax")


@pytest.mark.parametrize("where", ["here", "CI"])
def test_tests_without_qemu_are_skipped_but_fail_in_ci(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true" if where == "CI" else "")
    outcome = pytest.fail.Exception if where == "CI" else pytest.skip.Exception
    with pytest.raises(outcome, match="qemu-system-x86_64 is missing: apt install qemu-system-x86"):
        need("x86_64")


def test_another_binary_is_used(tmp_path: Path) -> None:
    need("x86_64")
    other = tmp_path / "my qemu"
    other.symlink_to(find("x86_64"))
    with closing(Qemu("x86_64", ["-M", "none"], binary=str(other))) as qemu:
        assert qemu.binary == str(other)


def test_a_binary_that_is_no_qemu_does_not_start() -> None:
    with pytest.raises(ConfigurationError, match=r"/true did not start.*it ended with status 0, and said nothing"):
        Qemu("x86_64", [], binary="true")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-M", "amiga"], "unsupported machine type"),
        (["-M", "pc", "-device", "warp-drive"], "'warp-drive' is not a valid device model name"),
        (["-M", "pc", "-drive", "file=/nowhere/disk.img"], "Could not open '/nowhere/disk.img'"),
        (["-M", "pc", "--nonsense"], "invalid option"),
    ],
)
def test_what_cannot_start_says_so_in_qemus_words_and_leaves_nothing(arguments: list[str], words: str) -> None:
    need("x86_64")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(ConfigurationError, match=f"(?s)did not start.*ended with status 1.*{words}"):
        Qemu("x86_64", arguments)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_session_leaves_no_descriptor_and_no_thread() -> None:
    need("x86_64")
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with running() as (qemu, ram):
        qemu.qtest.listen()
        assert "0x0" in qemu.monitor.hmp("gpa2hva 0")
        ram.view.release()
    del ram
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


PARENT = """
    import sys, threading, time
    from qemu.machines import running

    def start():
        session = running("x86_64", "-name", sys.argv[1])
        sessions.append(session)
        qemus.append(session.__enter__()[0])

    sessions, qemus = [], []
    starter = threading.Thread(target=start)
    starter.start()
    starter.join()
    qemu = qemus[0]
    qemu.qtest.listen()
    qemu.monitor.execute("query-status")
    time.sleep(0.2)
    qemu.qtest.write(0x1000, 4, 5)
    assert qemu.qtest.read(0x1000, 4) == 5  # alive, though the thread that started it is not
    print(qemu.pid, flush=True)
    time.sleep(1000)
"""


def test_a_kill_9_of_the_parent_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("x86_64")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    marker = f"busdma-leftover-{os.getpid()}"
    shared, sockets = set(os.listdir("/dev/shm")), named_sockets()
    process = parent(PARENT, marker)
    assert process.stdout is not None
    with process, process.stdout:
        pid = int(process.stdout.readline())
        assert pid in marked(marker)
        pidfd = os.pidfd_open(pid)
        process.kill()
        process.wait()
        assert ended(pidfd)
        os.close(pidfd)
    left = {
        "processes": marked(marker),
        "sockets": sorted(name for name in named_sockets() - sockets if "busdma" in name or "qemu" in name.lower()),
        "shared": sorted(name for name in set(os.listdir("/dev/shm")) - shared if "busdma" in name or "qemu" in name),
        "files": os.listdir(tmp_path),
    }
    print("left over after kill -9 of the parent:", left, file=sys.stderr)
    assert left == {"processes": [], "sockets": [], "shared": [], "files": []}


def named_sockets() -> set[str]:
    """Unix sockets that have a name."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {line.split()[7] for line in lines if len(line.split()) > 7}
