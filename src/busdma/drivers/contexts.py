"""A driver's contexts: started by name, and none ends by an error that nobody hears of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from busdma.errors import DeviceFault
from busdma.waiting import Runtime, Task


def start(
    runtime: Runtime,
    device: str,
    name: str,
    run: Callable[[], Coroutine[Any, Any, None]],
    failed: Callable[[DeviceFault], object],
) -> Task[None]:
    """Start `run` as the context `name` of the driver of `device`.

    If it raises, `failed` is told: without this context nothing would ever end.
    """

    async def context() -> None:
        try:
            await run()
        except Exception as error:
            failed(DeviceFault(f"the driver of {device} failed in context {name!r}: {error!r}"))
            raise

    return runtime.start(context, name=f"{device} {name}")
