"""Limits of a request's head, of size and time, which uvicorn lacks. The only module that uses private interfaces of uvicorn.

uvicorn is pinned to a minor version; tests/server/test_request_head.py fails first where these interfaces change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metaspec_server.http.problems import Problem

__all__ = ["MAX_HEADER_LINES", "MAX_HEAD_BYTES", "protocol_with_limits"]

MAX_HEAD_BYTES = 64 * 1024
"""Largest head of a request, and largest trailer or chunk extension, in bytes."""

MAX_HEADER_LINES = 100
"""Largest number of header and trailer lines of a request."""

_LINGER = (
    2.0  # seconds to discard what a caller still sends: a connection closed before would be reset, its answer lost
)


_TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class _Stop(Exception):
    """Stops the parser."""


def protocol_with_limits(seconds: float, refused: Callable[[int], None]) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol, which answers a head that is late (408) or too large (431, 414), and closes the connection.

    Args:
        seconds: time for the head, from the start of the connection or of the request.
        refused: function called with the status of each request that is answered here, before the application sees it.
    """

    class ProtocolWithLimits(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _in_head = True  # what comes next belongs to a head, not to a body or trailer
        _lines = 0  # header and trailer lines of this request
        _parsed = 0  # bytes in complete lines of the head or the trailer
        _unparsed = 0  # bytes since the parser reported anything: they belong to a line that has not ended
        _refusal: tuple[HTTPStatus, str] | None = None
        _ended = False  # nothing is read any more

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            if self._ended:
                return
            self._unparsed += len(data)
            super().data_received(data)
            if self._unparsed > MAX_HEAD_BYTES and not self._ended:
                self._answer(_TOO_LARGE, f"expected lines of at most {MAX_HEAD_BYTES} bytes")

        def on_message_begin(self) -> None:
            self._in_head = True
            self._lines = self._parsed = self._unparsed = 0
            super().on_message_begin()
            self._start_timer()

        def on_url(self, url: bytes) -> None:
            self._count(len(url), HTTPStatus.REQUEST_URI_TOO_LONG, "a request target")
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + 4, _TOO_LARGE, "header lines")
            self._lines += 1
            if self._lines > MAX_HEADER_LINES:
                self._refusal = _TOO_LARGE, f"expected at most {MAX_HEADER_LINES} header lines"
                raise _Stop
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._stop_timer()
            self._in_head = False
            self._parsed = self._unparsed = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._unparsed = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_head = True
            self._unparsed = 0
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Answer a request that the parser has stopped at."""
            self._answer(*(self._refusal or (HTTPStatus.BAD_REQUEST, msg)))

        def _count(self, nbytes: int, status: HTTPStatus, what: str) -> None:
            self._unparsed = 0
            self._parsed += nbytes
            if self._parsed > MAX_HEAD_BYTES:
                self._refusal = status, f"expected {what} of at most {MAX_HEAD_BYTES} bytes"
                raise _Stop

        def _start_timer(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(seconds, self._expire)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _expire(self) -> None:
            if not self.transport.is_closing() and not self._ended:
                self._answer(HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not come in time")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            """Answer the request that is being read, and close the connection. Answers that are due before it come first."""
            self._ended = True
            self._stop_timer()
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                if self._in_head or self.pipeline or cycle.response_started:
                    cycle.keep_alive = False  # its answer is the last: ours would be taken for it
                    return
                cycle.disconnected = True  # the application has it in its log
                cycle.message_event.set()
            elif not self._in_head:  # it has been answered before its body was complete
                self.transport.close()
                return
            else:
                refused(status.value)
            answer = Problem(status, text).response_for(getattr(self, "url", b"").decode("latin-1"))
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {answer.media_type}\r\n"
                f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + bytes(answer.body))
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.loop.call_later(_LINGER, self.transport.close)
            else:
                self.transport.close()

    return cast("type[asyncio.Protocol]", ProtocolWithLimits)
