"""A timeout for the head of a request, which uvicorn lacks. The only module that uses private interfaces of uvicorn.

uvicorn is pinned to a minor version; tests/server/test_request_timeout.py fails first where these interfaces change.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["protocol_with_timeout"]

_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 47\r\nConnection: close\r\n\r\n"
    b"the head of the request did not come in time.\r\n"
)


def protocol_with_timeout(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol, which answers 408 and closes the connection when the head of a request is late.

    Args:
        seconds: time for the head, from the start of the connection or of the request.
    """

    class ProtocolWithTimeout(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start_timer()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(seconds, self._expire)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _expire(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(_ANSWER)
                self.transport.close()

    return cast("type[asyncio.Protocol]", ProtocolWithTimeout)
