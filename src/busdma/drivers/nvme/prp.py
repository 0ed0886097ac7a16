"""PRPs from segments: which pages a command is told of, and in which lists.

A PRP is the address of a page. Only the first may begin inside its page, at a multiple of 4 bytes; only the last page
may be used in part. So segments can be told as PRPs if every joint between two lies at a page: that is the tag's part
(``joint``). What is longer than a page is cut here, and so segments may be as long as they happen to be.

Source: NVM Express Base Specification 1.4, 4.3 (PRP entry and list), 4.2.1 (PRP 1 and PRP 2 of a command).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from busdma.drivers.nvme.layout import PAGE
from busdma.errors import MappingRefused

ENTRY = 8  #: bytes of a PRP in a list


def pages(segments: Iterable[tuple[int, int]]) -> list[int]:
    """The PRPs of a command whose data are `segments`, (bus address, bytes) in order.

    MappingRefused if they cannot be told as PRPs: the tag they were loaded with allows more than the device.
    """
    found: list[int] = []
    end = 0  # of the segment before
    for address, length in segments:
        if end % PAGE or (address % PAGE if found else address % 4) or length < 1:
            raise MappingRefused(
                f"segment {address:#x}+{length:#x} after one that ends at {end:#x} cannot be told as PRPs: derive the "
                f"tag with alignment=4, joint={PAGE}"
            )
        found.append(address)
        end = address + length
        found.extend(range(address - address % PAGE + PAGE, end, PAGE))
    return found


def arrange(entries: Sequence[int], lists: Sequence[int]) -> tuple[int, int, list[list[int]]]:
    """(PRP 1, PRP 2, what to write into each list) of a command with these PRPs.

    `lists`: bus addresses of places for lists, each a multiple of 8 and good to the end of its page; all but the first
    begin one. A list that fills its page ends with the address of the next, unless it is the last of all (4.3).
    MappingRefused if they do not suffice.
    """
    if len(entries) <= 2:
        return entries[0], entries[1] if len(entries) == 2 else 0, []
    written: list[list[int]] = []
    at = 1
    for number, place in enumerate(lists):
        room = (PAGE - place % PAGE) // ENTRY
        if len(entries) - at <= room:
            written.append(list(entries[at:]))
            return entries[0], lists[0], written
        if number + 1 < len(lists):
            written.append([*entries[at : at + room - 1], lists[number + 1]])
            at += room - 1
    raise MappingRefused(f"{len(entries)} PRPs do not fit into {len(lists)} lists; split the transfer")


def list_size(entries: int) -> int:
    """Bytes for the lists of a command with at most so many PRPs: a power of two within a page, or whole pages."""
    listed = max(entries - 1, 1)
    if listed * ENTRY <= PAGE:
        return 1 << (listed * ENTRY - 1).bit_length()
    return -(-(listed - 1) // (PAGE // ENTRY - 1)) * PAGE  # every page but the last gives one entry to the next
