"""Children that never outlive their parent, however it ends. No QEMU is needed for this."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from busdma.errors import ConfigurationError
from busdma.qemu.lifeline import TAIL, Child

LIMIT = 60_000  # ms after which a child that still lives is a leftover


def ended(pidfd: int) -> bool:
    """Has, or within the limit will have, that process ended?"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(LIMIT))


def marked(marker: str) -> list[int]:
    """The processes with `marker` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def parent(body: str, *arguments: str) -> subprocess.Popen[str]:
    """Another Python that runs `body`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def test_a_child_says_how_it_ended() -> None:
    child = Child(["/bin/sh", "-c", "echo first >&2; echo last >&2; exit 3"])
    assert child.wait(60)
    assert child.last_words(60) == "it ended with status 3; its last words: first\nlast"
    assert not child.running()
    child.kill()
    child.kill()


def test_a_child_that_is_killed_says_so_and_is_reaped() -> None:
    child = Child(["/bin/sleep", "1000"])
    assert child.running()
    assert child.last_words(0) == "it still runs, and said nothing"
    child.kill()
    assert child.last_words(1) == "it was killed by signal 9 (Killed), and said nothing"
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def test_only_the_end_of_much_noise_is_kept_and_the_child_never_blocks() -> None:
    child = Child(["/bin/sh", "-c", f"yes noise | head -c {24 * TAIL} >&2; echo the end >&2"])
    assert child.wait(60)
    words = child.last_words(60)
    assert words.endswith("noise\nthe end")
    assert len(words) < TAIL + 100
    child.kill()


def test_its_descriptors_are_those_it_was_given() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from outside\n")
    child = Child(["/bin/sh", "-c", f"read line </proc/self/fd/{reading}; read none || echo $line >&2"], [reading])
    assert child.last_words(60) == "it ended with status 0; its last words: from outside"
    child.kill()
    os.close(reading)
    os.close(writing)


def test_letting_go_of_the_line_ends_it() -> None:
    child = Child(["/bin/sleep", "1000"])
    child.abandon()
    assert child.wait(60)
    assert "signal 9" in child.last_words(60)
    child.kill()


def test_no_room_for_another_process_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object, **named: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(ConfigurationError, match=r"cannot start /bin/sleep \(Resource temporarily unavailable\)"):
        Child(["/bin/sleep", "1000"])
    assert len(os.listdir("/proc/self/fd")) == before


KILLED = """
    import os, sys, threading, time
    from busdma.qemu.lifeline import Child
    children = []
    starter = threading.Thread(target=lambda: children.append(Child(["/bin/sleep", "100001"])))
    starter.start()
    starter.join()  # the thread that started it ends long before this process
    time.sleep(0.2)
    assert children[0].running()
    if sys.argv[1] == "fork" and os.fork() == 0:
        os.close(1)
        os.read(int(sys.argv[2]), 1)
        os._exit(0)
    print(children[0].pid, flush=True)
    {ending}
"""
ENDINGS = {
    "killed": "time.sleep(1000)",
    "exit without cleanup": "sys.stdin.read(0); os._exit(0)",
    "exception": "raise SystemExit(3)",
    "interpreter ends": "pass",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("fork", ["alone", "fork"])
def test_the_parent_ends_and_so_does_the_child(ending: str, fork: str) -> None:
    """Even while a process lives that the parent forked and that inherited all that it had open."""
    hold, release = os.pipe()
    body = KILLED.format(ending=ENDINGS[ending])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(body), fork, str(hold)],
        stdout=subprocess.PIPE,
        pass_fds=[hold],
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout is not None
    with process, process.stdout:
        pid = int(process.stdout.readline())
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1  # it has ended already; of a parent that sleeps it could not have
            assert ending != "killed"
        if ending == "killed":
            process.send_signal(signal.SIGKILL)
        process.wait()
        if pidfd >= 0:
            assert ended(pidfd)
            os.close(pidfd)
    os.close(hold)
    os.close(release)


def test_a_parent_killed_at_any_moment_of_the_start_leaves_nothing() -> None:
    random = Random(4)
    marker = f"1000000.{os.getpid()}"
    body = """
        import sys
        from busdma.qemu.lifeline import Child
        print(flush=True)
        children = [Child(["/bin/sleep", sys.argv[1]]) for _ in range(1000)]
    """
    for _ in range(12):
        process = parent(body, marker)
        assert process.stdout is not None
        with process, process.stdout:
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.0, 0.05))
            process.kill()
    for pid in marked(marker):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert ended(pidfd)
        os.close(pidfd)
    assert marked(marker) == []
