"""A call over gRPC: its key, its errors as statuses, its line in the log and its count in the metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from metaspec_server.core.keys import ApiKeys, Role
from metaspec_server.http.access_log import valid_id
from metaspec_server.http.auth import find_caller, refusal
from metaspec_server.http.problems import Problem
from metaspec_server.oip_grpc.status import CANCELLED, TIMED_OUT, code_of, problem_for
from metaspec_server.ops.logs import caller_name, request_id
from metaspec_server.ops.metrics import Metrics

__all__ = ["Call", "Failed"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_OK = 200
_LONGEST = 2000  # characters of a message: it travels in the trailing headers, which clients limit to 8 KiB

_MOMENT = 0.05  # seconds: a caller at its deadline cancels the call, which may come before the server's own deadline
_ROUNDING = 0.02  # share: clients send their deadline rounded up to two or three digits


class Failed(Exception):
    """A call, or a request of a stream, has failed. The message is for the caller.

    Args:
        code: status code.
        detail: description of what is wrong and what was expected.
        metadata: trailing metadata, such as `retry-after`.
    """

    def __init__(self, code: grpc.StatusCode, detail: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.code, self.detail, self.metadata = code, detail[:_LONGEST], metadata


class Call:
    """A call of a method.

    Args:
        method: path of the method.
        context: its context.
        metrics: metrics to count in.
    """

    def __init__(self, method: str, context: Any, metrics: Metrics) -> None:
        self._method, self._metrics = method, metrics
        self._time_remaining: Callable[[], float | None] = context.time_remaining
        self._allowed = context.time_remaining() or 0.0
        metadata = context.invocation_metadata() or ()
        self._metadata = {name: value for name, value in metadata if isinstance(value, str) and value.isascii()}
        self.id = valid_id(self._metadata.get("x-request-id", ""))
        request_id.set(self.id)  # the call has a task, and with it a context, of its own

    def authorise(self, keys: ApiKeys, *roles: Role) -> None:
        """Check that the caller has a valid key for what needs one of these roles; without any, it needs no key.

        Raises:
            Problem: 401 or 403 if it has none.
        """
        caller = find_caller(self._metadata, keys)
        caller_name.set(caller.name if caller else None)
        if keys.required and roles and (refused := refusal(caller, *roles)):
            raise refused

    async def answer(self, work: Awaitable[T], only_failures: bool = False) -> T:
        """The result of the call's work, logged and counted with the status that HTTP would have.

        Args:
            work: work that answers it.
            only_failures: whether only a failure is logged and counted.

        Raises:
            Failed: it has failed.
        """
        started, status = time.perf_counter(), _OK
        try:
            return await work
        except asyncio.CancelledError:
            status = TIMED_OUT if self._overdue() else CANCELLED
            raise
        except Exception as error:
            status, failed = _failure(error)
        finally:
            if status != _OK or not only_failures:
                self._record(status, time.perf_counter() - started)
        # Here, not above, where the error would stay with it: gRPC keeps an exception until the next collection of garbage,
        # and the traceback of the error holds the request.
        raise failed

    def _overdue(self) -> bool:
        """Whether the deadline of the call has passed, by the clock of its caller, who is sometimes a moment ahead."""
        left = self._time_remaining()
        return left is not None and left <= _MOMENT + _ROUNDING * self._allowed

    def _record(self, status: int, seconds: float) -> None:
        self._metrics.requests.labels(self._method, status).inc()
        self._metrics.request_seconds.labels(self._method).observe(seconds)
        fields = {"method": "gRPC", "path": self._method, "status": status, "ms": round(1000 * seconds, 2)}
        log.info("request", extra=fields)


def _failure(error: Exception) -> tuple[int, Failed]:
    """What an error is to the caller: the status that HTTP would have, and the failure of the call."""
    problem = problem_for(error)
    if problem is None:
        log.exception("an unexpected error")
        problem = Problem(500, "an unexpected error; the server's log has the traceback")
    after = (problem.headers or {}).get("Retry-After")
    metadata = (("retry-after", after),) if after else ()
    return problem.status, Failed(code_of(problem, error), problem.detail, metadata)
