"""Makes every sync, load and unload of the drivers wrong, one at a time, and says what the DMA checker makes of it.

Prints the account, and how it and the list of survivors, tests/check/mutants.toml, disagree. Exit status 0 only if they
do not. See `mutation`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from mutation.account import Listed, take_account
from mutation.sites import all_sites, put_in_place

LIST: Final = Path(__file__).resolve().parents[1] / "tests" / "check" / "mutants.toml"


def main() -> int:
    """Take the account."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="calls with TEXT in their names; no list is read")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what became of each mutant")
    args = parser.parse_args()
    switch = put_in_place()
    from mutation.jobs import JOBS  # imports drivers

    account = take_account(switch, [site for site in all_sites() if args.only in site.name], JOBS, args.processes)
    if args.verbose:
        for fate in account.fates:
            print(f"{fate.what}: {fate.mutant.how} of {fate.mutant.site.name} (line {fate.mutant.site.line})")
            if fate.job:
                print(f"    {fate.job}: {fate.why[:200]}")
    print(account)
    complaints = account.unsound if args.only else account.complaints(Listed.read(LIST))
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
