"""`Connection: close` on every answer while the server is shutting down, so that callers move to other servers."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.core.service import Service

__all__ = ["Draining"]


class Draining:
    """Middleware that lets each connection end with its next answer once the service is draining.

    A connection that stays open would be closed at the end of the shutdown, perhaps just as its next request arrives.

    Args:
        app: application behind it.
        service: the service.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_last)
