"""The first Ctrl-C ends the work in order: what is in flight ends, drivers stop, images are closed. The second is rude.

A KeyboardInterrupt may strike between any two instructions, of a runtime's too, and then nothing can be ended in order.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from busdma.errors import BusdmaError


class Interrupted(BusdmaError):
    """The user wants the work to end."""


class Interrupts:
    """While it is entered, an interrupt is only noted. Where nobody listens for one, as in a thread, it does nothing.

    After the work has ended, leaving it raises the KeyboardInterrupt that was noted.
    """

    def __init__(self) -> None:
        self.noted = False
        self._mine = False

    def check(self) -> None:
        """Raise Interrupted if there was an interrupt; call it wherever the work may end."""
        if self.noted:
            raise Interrupted("interrupted")

    def __enter__(self) -> Interrupts:
        listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._mine = listens and threading.current_thread() is threading.main_thread()
        if self._mine:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._restore()
        if self.noted and (error is None or isinstance(error, Interrupted)):
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        self._restore()

    def _restore(self) -> None:
        if self._mine:
            self._mine = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
