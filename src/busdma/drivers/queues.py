"""The two queues of a disk controller's driver: a channel between contexts, and the requests of one disk in order.

`RequestQueue` implements the order that a disk's users are promised. Its one consumer takes requests from the head;
while that consumer waits for something (a control block, a bounce page), nothing behind is taken, so the queue
freezes by itself (Thorpe, tech-kern 12 June 1998). A request that overlaps one in flight stays at the head until that
one is settled, so that neither a retry nor a reset can let the later one win.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from busdma.drivers.block import Data
from busdma.errors import DeadlineExpired, DeviceFault
from busdma.sync import Direction
from busdma.waiting import PENDING, WOKEN, Runtime, Waiter

T = TypeVar("T")
EVERYTHING: Final = (0, 1 << 64)
TOLD_AT_ONCE: Final = 8  #: of the requests of one call: the device works on them while the others are made


class Channel(Generic[T]):
    """Things put by any thread and taken, one each and in order, by contexts that wait for them."""

    __slots__ = ("_items", "_lock", "_takers", "purpose")

    def __init__(self, purpose: str, items: Iterable[T] = ()) -> None:
        self.purpose = purpose
        self._items = deque(items)
        self._takers: deque[Waiter] = deque()
        self._lock = threading.Lock()

    def put(self, item: T) -> None:
        """Give `item` to the context that has waited longest, or keep it."""
        while True:
            with self._lock:
                if not self._takers:
                    self._items.append(item)
                    return
                taker = self._takers.popleft()
            if taker.wake(item):
                return

    async def take(self, runtime: Runtime, deadline: int | None = None) -> T:
        """The oldest item. A wait that is cancelled after it was given an item puts it back."""
        with self._lock:
            if self._items:
                return self._items.popleft()
            waiter = Waiter(self.purpose)
            self._takers.append(waiter)
        try:
            item: T = await runtime.park(waiter, deadline)
        except BaseException:
            if waiter.state == WOKEN:
                self.put(waiter.value)
            raise
        return item

    def take_now(self) -> T | None:
        """The oldest item, if there is one."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def take_all(self) -> list[T]:
        """All there are."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
        return items

    def __len__(self) -> int:
        return len(self._items)


class Request:
    """One command and what became of it: ``done`` is woken with its reply, or with the exception to raise.

    The command is a SCSI one, or what else the controller's driver has put into bytes.
    """

    __slots__ = (
        "attempts",
        "buffer",
        "cdb",
        "deadline",
        "direction",
        "done",
        "given_up",
        "reply",
        "resets",
        "span",
        "started",
        "writes",
    )

    def __init__(
        self,
        cdb: bytes,
        *,
        buffer: Data | None = None,
        direction: Direction = Direction.FROM_DEVICE,
        reply: int = 0,
        span: tuple[int, int] = (0, 0),
        deadline: int | None = None,
    ) -> None:
        """`reply`: bytes to return, for commands with a short answer and no buffer. `span`: blocks [first, end)."""
        self.cdb = cdb
        self.buffer = buffer
        self.direction = direction
        self.reply = reply
        self.span = span
        self.writes = direction is Direction.TO_DEVICE
        self.deadline = deadline
        self.done = Waiter("a command")
        self.started = False  #: the device has been told
        self.given_up = False  #: the deadline came first
        self.attempts = 0  #: tries that the device answered with "not now"
        self.resets = 0  #: tries that a reset took away

    def conflicts(self, other: Request) -> bool:
        """True if the order of the two matters."""
        (first, end), (other_first, other_end) = self.span, other.span
        return (self.writes or other.writes) and first < other_end and other_first < end


class Express(Protocol):
    """How a request goes that need not wait for the consumer."""

    def start(self, request: Request) -> bool:
        """Start it: it is in flight already. False: it has been put back, or settled."""

    def tell(self) -> None:
        """More is going to be started; what has been started may begin."""

    def attend(self, last: Request, count: int) -> Coroutine[Any, Any, None] | None:
        """`count` were started, `last` the last of them, and their maker is going to wait; to be awaited before."""


class RequestQueue:
    """The requests of one disk: those that wait, in order, and those in flight. One consumer.

    ``express``: where nothing waits, a request need not wait for the consumer either. The context that submits it
    starts it, and sees to it.
    """

    __slots__ = (
        "_called",
        "_changed",
        "_flying",
        "_listening",
        "_lock",
        "_runtime",
        "_waiting",
        "_writes",
        "closed",
        "express",
        "name",
    )

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self.express: Express | None = None
        self.closed: BaseException | None = None  #: why nothing is served any more
        self._flying: dict[Request, None] = {}  # in flight, in order
        self._writes = 0  # among them
        self._runtime = runtime
        self._waiting: deque[Request] = deque()
        self._changed: Waiter | None = None
        self._called = False
        self._listening = False  # the consumer found nothing to take, and comes back when it is called
        self._lock = threading.Lock()

    async def submit(self, request: Request) -> bytes:
        """Queue `request`, wait until it is settled, and return its reply or raise its error.

        DeadlineExpired if its deadline has passed already: the device is not told of it.
        """
        if request.deadline is not None:
            self._in_time((request,))
        done, express = request.done, self._enter(request)
        if express is None:
            self._notify()
        elif express.start(request) and (rest := express.attend(request, 1)) is not None:
            await rest
        result = done.value if done.state == WOKEN else await self._settled(request)
        if isinstance(result, BaseException):
            raise result
        reply: bytes = result
        return reply

    async def submit_all(self, requests: Sequence[Request]) -> None:
        """Queue all of them, in order, and return when all are settled; or raise the error of the first that failed.

        DeadlineExpired, of none of which the device is told, as `submit`.
        """
        self._in_time(requests)
        last, count = None, 0
        for request in requests:
            try:
                express = self._enter(request)
            except Exception as error:  # closed meanwhile; what is under way ends first
                request.done.wake(error)
                continue
            if express is not None and express.start(request):
                last, count = request, count + 1
                if not count % TOLD_AT_ONCE:
                    express.tell()
        if self._waiting:
            self._notify()
        if last is not None and self.express is not None and (rest := self.express.attend(last, count)) is not None:
            await rest
        await self._all_settled([request for request in requests if request.done.state == PENDING])
        for request in requests:
            if isinstance(request.done.value, BaseException):
                raise request.done.value

    @property
    def in_flight(self) -> list[Request]:
        """The requests that the consumer has taken and that are not settled, oldest first."""
        return list(self._flying)

    def alone(self, count: int = 1) -> bool:
        """So many requests are in flight at most, and nothing waits."""
        return len(self._flying) <= count and not self._waiting

    @property
    def busy(self) -> bool:
        """Some are in flight."""
        return bool(self._flying)

    def _in_time(self, requests: Sequence[Request]) -> None:
        if any(request.deadline is not None and request.deadline <= self._runtime.now() for request in requests):
            raise DeadlineExpired(f"the deadline of a command for {self.name} had passed when it was made")

    async def _settled(self, request: Request) -> Any:
        request.done.purpose = f"command {request.cdb.hex(' ')}"
        timer = None
        if request.deadline is not None:
            timer = self._runtime.call_at(request.deadline, partial(self._give_up, request))
        try:
            return await self._runtime.park(request.done)
        finally:
            if timer is not None:
                timer.cancel()

    async def _all_settled(self, requests: Sequence[Request]) -> None:
        timers = [
            self._runtime.call_at(request.deadline, partial(self._give_up, request))
            for request in requests
            if request.deadline is not None
        ]
        try:
            for request in reversed(requests):  # the last one ends last, as a rule: one wait is enough then
                await self._runtime.park(request.done)
        finally:
            for timer in timers:
                timer.cancel()

    def _enter(self, request: Request) -> Express | None:
        """Put it into the queue; or in flight at once, and then this is how it goes."""
        with self._lock:
            if self.closed is not None:
                raise self.closed
            express = self.express
            if express is None or self._waiting or request.deadline is not None or self._conflicts(request):
                self._waiting.append(request)
                return None
            self._depart(request)
            return express

    async def next(self) -> Request:
        """The head, in flight from now on, once nothing in flight conflicts with it. For the consumer alone."""
        while (head := self.take()) is None:
            await self.work()
        return head

    async def work(self) -> None:
        """Return when there is something to take, or the consumer has been called since the last `take`."""
        with self._lock:
            if self._called or self._ready():
                return
            self._changed = waiter = Waiter(f"work for {self.name}")
        await self._runtime.park(waiter)

    def take(self) -> Request | None:
        """What `next` would return without waiting, if anything."""
        with self._lock:
            self._called = False
            self._listening = not self._ready()
            if self._listening:
                return None
            head = self._waiting.popleft()
            self._depart(head)
            return head

    def call(self) -> bool:
        """Have the consumer look, though there may be nothing to take: what went express is to be seen to.

        False: it has taken something, and waits, perhaps long, for what that is short of: see to it without him.
        """
        with self._lock:
            self._called = True
            listening = self._listening
        self._notify()
        return listening

    def _ready(self) -> bool:
        """Can the head be taken?"""
        while self._waiting and self._waiting[0].done.state != PENDING:
            self._waiting.popleft()  # nobody waits for it any more
        return bool(self._waiting) and not self._conflicts(self._waiting[0])

    def _conflicts(self, request: Request) -> bool:
        """With one in flight; reads alone never do."""
        if not (request.writes or self._writes):
            return False
        return any(request.conflicts(other) for other in self._flying)

    def _depart(self, request: Request) -> None:
        self._flying[request] = None
        self._writes += request.writes

    def _arrive(self, request: Request) -> None:
        if self._flying.pop(request, request) is None:
            self._writes -= request.writes

    def start(self, request: Request) -> bool:
        """The device is about to be told of `request`. False: do not, nobody waits for it any more."""
        with self._lock:
            request.started = not request.given_up and request.done.state == PENDING
            return request.started

    def settle(self, request: Request, result: Any) -> bool:
        """`request` is over. False: whoever made it has given it up meanwhile."""
        with self._lock:
            self._arrive(request)
        if request.given_up or isinstance(result, DeadlineExpired):
            result = self._overdue(request)
        taken = request.done.wake(result)
        if self._waiting:
            self._notify()
        return taken

    def put_back(self, requests: Collection[Request]) -> None:
        """Those of `requests` that are in flight here have to be done again: in their old order, before all others.

        Those whose deadline has passed meanwhile are given up, and all of them if the queue is closed.
        """
        over: list[Request] = []
        with self._lock:
            now, closed = self._runtime.now(), self.closed
            for request in reversed([request for request in self._flying if request in requests]):
                self._arrive(request)
                request.started = False
                if closed is not None or (request.deadline is not None and request.deadline <= now):
                    over.append(request)
                else:
                    self._waiting.appendleft(request)
        for request in over:
            if closed is None:
                self._give_up(request)
            else:
                request.done.wake(closed)
        self._notify()

    def close(self, error: BaseException) -> None:
        """Take nothing any more; what waits ends with `error`."""
        with self._lock:
            self.closed = error
            over = list(self._waiting)
            self._waiting.clear()
        for request in over:
            request.done.wake(error)

    def __len__(self) -> int:
        return len(self._waiting)

    def _give_up(self, request: Request) -> None:
        with self._lock:
            if request.started:
                return  # it ends by an abort, after which the buffer is the caller's again
            request.given_up = True
            if request in self._flying:
                return  # the consumer is at it, perhaps has it loaded, and ends what it waits for at the same time
        request.done.wake(self._overdue(request))

    def _overdue(self, request: Request) -> Exception:
        if request.resets:  # part of it may have happened
            return DeviceFault(f"{self.name}: the deadline passed before another try after a reset")
        return DeadlineExpired(f"{self.name}: the deadline passed before the request was started")

    def _notify(self) -> None:
        with self._lock:
            waiter, self._changed = self._changed, None
        if waiter is not None:
            waiter.wake()
