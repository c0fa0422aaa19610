"""How far a tool that takes long has come, told to its client."""

from __future__ import annotations

import re
import time
from typing import Any

from anyio import from_thread
from anyio.abc import ByteReceiveStream
from mcp.server.mcpserver import Context

from metaspec import optimise

_REPORT_EVERY = 0.25  # seconds between two notices of progress
_BAR = re.compile(rb"(\d+)/(\d+) \[")  # of the progress bar of metaspec-simulate

Anything = Context[Any, Any]
"""Context of a call."""


class OutOfTime(Exception):
    """The seconds of a call are over."""


class Watch:
    """Callback of an optimisation in a thread: reports progress, ends it when the call is cancelled or out of time.

    Attributes:
        step: number of completed steps.
        best: objective of the best binary structure so far; None before the first.
    """

    def __init__(self, context: Anything, seconds: float) -> None:
        self.step = 0
        self.best: float | None = None
        self._context, self._end, self._told = context, time.monotonic() + seconds, 0.0

    def __call__(self, progress: optimise.Progress) -> None:
        """Note the progress of a step."""
        from_thread.check_cancelled()
        best, now = float(progress.best.max()), time.monotonic()
        self.step, self.best = progress.step, best
        last = progress.step == progress.steps
        if last or now - self._told >= _REPORT_EVERY:
            self._told = now
            message = f"best binary design {best:.4f}"
            from_thread.run(self._context.report_progress, progress.step, progress.steps, message)
        if now > self._end and not last:
            raise OutOfTime


class Bar:
    """What metaspec-simulate prints: its progress bar, which is reported, and its messages.

    Attributes:
        done: simulations done.
        total: simulations asked for.
        message: last line of an error.
    """

    def __init__(self, context: Anything, expected: int) -> None:
        self.done, self.total, self.message = 0, expected, ""
        self._context, self._text = context, b""

    async def read(self, stream: ByteReceiveStream) -> None:
        """Read until the end."""
        async for chunk in stream:
            *lines, self._text = re.split(rb"[\r\n]", self._text + chunk)
            for line in [*lines, self._text]:
                if found := _BAR.search(line):
                    await self._note(int(found[1]), int(found[2]))
                elif line.startswith(b"metaspec-simulate: "):
                    self.message = line.decode(errors="replace").removeprefix("metaspec-simulate: ")

    async def _note(self, done: int, total: int) -> None:
        if (done, total) != (self.done, self.total):
            self.done, self.total = done, total
            await self._context.report_progress(done, total, f"{done} of {total} simulations")
