"""The guest's memory from both sides, and what a host without room says."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DriverError
from busdma.qemu.ram import SharedRam
from qemu.machines import RAM, running


@pytest.mark.parametrize("target", ["x86_64", "sparc"])
def test_memory_is_one_from_both_sides(target: str) -> None:
    data = bytes(range(256)) * 48
    with running(target) as (qemu, ram):
        for at in (0x4000, RAM - len(data)):
            ram.view[at : at + len(data)] = data
            assert qemu.qtest.read_bytes(at, len(data)) == data
            qemu.qtest.write_bytes(at, data[::-1])
            qemu.qtest.flush()
            assert ram.view[at : at + len(data)] == data[::-1]
    assert ram.read(0x4000, 16) == data[::-1][:16]  # QEMU has gone; its memory has not


def test_what_is_not_in_the_memory_is_refused() -> None:
    with SharedRam(RAM) as ram:
        for at, length in ((-1, 4), (RAM, 1), (RAM - 1, 2)):
            with pytest.raises(DriverError, match="the memory has 0x2000000"):
                ram.read(at, length)
            with pytest.raises(DriverError, match="the memory has 0x2000000"):
                ram.write(at, bytes(length))


@given(st.integers(0, 3 * 4096), st.binary(max_size=4096))
def test_shared_memory_holds_what_was_written(at: int, data: bytes) -> None:
    with SharedRam(4 * 4096) as ram:
        ram.write(at, data)
        assert bytes(ram.view) == bytes(at) + data + bytes(ram.size - at - len(data))
        assert ram.read(at, len(data)) == data


def test_a_size_that_is_none() -> None:
    for size in (0, -4096, mmap.PAGESIZE + 1):
        with pytest.raises(ConfigurationError, match="give a multiple of"):
            SharedRam(size)


def test_more_than_any_address_can_say_is_refused_and_nothing_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for size in (1 << 62, 1 << 64, 1 << 80):
        with pytest.raises(ConfigurationError, match=r"MiB of memory for the guest .*give the machine less"):
            SharedRam(size)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("limit", "value", "advice"),
    [
        ("RLIMIT_AS", "used() + (64 << 20)", "ulimit -v"),
        ("RLIMIT_FSIZE", "64 << 20", "ulimit -f"),
        ("RLIMIT_NOFILE", "len(os.listdir('/proc/self/fd')) - 1", "ulimit -n"),
    ],
)
def test_a_limit_of_this_process_is_named(limit: str, value: str, advice: str) -> None:
    script = f"""
import os, resource
from busdma.errors import ConfigurationError
from busdma.qemu.ram import SharedRam
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = len(os.listdir("/proc/self/fd"))
hard = resource.getrlimit(resource.{limit})[1]
resource.setrlimit(resource.{limit}, ({value}, hard))
try:
    SharedRam(512 << 20)
except ConfigurationError as error:
    print(error)
resource.setrlimit(resource.{limit}, (hard, hard))
assert len(os.listdir("/proc/self/fd")) == before
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert "this host does not give 512 MiB of memory for the guest" in done.stdout
    assert advice in done.stdout
