"""What a failed comparison of bytes says."""

from __future__ import annotations

from busdma.testing.difference import difference


def test_equal_bytes_do_not_differ() -> None:
    assert difference(bytes(5000), bytearray(5000)) == ""
    assert difference(b"", memoryview(b"")) == ""


def test_long_bytes_are_told_apart_in_a_line() -> None:
    left, right = bytes(5000), bytearray(5000)
    right[4001], right[4003] = 7, 9
    assert difference(left, right) == (
        f"they differ first at byte 4001, in 2 of 5000: {bytes(16).hex(' ')} instead of 07 00 09{' 00' * 13}"
    )


def test_one_is_the_beginning_of_the_other() -> None:
    assert difference(b"ab" * 41, memoryview(b"ab" * 40)) == (
        "82 bytes instead of 80; they differ first at byte 80, in 0 of 80: 61 62 instead of nothing"
    )
