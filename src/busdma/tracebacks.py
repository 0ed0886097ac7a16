"""Which frames of busdma pytest leaves out of the report of a failed test, so that it ends at the line of the caller.

A module says so by its ``__tracebackhide__``, which pytest looks up in every frame and costs a call nothing. ``True``
stands in those that only pass on what others raise: whoever carries a driver. Where errors are made it is `hidden`.

Source: pytest, "How to write custom assertion helpers" (``__tracebackhide__``, and functions in its place).
"""

from __future__ import annotations

from typing import Protocol

from busdma.errors import BusdmaError, WaitCancelled


class Raised(Protocol):
    """What is asked for here of ``pytest.ExceptionInfo``."""

    @property
    def value(self) -> BaseException:
        """The error."""


def hidden(raised: Raised | None) -> bool:
    """Is the error busdma's own? Its message says all. Any other is a bug there, and the way to it is shown."""
    return raised is not None and isinstance(raised.value, BusdmaError | WaitCancelled)
