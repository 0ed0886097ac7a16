"""The account: all calls, all mutants, and what became of each; and the list that it is held against.

A mutant is *reported* if the checker finds something or an error names the misuse; *poisoned* if what the job's user
sees is something else: wrong data, a command that fails or does not end; *survived* if nothing is noticed at all. The
list has the reason of each that survives, and of each call that no job executes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from mutation.runs import Job, Run, run
from mutation.sites import Site
from mutation.switch import Switch

FATES = ("reported", "poisoned", "survived")


@dataclass(frozen=True, order=True)
class Mutant:
    """One call made wrong in one way."""

    site: Site
    how: str


@dataclass
class Fate:
    """What became of a mutant: one of `FATES`; in which job, and how that showed."""

    mutant: Mutant
    what: str
    job: str = ""
    why: str = ""


@dataclass
class Listed:
    """The list: reasons, by what survives and by what no job executes."""

    survivors: Mapping[tuple[str, str], str]
    unexecuted: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Listed:
        """From a file of tables ``[[survivor]]`` (call, how, why) and ``[[unexecuted]]`` (call, why)."""
        data = tomllib.loads(path.read_text())
        survivors = {(each["call"], how): each["why"] for each in data.get("survivor", ()) for how in each["how"]}
        return cls(survivors, {each["call"]: each["why"] for each in data.get("unexecuted", ())})


@dataclass
class Account:
    """Of `sites`. `unsound`: what was noticed without any mutant, so that the drivers or jobs themselves are wrong."""

    sites: Sequence[Site]
    unexecuted: Sequence[Site]
    fates: Sequence[Fate]
    unsound: Sequence[str]

    def complaints(self, listed: Listed) -> list[str]:
        """How this and the list disagree."""
        found = [f"without any mutant: {text}" for text in self.unsound]
        survived = {(fate.mutant.site.name, fate.mutant.how) for fate in self.fates if fate.what == "survived"}
        noticed = {(fate.mutant.site.name, fate.mutant.how) for fate in self.fates} - survived
        for name, how in sorted(survived - set(listed.survivors)):
            found.append(f"survived, and is not listed: {how} of {name}")
        for name, how in sorted(set(listed.survivors) - survived):
            why = "is noticed" if (name, how) in noticed else "is not there"
            found.append(f"listed as a survivor, but {why}: {how} of {name}")
        missed = {site.name for site in self.unexecuted}
        found += [f"executed by no job, and not listed: {name}" for name in sorted(missed - set(listed.unexecuted))]
        found += [f"listed as executed by no job, but is: {name}" for name in sorted(set(listed.unexecuted) - missed)]
        return found

    def __str__(self) -> str:
        rows = [self._row(file) for file in sorted({site.file for site in self.sites})]
        names = ("file", "calls", "mutants", *FATES, "unexecuted calls")
        table = [names, *rows, self._row("")]
        widths = [max(len(row[column]) for row in table) for column in range(len(names))]
        return "\n".join(_line(row, widths) for row in table)

    def _row(self, file: str) -> tuple[str, ...]:
        """Of one file, or of all."""
        fates = [fate for fate in self.fates if file in ("", fate.mutant.site.file)]
        calls, missed = (sum(file in ("", site.file) for site in some) for some in (self.sites, self.unexecuted))
        counts = (sum(fate.what == what for fate in fates) for what in FATES)
        return (file or "all", *map(str, (calls, len(fates), *counts, missed)))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = row
    return "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])


def take_account(switch: Switch, sites: Sequence[Site], jobs: Mapping[str, Job], processes: int = 1) -> Account:
    """Make every call of `sites` that a job executes wrong in every way."""
    sound = {name: run(switch, job) for name, job in jobs.items()}
    unsound = [f"{name}: {text}" for name, ran in sound.items() for text in (*ran.findings, *ran.troubles)]
    ways: dict[str, set[str]] = {}
    for ran in sound.values():
        for name, seen in ran.seen.items():
            ways.setdefault(name, set()).update(seen)
    mutants = [Mutant(site, how) for site in sites for how in sorted(ways.get(site.name, ()))]
    fates = list(_fates(_Work(switch, jobs, sound), mutants, processes))
    return Account(sites, [site for site in sites if site.name not in ways], fates, unsound)


@dataclass
class _Work:
    """What it takes to learn a mutant's fate."""

    switch: Switch
    jobs: Mapping[str, Job]
    sound: Mapping[str, Run]  #: the jobs without a mutant

    def fate(self, mutant: Mutant) -> Fate:
        """Run the jobs that execute the call until something is noticed."""
        for name, job in self.jobs.items():
            right = self.sound[name]
            if mutant.how not in right.seen.get(mutant.site.name, ()):
                continue
            ran = run(self.switch, job, mutant.site.name, mutant.how)
            if ran.findings:
                return Fate(mutant, "reported", name, ran.findings[0])
            if (ran.outcome, ran.troubles) != (right.outcome, right.troubles):
                return Fate(mutant, "poisoned", name, "; ".join((*ran.outcome, *ran.troubles)))
        return Fate(mutant, "survived")


_work: _Work  # a forked process has it; jobs cannot be sent to one


def _fates(work: _Work, mutants: Sequence[Mutant], processes: int) -> Iterator[Fate]:
    global _work
    if processes == 1:
        yield from map(work.fate, mutants)
        return
    _work = work
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        yield from pool.map(_fate, mutants, chunksize=4)


def _fate(mutant: Mutant) -> Fate:
    return _work.fate(mutant)
