"""Cancel work when the caller disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

__all__ = ["cancel_on_disconnect"]

T = TypeVar("T")


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Result of work for a request whose body has been read; the work is cancelled when the caller disconnects.

    The work runs in the task of the request: only the watch for the caller takes a task of its own.

    Raises:
        ClientDisconnect: the caller has disconnected.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not left or task.uncancel():  # by somebody else, too, such as the server at its end
            raise
        raise ClientDisconnect from None
    finally:
        watching.cancel()
