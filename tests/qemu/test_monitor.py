"""QMP: with a real QEMU, and without the library that it needs."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import closing

import pytest

from busdma.errors import ConfigurationError, DeviceFault, DriverError
from busdma.qemu.monitor import Monitor, missing
from busdma.qemu.process import Qemu
from busdma.runtime import by_name
from qemu.machines import running


def test_commands_of_both_monitors_and_their_errors() -> None:
    with running() as (qemu, _):
        assert qemu.monitor is qemu.monitor
        assert qemu.monitor.execute("query-status")["status"] == "running"
        listed = qemu.monitor.execute("qom-list", {"path": "/machine/i440fx"})
        assert {"name": "ioapic", "type": "child<ioapic>"} in listed
        assert "0x0" in qemu.monitor.hmp("gpa2hva 0x0")
        with pytest.raises(DeviceFault, match="QEMU refuses 'no-such-thing': The command no-such-thing has not been"):
            qemu.monitor.execute("no-such-thing")
        assert qemu.monitor.execute("query-name") == {}


def test_it_works_inside_every_runtime_and_from_many_threads() -> None:
    """The loop of the library is not that of the drivers."""
    with running() as (qemu, _):

        async def driver() -> object:
            return qemu.monitor.execute("query-status")["running"]

        for name in ("virtual", "asyncio", "threads"):
            with by_name(name) as runtime:
                assert runtime.run(driver) is True
        answers: list[object] = []
        threads = [
            threading.Thread(target=lambda: answers.extend(qemu.monitor.execute("query-name") for _ in range(20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [{}] * 80


def test_a_monitor_without_qemu_gives_up() -> None:
    for silent in (True, False):
        ours, theirs = socket.socketpair()
        before = threading.active_count()
        with closing(theirs):
            if silent:
                with pytest.raises(DeviceFault, match=r"has not answered the greeting for 0.1 s: it hangs"):
                    Monitor(ours, patience=0.1)
            else:
                theirs.close()
                with pytest.raises(DeviceFault, match="QEMU has gone in the middle of the greeting: its end of the"):
                    Monitor(ours)
        assert threading.active_count() == before


def test_a_closed_monitor_says_so() -> None:
    with running() as (qemu, _):
        found = qemu.monitor
    found.close()
    with pytest.raises(DriverError, match="closed: open another machine"):
        found.execute("query-status")


def test_the_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() == ""
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs), pytest.raises(ConfigurationError, match=r"pip install 'busdma\[qemu\]'"):
        Monitor(ours)
    with pytest.raises(ConfigurationError, match=r"pip install 'busdma\[qemu\]'"):
        Qemu("x86_64", [], binary="true")
