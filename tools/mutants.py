"""The account of mutants: what becomes of a driver that syncs, loads or unloads wrongly, under the DMA checker.

Every call of ``sync``, ``load*``, ``transfer`` and ``unload`` in `busdma.drivers` is made wrong in every way that makes
a difference, one at a time, and jobs are run that execute it. What comes of it:

- *reported*: the checker finds something, or an error names the misuse;
- *poisoned*: the job's outcome is another one: wrong data, a command that fails or does not end;
- *survived*: nothing is noticed. The list of survivors says why that is right for each of them.

The drivers are imported through an `ast` transformer that leads each of those calls through a `Switch`; so a mutant is
no other program, but a switch that is set. Run it in a process of its own: ``python tools/mutants.py``.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, Final

import busdma
from busdma.errors import BusdmaError, MapStateError, SyncError
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, Direction, SyncOp

ROOT: Final = Path(__file__).resolve().parents[1]
LIST: Final = ROOT / "tests" / "check" / "mutants.toml"
DRIVERS: Final = "busdma.drivers."
SWITCH: Final = "__mutants__"
LOADS: Final = ("load", "load_nowait", "load_blocking", "load_callback", "transfer")
METHODS: Final = ("sync", *LOADS, "unload")
MOST_CALLS: Final = 20_000  #: in one job: it runs in circles
MOST_SECONDS: Final = 20  #: of one job, which takes a fraction of one
LATE: Final = 2 * 10**8  #: ns: within that time every device has begun
LONGEST: Final = 600 * 10**9  #: ns of the machine's clock

PRE: Final = PREREAD | PREWRITE
READS: Final = PREREAD | POSTREAD
OTHER_WAY: Final = {PREREAD: PREWRITE, PREWRITE: PREREAD, POSTREAD: POSTWRITE, POSTWRITE: POSTREAD}
OTHER_TIME: Final = {PREREAD: POSTREAD, PREWRITE: POSTWRITE, POSTREAD: PREREAD, POSTWRITE: PREWRITE}

Outcome = Sequence[str]
Job = Callable[[Any], Any]  #: a coroutine function: it is given the machine, and returns what came of it


class Hung(BaseException):
    """The job does not end."""


@dataclass(frozen=True, order=True)
class Site:
    """One call in a driver. `name` outlives edits elsewhere in its file: module, function, source of the call."""

    name: str
    file: str
    line: int
    method: str


@dataclass(frozen=True, order=True)
class Mutant:
    """One call made wrong in one way."""

    site: Site
    how: str


@dataclass
class Fate:
    """What became of a mutant, in which job, and a word on it."""

    mutant: Mutant
    what: str
    job: str = ""
    word: str = ""


# -- instrumented drivers ---------------------------------------------------------------------------------------------


class Wired(ast.NodeTransformer):
    """Leads every call of METHODS through the switch."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.sites: list[Site] = []
        self._scope: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """See `ast.NodeTransformer`."""
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """See `ast.NodeTransformer`."""
        return self._inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """See `ast.NodeTransformer`."""
        return self._inside(node)

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._scope.append(node.name)
        found = self.generic_visit(node)
        self._scope.pop()
        return found

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """See `ast.NodeTransformer`."""
        text = ast.unparse(node)
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
            return node
        name = f"{self.file} {'.'.join(self._scope)}: {text}"
        again = sum(site.name.partition(" #")[0] == name for site in self.sites)
        site = Site(name + (f" #{again + 1}" if again else ""), self.file, node.lineno, node.func.attr)
        self.sites.append(site)
        way = "load" if node.func.attr in LOADS else node.func.attr
        switch = ast.Attribute(ast.Name(SWITCH, ast.Load()), way, ast.Load())
        led = ast.Call(switch, [ast.Constant(site.name), node.func, *node.args], node.keywords)
        return ast.copy_location(led, node)


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a driver with its calls led through the switch."""

    def get_code(self, fullname: str) -> CodeType:
        """See `importlib.abc.InspectLoader`."""
        path = Path(self.get_filename(fullname))
        wired = Wired(_relative(path))
        tree = ast.fix_missing_locations(wired.visit(ast.parse(path.read_bytes())))
        code: CodeType = compile(tree, path, "exec")
        return code


class Finder(importlib.abc.MetaPathFinder):
    """Finds what is below `busdma.drivers`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if not fullname.startswith(DRIVERS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(fullname, spec.loader.path)
        return spec


def _relative(path: Path) -> str:
    return path.relative_to(Path(busdma.__file__).parent / "drivers").as_posix()


def all_sites() -> list[Site]:
    """Every call of every driver."""
    found: list[Site] = []
    for path in sorted((Path(busdma.__file__).parent / "drivers").rglob("*.py")):
        wired = Wired(_relative(path))
        wired.visit(ast.parse(path.read_bytes()))
        found += wired.sites
    return sorted(found)


# -- the switch -------------------------------------------------------------------------------------------------------


class Switch:
    """Through which every call goes. Without a mutant it notes what could be made wrong about each call."""

    def __init__(self) -> None:
        self.site = ""  #: of the mutant
        self.how = ""
        self.calls = 0
        self.seen: dict[str, set[str]] = {}  #: by site: the ways to make it wrong that would make a difference

    def set(self, site: str = "", how: str = "") -> None:
        """Make that call wrong from here on, in this way; none without a site."""
        self.site, self.how, self.calls, self.seen = site, how, 0, {}

    def _how(self, site: str) -> str:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise Hung("too many calls")
        return self.how if site == self.site else ""

    def _note(self, site: str, *ways: str) -> None:
        self.seen.setdefault(site, set()).update(ways)

    def sync(self, site: str, call: Any, op: SyncOp, offset: int = 0, length: int | None = None) -> None:
        """As `Map.sync`, or wrongly."""
        how = self._how(site)
        owner = call.__self__
        whole = len(owner) if hasattr(owner, "__len__") else owner.buffer.length if owner.buffer is not None else 0
        count = whole - offset if length is None else length
        both = op not in OTHER_WAY
        self._note(site, "delete", "pre-post", *(["only-read", "only-write"] if both else ["other-way"]))
        self._note(site, *(["last-byte", "first-byte"] if count > 1 else []), *(["half"] if count > 2 else []))
        half = op & READS
        if op & PRE:
            self._note(site, "late")
        if how == "delete":
            return
        if how == "late" and op & PRE:
            _later(owner, lambda: call(op, offset, count))
            return
        if how == "pre-post":
            op = SyncOp(sum(OTHER_TIME[each] for each in OTHER_TIME if op & each))
        elif how == "other-way" and not both:
            op = OTHER_WAY[op]
        elif how in ("only-read", "only-write") and both:
            op = half if how == "only-read" else op & ~half
        elif how == "last-byte" and count > 1:
            length = count - 1
        elif how == "half" and count > 2:
            length = count // 2
        elif how == "first-byte" and count > 1:
            offset, length = offset + 1, count - 1
        call(op, offset, length)

    def load(self, site: str, call: Any, buffer: Any, *args: Any, **options: Any) -> Any:
        """As one of `LOADS`, or wrongly."""
        how = self._how(site)
        ways = [each for each in args if isinstance(each, Direction)]
        direction = ways[0] if ways else None
        size = buffer.length if hasattr(buffer, "length") else len(buffer)
        shorter = size > 1 and _can_be_cut(buffer)
        self._note(site, *(["last-byte"] if shorter else []), *(["half"] if shorter and size > 2 else []))
        others = [each for each in Direction if direction is not None and each is not direction]
        self._note(site, *(each.name.lower() for each in others))
        for other in others:
            if how == other.name.lower():
                args = tuple(other if each is direction else each for each in args)
        if how == "last-byte" and shorter:
            buffer = buffer[: size - 1]
        elif how == "half" and shorter and size > 2:
            buffer = buffer[: size // 2]
        return call(buffer, *args, **options)

    def unload(self, site: str, call: Any, *args: Any, **options: Any) -> Any:
        """As `Map.unload`, or not at all."""
        self._note(site, "delete")
        return None if self._how(site) == "delete" else call(*args, **options)


def _later(owner: Any, fn: Callable[[], object]) -> None:
    """Call `fn` when the device has been told already."""
    runtime = owner.tag.domain.runtime

    def late() -> None:
        with suppress(BusdmaError):  # the checker has heard of it
            fn()

    runtime.call_at(runtime.now() + LATE, late)


def _can_be_cut(buffer: Any) -> bool:
    try:
        buffer[:1]
    except (TypeError, BusdmaError):
        return False
    return True


# -- jobs -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of one job."""

    outcome: Outcome
    findings: Sequence[str]
    seen: Mapping[str, set[str]] = field(default_factory=dict)


def run(switch: Switch, spec: str, job: Job, site: str = "", how: str = "") -> Run:
    """The job on a fresh machine, with one call made wrong, or none."""
    switch.set(site, how)

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung("too long")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(MOST_SECONDS)
    outcome: list[str] = []
    misuse: list[str] = []
    machine = busdma.open(spec, check=True)
    assert machine.checker is not None

    def said(error: BaseException) -> None:
        outcome.append(type(error).__name__)
        if isinstance(error, MapStateError | SyncError):
            misuse.append(str(error))

    async def main() -> None:
        runtime = machine.runtime
        task = runtime.start(job, machine, name="the job")
        runtime.call_at(LONGEST, task.cancel)
        await runtime.park(task.done)
        outcome.extend(task.result())

    try:
        try:
            machine.run(main)
        except BaseException as error:  # a mutant may bring anything about
            said(error)
            if isinstance(error, KeyboardInterrupt):
                raise
        outcome.extend(f"leak: {leak}" for leak in machine.leaks())
        try:
            machine.close()
        except BaseException as error:
            said(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    findings = [str(finding) for finding in machine.checker.findings]
    return Run(outcome, findings + misuse, {name: set(ways) for name, ways in switch.seen.items()})


# -- the account ------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """All calls, all mutants, and what became of them."""

    sites: Sequence[Site]
    unexecuted: Sequence[Site]
    fates: Sequence[Fate]
    unsound: Sequence[str]  #: what was found without any mutant: the drivers themselves are wrong

    def survivors(self) -> list[Mutant]:
        """In order."""
        return sorted(fate.mutant for fate in self.fates if fate.what == "survived")

    def complaints(self, listed: Listed) -> list[str]:
        """How this and the list disagree."""
        found = [f"unsound without any mutant: {text}" for text in self.unsound]
        survived = {(mutant.site.name, mutant.how) for mutant in self.survivors()}
        killed = {(fate.mutant.site.name, fate.mutant.how) for fate in self.fates} - survived
        found += [f"survived and not listed: {how} of {name}" for name, how in sorted(survived - set(listed.survivors))]
        for name, how in sorted(set(listed.survivors) - survived):
            why = "is noticed" if (name, how) in killed else "is not there"
            found.append(f"listed as a survivor, but {why}: {how} of {name}")
        missed = {site.name for site in self.unexecuted}
        found += [f"executed by no job and not listed: {name}" for name in sorted(missed - set(listed.unexecuted))]
        found += [f"listed as unexecuted, but is not: {name}" for name in sorted(set(listed.unexecuted) - missed)]
        return found

    def __str__(self) -> str:
        lines = ["file              calls  mutants  reported  poisoned  survived  unexecuted calls"]
        files = sorted({site.file for site in self.sites})
        for file in [*files, ""]:
            fates = [fate for fate in self.fates if file in ("", fate.mutant.site.file)]
            counts = [sum(fate.what == what for fate in fates) for what in ("reported", "poisoned", "survived")]
            calls, missed = (sum(file in ("", each.file) for each in some) for some in (self.sites, self.unexecuted))
            columns = (calls, len(fates), *counts, missed)
            widths = (5, 7, 8, 8, 8, 16)
            cells = (f"{count:{width}}" for count, width in zip(columns, widths, strict=True))
            lines.append(f"{file or 'all':16}  " + "  ".join(cells))
        return "\n".join(lines)


@dataclass
class Listed:
    """The list: reasons, by what survives and what no job executes."""

    survivors: Mapping[tuple[str, str], str]
    unexecuted: Mapping[str, str]

    @classmethod
    def read(cls, path: Path = LIST) -> Listed:
        """From a file of tables ``[[survivor]]`` (call, how, why) and ``[[unexecuted]]`` (call, why)."""
        data = tomllib.loads(path.read_text())
        survivors = {(each["call"], how): each["why"] for each in data.get("survivor", ()) for how in each["how"]}
        return cls(survivors, {each["call"]: each["why"] for each in data.get("unexecuted", ())})


def baseline(switch: Switch, jobs: Mapping[str, tuple[str, Job]]) -> dict[str, Run]:
    """Every job without a mutant."""
    return {name: run(switch, spec, job) for name, (spec, job) in jobs.items()}


def fate(switch: Switch, mutant: Mutant, jobs: Mapping[str, tuple[str, Job]], sound: Mapping[str, Run]) -> Fate:
    """Run the jobs that execute the call until something is noticed."""
    for name, (spec, job) in jobs.items():
        if mutant.how in sound[name].seen.get(mutant.site.name, ()):
            found = run(switch, spec, job, mutant.site.name, mutant.how)
            if found.findings:
                return Fate(mutant, "reported", name, found.findings[0])
            if found.outcome != sound[name].outcome:
                return Fate(mutant, "poisoned", name, "; ".join(found.outcome))
    return Fate(mutant, "survived")


def take_account(
    jobs: Mapping[str, tuple[str, Job]], *, processes: int = 1, only: str = "", told: Callable[[Fate], object] = id
) -> Account:
    """Of every call whose name contains `only`. The switch must be in place."""
    switch: Switch = getattr(builtins, SWITCH)
    sites = [site for site in all_sites() if only in site.name]
    sound = baseline(switch, jobs)
    unsound = [f"{name}: {text}" for name, found in sound.items() for text in found.findings]
    ways: dict[str, set[str]] = {}
    for found in sound.values():
        for name, seen in found.seen.items():
            ways.setdefault(name, set()).update(seen)
    mutants = [Mutant(site, how) for site in sites for how in sorted(ways.get(site.name, ()))]
    fates = list(_fates(switch, mutants, jobs, sound, processes, told))
    return Account(sites, [site for site in sites if site.name not in ways], fates, unsound)


def _fates(
    switch: Switch,
    mutants: Sequence[Mutant],
    jobs: Mapping[str, tuple[str, Job]],
    sound: Mapping[str, Run],
    processes: int,
    told: Callable[[Fate], object],
) -> Iterator[Fate]:
    global _work
    _work = (switch, jobs, sound)
    if processes == 1:
        each = map(_one, mutants)
        for found in each:
            told(found)
            yield found
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        for found in pool.map(_one, mutants, chunksize=4):
            told(found)
            yield found


_work: tuple[Switch, Mapping[str, tuple[str, Job]], Mapping[str, Run]]


def _one(mutant: Mutant) -> Fate:
    return fate(_work[0], mutant, *_work[1:])


def put_in_place() -> Switch:
    """Have all drivers imported with their calls led through a switch. Before any is."""
    early = [name for name in sys.modules if name.startswith(DRIVERS) and not _harmless(name)]
    if early:
        raise SystemExit(f"imported too early: {', '.join(early)}")
    switch = Switch()
    setattr(builtins, SWITCH, switch)
    sys.meta_path.insert(0, Finder())
    return switch


def _harmless(name: str) -> bool:
    return not any(site.file == name[len(DRIVERS) :].replace(".", "/") + ".py" for site in all_sites())


def main() -> int:
    """Take the account, and compare it with the list. Exit status 0: they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="calls whose name contains TEXT; nothing is compared"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what became of each mutant")
    args = parser.parse_args()
    put_in_place()
    from mutant_jobs import JOBS  # imports drivers

    def told(found: Fate) -> None:
        if args.verbose:
            site = found.mutant.site
            print(f"{found.what}: {found.mutant.how} of {site.name} (line {site.line})", flush=True)
            if found.word:
                print(f"    {found.job}: {found.word[:200]}", flush=True)

    account = take_account(JOBS, processes=args.processes, only=args.only, told=told)
    print(account)
    complaints = (
        account.complaints(Listed.read()) if not args.only else [f"unsound: {text}" for text in account.unsound]
    )
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
