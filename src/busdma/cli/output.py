"""What every verb says and where: an answer on standard output, messages and progress on standard error.

Text holds ASCII only, so that it prints in every locale; JSON escapes the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TextIO

UPDATE: Final = 0.1  #: seconds between two looks of a progress line
_FACTORS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Output:
    """One run's answer and its errors. Fill ``document`` for JSON and `say` the text; `finish` prints either."""

    def __init__(self, name: str, *, as_json: bool, out: TextIO, err: TextIO) -> None:
        self.name = name
        self.as_json = as_json
        self.document: dict[str, Any] = {}
        self.errors: list[dict[str, str]] = []
        self.status = 1  #: to exit with, should there be errors
        self.progress = Progress(err)
        self._out = out
        self._err = err
        self._text: list[str] = []

    def say(self, text: str) -> None:
        """A part of the answer for people; ends its line."""
        self._text.append(text)

    def say_table(self, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
        """Rows as a part of the answer; each as a block of lines where the terminal is too narrow for a table."""
        text = table(columns, rows)
        if self._out.isatty() and max(map(len, text.splitlines())) > columns_of(self._out):
            text = "\n\n".join(
                "\n".join(f"{column:<{max(map(len, columns))}}  {_cell(row.get(column))}" for column in columns)
                for row in rows
            )
        self.say(text)

    def note(self, text: str) -> None:
        """Tell people something that is no part of the answer, now."""
        self.progress.clear()
        print(text, file=self._err, flush=True)

    def fail(self, error: BaseException, message: str = "") -> None:
        """Something was not done: say so at once, by the error's name, and exit with status 1 in the end."""
        name, text = type(error).__name__, message or str(error)
        self.errors.append({"error": name, "message": text})
        self.note(f"{self.name}: {name}: {text}")

    def finish(self) -> int:
        """Print the answer. Returns the exit status."""
        self.progress.clear()
        status = self.status if self.errors else 0
        if self.as_json:
            whole = {"ok": not self.errors, "errors": self.errors, **self.document}
            text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
        else:
            text = "".join(f"{part}\n" for part in self._text)
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:
            # A reader that has left (head, a pager) needs no message; a full disk does.
            if not isinstance(error, BrokenPipeError):
                self.note(f"{self.name}: {type(error).__name__}: cannot write to standard output: {error.strerror}")
            _discard(self._out)
            return 1
        return status


class Progress:
    """One line on a terminal that is written over and over; nothing at all if `stream` is no terminal. Thread-safe."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._shown = 0  # characters
        self.enabled = stream.isatty()

    def show(self, line: Callable[[], str] | str) -> None:
        """Show `line` (made only if it is shown), unless another was shown a moment ago."""
        if not self.enabled:
            return
        with self._lock:
            now = self._clock()
            if now < self._next:
                return
            self._next = now + UPDATE
            text = (line if isinstance(line, str) else line())[: columns_of(self._stream) - 1]
            self._write(f"\r{text}{' ' * (self._shown - len(text))}")
            self._shown = len(text)

    def clear(self) -> None:
        """Leave an empty line."""
        with self._lock:
            if self._shown:
                self._write(f"\r{' ' * self._shown}\r")
                self._shown = 0
            self._next = 0.0

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a terminal that went away is no reason to fail
            self._stream.write(text)
            self._stream.flush()


def columns_of(stream: TextIO) -> int:
    """The width of the terminal behind `stream`; 80 if it does not say."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """The rows under their columns' names: numbers to the right, all else to the left, lists joined, None as ``-``.

    Fractions have as many digits as the longest of their column, three at most.
    """
    digits = [max((_digits(row.get(column)) for row in rows), default=0) for column in columns]
    cells = [[_cell(row.get(column), count) for column, count in zip(columns, digits, strict=True)] for row in rows]
    right = [any(_is_number(row.get(column)) for row in rows) for column in columns]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    lines = [list(columns), *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def number(text: str) -> int:
    """An argument that is a number: decimal or 0x..., with k, m or g behind it for powers of 1024."""
    factor = _FACTORS.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(digits, 0) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: give one such as 65536, 0x10000 or 64k") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digits(value: object) -> int:
    """Digits behind the point, rounded to three."""
    return len(f"{value:.3f}".rstrip("0").partition(".")[2]) if isinstance(value, float) else 0


def _cell(value: object, digits: int = 3) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "NO"
        case float():
            return f"{value:.{digits}f}"
        case list() | tuple():
            return ",".join(str(part) for part in value) or "-"
        case _:
            return str(value)


def _discard(stream: TextIO) -> None:
    """What is still buffered cannot be written, and nobody wants to read of it at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
