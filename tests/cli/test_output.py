"""Tables, numbers and the line of progress."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import pytest

from busdma.cli import output
from busdma.cli.output import Output, Progress, number, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> str:
    """What a terminal shows on its line: a carriage return goes back, and what comes then overwrites."""
    line: list[str] = []
    at = 0
    for character in text:
        if character == "\r":
            at = 0
            continue
        line[at : at + 1] = [character]
        at += 1
    return "".join(line)


def test_a_line_is_overwritten_by_a_shorter_one_and_cleared() -> None:
    stream, now = Terminal(), 0.0
    progress = Progress(stream, lambda: now)
    progress.show("12345678")
    now += 1
    progress.show(lambda: "abc")
    assert screen(stream.getvalue()).rstrip() == "abc"
    progress.clear()
    assert screen(stream.getvalue()).strip() == ""
    assert "\n" not in stream.getvalue()


def test_a_line_is_not_made_more_often_than_it_can_be_read() -> None:
    stream, now, made = Terminal(), 0.0, 0

    def line() -> str:
        nonlocal made
        made += 1
        return str(made)

    progress = Progress(stream, lambda: now)
    for _ in range(100):
        progress.show(line)
        now += output.UPDATE / 10
    assert 9 <= made <= 11


def test_a_long_line_stays_on_one_line() -> None:
    stream = Terminal()
    Progress(stream).show("x" * 500)
    assert len(stream.getvalue()) == 80  # a return and 79 characters: 80 would wrap on some terminals


def test_there_is_no_progress_in_a_file() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.show("1")
    progress.clear()
    assert stream.getvalue() == ""


def test_a_message_clears_the_line_first() -> None:
    err = Terminal()
    out = Output("busdma x", as_json=False, out=io.StringIO(), err=err)
    out.progress.show("half done")
    out.fail(ValueError("wrong"))
    assert screen(err.getvalue().split("\n")[0]).rstrip() == "busdma x: ValueError: wrong"
    assert out.finish() == 1


def test_table() -> None:
    rows = [{"name": "a", "n": 5, "ok": True, "x": 1.5}, {"name": "long", "n": 12345, "ok": False, "x": None}]
    assert table(("name", "n", "ok", "x"), rows).splitlines() == [
        "name      n  ok     x",
        "a         5  yes  1.5",
        "long  12345  NO     -",
    ]


def test_fractions_of_a_column_have_equally_many_digits() -> None:
    rows = [{"x": 2.0, "y": 1 / 3}, {"x": 12.25, "y": 1.0}]
    assert table(("x", "y"), rows).splitlines() == ["    x      y", " 2.00  0.333", "12.25  1.000"]


def test_a_narrow_terminal_gets_a_block_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "columns_of", lambda _: 10)
    out = Terminal()
    answer = Output("busdma x", as_json=False, out=out, err=io.StringIO())
    answer.say_table(("name", "number"), [{"name": "abc", "number": 12345}, {"name": "d", "number": 6}])
    assert answer.finish() == 0
    assert out.getvalue() == "name    abc\nnumber  12345\n\nname    d\nnumber  6\n"


@pytest.mark.parametrize(("text", "value"), [("17", 17), ("0x10", 16), ("64k", 65536), ("2M", 2 << 20), ("-1", -1)])
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "4kk", "ten"])
def test_no_numbers(text: str) -> None:
    parse: Callable[[str], int] = number
    with pytest.raises(argparse.ArgumentTypeError, match="not a number"):
        parse(text)
