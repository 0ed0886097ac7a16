"""Whether the CPU of a QEMU machine does nothing: not what it is said to do, but what its thread of the host does."""

from __future__ import annotations

from pathlib import Path

from busdma.qemu.process import Qemu

LOOKS = 40


def cpu_sleeps(qemu: Qemu) -> bool:
    """Whether the CPU's thread is asleep at most of many looks. One that runs code, even an empty loop, never is."""
    (cpu,) = qemu.monitor.execute("query-cpus-fast")
    states = []
    for _ in range(LOOKS):
        assert qemu.monitor.execute("query-status")["running"]
        stat = Path(f"/proc/{qemu.pid}/task/{cpu['thread-id']}/stat").read_text()
        states.append(stat.rpartition(")")[2].split()[0])
    return states.count("S") > LOOKS // 2
