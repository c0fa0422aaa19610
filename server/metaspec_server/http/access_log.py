"""The access log: id, duration and status of every request, logged and counted."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.ops.logs import request_id
from metaspec_server.ops.metrics import Metrics

__all__ = ["UNKNOWN_ROUTE", "AccessLog", "record_refusal", "valid_id"]

log = logging.getLogger(__name__)

UNKNOWN_ROUTE = "unknown"
"""Route in the metrics of requests that none answers: no such path, no key, a refused head, preflights of CORS."""

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def valid_id(given: str) -> str:
    """The id that a caller gave to its request if it is valid, else a new one."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def record_refusal(metrics: Metrics, status: int) -> None:
    """Count and log a request whose head was refused, so that the application does not see it."""
    metrics.requests.labels(UNKNOWN_ROUTE, status).inc()
    log.info("request", extra={"status": status})


class AccessLog:
    """Middleware that counts, times and logs each request under an id, that of `X-Request-ID` if it is valid.

    Args:
        app: application behind it.
        metrics: metrics to count in.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request, and record the outcome."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = valid_id(Headers(scope=scope).get("x-request-id", ""))
        token = request_id.set(identifier)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", identifier.encode()))  # nothing behind it sets one
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            # Only existing routes are named: other paths would add labels without bound.
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            log.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(1000 * seconds, 2),
                },
            )
            request_id.reset(token)
