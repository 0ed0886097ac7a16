"""The mutator itself, on toys: each way to make a call wrong does what it says, and no fate is taken for another."""

from __future__ import annotations

import ast
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp
from busdma.waiting import Waiter
from check import bench
from check.bench import BOTH, FROM, POST, PRE, TO, Bench, pattern
from mutation.account import Account, Fate, Listed, Mutant, take_account
from mutation.runs import Job, run
from mutation.sites import SWITCH, Site, all_sites, wire
from mutation.switch import LATE, MOST_CALLS, Hung, Switch

SIZE = 100
DATA = pattern(SIZE)


class Recorder:
    """A map, a tag and a runtime: notes how it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.buffer = DATA
        self.tag = SimpleNamespace(domain=SimpleNamespace(runtime=self))
        self.timers: list[tuple[int, Callable[[], object]]] = []

    def sync(self, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        self.calls.append((op, offset, length))

    def load(self, buffer: bytes, direction: Direction = BOTH, *, deadline: int | None = None) -> str:
        self.calls.append((buffer, direction, deadline))
        return "segments"

    def transfer(self, buffer: bytes, *, to_device: bool = False, from_device: bool = False) -> str:
        self.calls.append((buffer, to_device, from_device))
        return "a block"

    def unload(self) -> None:
        self.calls.append(("unload",))

    def now(self) -> int:
        return 5

    def call_at(self, when: int, fn: Callable[[], object]) -> None:
        self.timers.append((when, fn))


def toy(source: str, **names: Any) -> tuple[Switch, list[Site], dict[str, Any]]:
    """A module of that source, which knows what `check.bench` does, with its calls led through a switch."""
    tree, sites = wire(source, "toy.py")
    found: dict[str, Any] = {**vars(bench), SWITCH: Switch(), **names}
    exec(compile(tree, "toy.py", "exec"), found)
    return found[SWITCH], sites, found


def of(call: str, how: str = "") -> tuple[Recorder, Any, set[str]]:
    """What comes of this one call, made wrong like that: the calls, the value, and the ways that were noted."""
    it = Recorder()
    switch, (site,), names = toy(f"def do(it, data):\n    return {call}")
    if how:
        switch.set(site.name, how)
    value = names["do"](it, DATA)
    return it, value, switch.seen.get(site.name, set())


RIGHT = {
    "it.sync(PREWRITE)": (PREWRITE, 0, None),
    "it.sync(POST, 4)": (POST, 4, None),
    "it.sync(PREREAD, length=8, offset=4)": (PREREAD, 4, 8),
    "it.load(data)": (DATA, BOTH, None),
    "it.load(data, TO, deadline=7)": (DATA, TO, 7),
    "it.transfer(data, to_device=True)": (DATA, True, False),
    "it.unload()": ("unload",),
}


@pytest.mark.parametrize("call", RIGHT)
def test_without_a_mutant_a_call_is_as_it_is_written(call: str) -> None:
    it, value, _ = of(call)
    assert it.calls == [RIGHT[call]]
    assert value == {"load": "segments", "transfer": "a block"}.get(call[3:].partition("(")[0])


WRONG = [
    ("it.sync(PREWRITE)", "delete", None),
    ("it.sync(PREWRITE)", "pre-post", (POSTWRITE, 0, None)),
    ("it.sync(PREWRITE)", "other-way", (PREREAD, 0, None)),
    ("it.sync(PREWRITE)", "first-byte", (PREWRITE, 1, SIZE - 1)),
    ("it.sync(PREWRITE)", "last-byte", (PREWRITE, 0, SIZE - 1)),
    ("it.sync(PREWRITE)", "half", (PREWRITE, 0, SIZE // 2)),
    ("it.sync(POSTREAD, 60)", "last-byte", (POSTREAD, 60, SIZE - 61)),
    ("it.sync(POSTREAD, 60)", "other-way", (POSTWRITE, 60, None)),
    ("it.sync(POSTREAD, 60)", "pre-post", (PREREAD, 60, None)),
    ("it.sync(PRE, 4, 8)", "pre-post", (POST, 4, 8)),
    ("it.sync(PRE, 4, 8)", "only-read", (PREREAD, 4, 8)),
    ("it.sync(PRE, 4, 8)", "only-write", (PREWRITE, 4, 8)),
    ("it.sync(POST, 4, 8)", "pre-post", (PRE, 4, 8)),
    ("it.sync(POST, 4, 8)", "only-read", (POSTREAD, 4, 8)),
    ("it.sync(POST, 4, 8)", "only-write", (POSTWRITE, 4, 8)),
    ("it.sync(POST, offset=4, length=8)", "first-byte", (POST, 5, 7)),
    ("it.load(data, TO)", "from_device", (DATA, FROM, None)),
    ("it.load(data, TO)", "both", (DATA, BOTH, None)),
    ("it.load(data, direction=FROM, deadline=7)", "to_device", (DATA, TO, 7)),
    ("it.load(data)", "to_device", (DATA, TO, None)),
    ("it.load(data)", "last-byte", (DATA[:-1], BOTH, None)),
    ("it.load(buffer=data)", "half", (DATA[: SIZE // 2], BOTH, None)),
    ("it.transfer(data, to_device=True)", "from_device", (DATA, False, True)),
    ("it.transfer(data, to_device=True)", "both", (DATA, True, True)),
    ("it.transfer(data, to_device=True, from_device=True)", "to_device", (DATA, True, False)),
    ("it.transfer(data, from_device=True)", "last-byte", (DATA[:-1], False, True)),
    ("it.unload()", "delete", None),
]


@pytest.mark.parametrize(("call", "how", "instead"), WRONG)
def test_a_mutant_is_called_wrongly(call: str, how: str, instead: tuple[Any, ...] | None) -> None:
    it, _, _ = of(call, how)
    assert it.calls == ([] if instead is None else [instead])


@pytest.mark.parametrize(
    ("call", "ways"),
    [
        ("it.sync(PREREAD)", "delete pre-post other-way late last-byte first-byte half"),
        ("it.sync(PRE)", "delete pre-post only-read only-write late last-byte first-byte half"),
        ("it.sync(POSTWRITE)", "delete pre-post other-way last-byte first-byte half"),
        ("it.sync(POSTWRITE, 0, 2)", "delete pre-post other-way last-byte first-byte"),
        ("it.sync(POST, 0, 1)", "delete pre-post only-read only-write"),
        ("it.load(data, TO)", "from_device both last-byte half"),
        ("it.load(data[:2], FROM)", "to_device both last-byte"),
        ("it.load(data[:1], BOTH)", "to_device from_device"),
        ("it.load(7, TO)", "from_device both"),
        ("it.transfer(data, from_device=True)", "to_device both last-byte half"),
        ("it.unload()", "delete"),
    ],
)
def test_the_ways_that_make_a_difference_are_noted(call: str, ways: str) -> None:
    assert of(call)[2] == set(ways.split())


def test_a_late_sync_comes_when_the_device_has_begun() -> None:
    it, _, _ = of("it.sync(PRE, 4)", "late")
    assert it.calls == []
    ((when, fn),) = it.timers
    assert when == it.now() + LATE
    it.buffer = b""  # something else is loaded by then, or nothing
    fn()
    assert it.calls == [(PRE, 4, SIZE - 4)]


def test_only_the_call_that_was_named_is_wrong() -> None:
    it = Recorder()
    switch, sites, names = toy("def do(it):\n    it.sync(PREREAD)\n    it.sync(PREREAD)\n    it.unload()")
    switch.set(sites[1].name, "other-way")
    names["do"](it)
    assert it.calls == [(PREREAD, 0, None), (PREWRITE, 0, None), ("unload",)]
    switch.set()
    names["do"](it)
    assert it.calls[3:] == [(PREREAD, 0, None), (PREREAD, 0, None), ("unload",)]
    assert set(switch.seen) == {site.name for site in sites}


def test_a_call_of_the_drivers_own_by_such_a_name_can_only_be_left_out() -> None:
    class Own:
        def sync(self, number: int) -> int:
            return number

    switch, (site,), names = toy("def do(own):\n    return own.sync(3)")
    assert names["do"](Own()) == 3
    assert switch.seen == {site.name: {"delete"}}


def test_who_runs_in_circles_is_stopped() -> None:
    it = Recorder()
    _, _, names = toy("def do(it):\n    while True:\n        it.sync(PREREAD)")
    with pytest.raises(Hung):
        names["do"](it)
    assert len(it.calls) == MOST_CALLS


def test_calls_are_named_by_where_they_stand_and_what_they_say() -> None:
    source = """
map.unload()
class Driver:
    async def go(self):
        await self.map.load(data[1:], deadline=None)
        def back(): self.map.unload(), self.map.unload()
        self.sync, sync(1), self.map.segments()
"""
    tree, sites = wire(source, "chip/core.py")
    assert [(site.name, site.line) for site in sites] == [
        ("chip/core.py : map.unload()", 2),
        ("chip/core.py Driver.go: self.map.load(data[1:], deadline=None)", 5),
        ("chip/core.py Driver.go.back: self.map.unload()", 6),
        ("chip/core.py Driver.go.back: self.map.unload() #2", 6),
    ]
    assert {site.file for site in sites} == {"chip/core.py"}
    assert ast.unparse(tree).count(SWITCH) == 4


def test_every_file_of_a_driver_is_looked_through() -> None:
    sites = all_sites()
    assert len({site.name for site in sites}) == len(sites)
    assert {"host.py", "nvme/core.py", "pcnet/ring.py"} <= {site.file for site in sites}


# -- fates, on a machine -----------------------------------------------------------------------------------------------

COPY = """
async def copy(bench):
    out, back = bench.high(100), bench.near(100)
    out.write(data)
    one, two = bench.tag.create_map(), bench.tag.create_map()
    one.load_nowait(out, TO)
    two.load_nowait(back, FROM)
    one.sync(PREWRITE)
    two.sync(PREREAD)
    bench.writes(two.segments, bench.reads(one.segments))
    two.sync(POSTREAD, 0, 10)
    head = back.read(0, 10)
    two.sync(PREREAD, 0, 10)
    one.sync(POSTWRITE)
    two.sync(POSTREAD)
    one.unload()
    two.unload()
    return [head.hex(), back.read().hex()]

def never(map):
    map.unload()
"""


def account_of(source: str, name: str) -> Account:
    switch, sites, names = toy(source, data=DATA)
    return take_account(switch, sites, {name: Job(Bench, names[name])})


def test_each_fate_is_told_from_the_others() -> None:
    account = account_of(COPY, "copy")
    assert account.unsound == []
    assert [site.name for site in account.unexecuted] == ["toy.py never: map.unload()"]
    fates = {(fate.mutant.site.name.partition(": ")[2], fate.mutant.how): fate.what for fate in account.fates}
    assert fates["one.load_nowait(out, TO)", "both"] == "survived"
    assert fates["one.load_nowait(out, TO)", "from_device"] == "reported"
    assert fates["one.sync(PREWRITE)", "delete"] == "reported"
    assert fates["two.sync(PREREAD)", "last-byte"] == "reported"
    assert fates["two.sync(POSTREAD, 0, 10)", "delete"] == "poisoned"
    assert fates["two.sync(POSTREAD, 0, 10)", "half"] == "poisoned"
    assert fates["two.sync(PREREAD, 0, 10)", "pre-post"] == "reported"
    assert fates["two.sync(POSTREAD)", "half"] == "reported"
    assert fates["one.unload()", "delete"] == "reported"
    assert str(account).splitlines()[-1].split()[:3] == ["all", str(len(account.sites)), str(len(fates))]


def test_what_is_wrong_without_a_mutant_is_told() -> None:
    found = account_of(COPY.replace("    one.sync(POSTWRITE)\n", ""), "copy").unsound
    assert any("missing-post" in text for text in found)
    found = account_of("async def broken(bench):\n    bench.high(100).sing()", "broken").unsound
    assert [text.partition(":")[0] for text in found] == ["broken"]
    assert "AttributeError" in found[0]


def ran(body: Callable[[Any], Coroutine[Any, Any, list[str]]]) -> tuple[list[str], list[str]]:
    found = run(Switch(), Job(Bench, body))
    return list(found.outcome), list(found.troubles)


def test_a_job_that_waits_for_ever_is_ended() -> None:
    async def waits(machine: Any) -> list[str]:
        while True:
            waiter = Waiter("a pause")
            machine.runtime.call_at(machine.runtime.now() + 10**10, waiter.wake)
            await machine.runtime.park(waiter)

    outcome, (trouble,) = ran(waits)
    assert outcome == []
    assert trouble.startswith("WaitCancelled")


def test_what_a_job_leaves_behind_is_trouble() -> None:
    async def leaves(machine: Any) -> list[str]:
        machine.loaded(machine.high(100), TO)
        return ["done"]

    outcome, troubles = ran(leaves)
    assert outcome == ["done"]
    assert troubles


# -- the list ----------------------------------------------------------------------------------------------------------

ONE, TWO = Site("a.py f: map.unload()", "a.py", 3), Site("b.py g: map.sync(PREREAD)", "b.py", 4)


@pytest.mark.parametrize(
    ("account", "listed", "complaint"),
    [
        (Account([ONE], [], [Fate(Mutant(ONE, "delete"), "reported")], []), Listed({}, {}), None),
        (
            Account([ONE], [], [Fate(Mutant(ONE, "delete"), "survived")], []),
            Listed({(ONE.name, "delete"): ""}, {}),
            None,
        ),
        (Account([TWO], [TWO], [], []), Listed({}, {TWO.name: ""}), None),
        (
            Account([ONE], [], [Fate(Mutant(ONE, "delete"), "survived")], []),
            Listed({}, {}),
            "survived, and is not listed: delete of a.py f: map.unload()",
        ),
        (
            Account([ONE], [], [Fate(Mutant(ONE, "delete"), "poisoned")], []),
            Listed({(ONE.name, "delete"): ""}, {}),
            "listed as a survivor, but is noticed: delete of a.py f: map.unload()",
        ),
        (
            Account([ONE], [], [], []),
            Listed({("a.py f: gone()", "delete"): ""}, {}),
            "listed as a survivor, but is not there: delete of a.py f: gone()",
        ),
        (
            Account([TWO], [TWO], [], []),
            Listed({}, {}),
            "executed by no job, and not listed: b.py g: map.sync(PREREAD)",
        ),
        (
            Account([TWO], [], [], []),
            Listed({}, {TWO.name: ""}),
            "listed as executed by no job, but is: b.py g: map.sync(PREREAD)",
        ),
        (Account([], [], [], ["a job: it failed"]), Listed({}, {}), "without any mutant: a job: it failed"),
    ],
)
def test_an_account_is_held_against_the_list(account: Account, listed: Listed, complaint: str | None) -> None:
    assert account.complaints(listed) == ([] if complaint is None else [complaint])
