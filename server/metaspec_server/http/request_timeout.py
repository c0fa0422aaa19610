"""A limit on how long a caller may take to say what it wants: uvicorn waits for the head of a request for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 47\r\nConnection: close\r\n\r\n"
    b"the head of the request did not come in time.\r\n"
)


def impatient_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol, which hangs up with 408 where the head of a request does not come within some seconds."""

    class ImpatientProtocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._wait()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop_waiting()
            self._patience = self.loop.call_later(seconds, self._hang_up)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()

        def _hang_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(_ANSWER)
                self.transport.close()

    return cast("type[asyncio.Protocol]", ImpatientProtocol)
