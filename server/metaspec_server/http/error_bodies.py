"""Error answers that Starlette makes itself, in plain text, with the body that all others of this server have."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.http.problems import Problem

__all__ = ["ErrorBodies"]


class ErrorBodies:
    """Middleware that turns the text of an error into a problem document, or an error object below `/v2`.

    Starlette answers in plain text to a range that a file does not have (416), one that it cannot read, and a preflight request
    of CORS that is refused (400).

    Args:
        app: application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None  # of an error in plain text, until its body is complete
        text = b""

        async def send_problem(message: Message) -> None:
            nonlocal start, text
            if message["type"] == "http.response.start" and _is_plain_error(message):
                start = message
                return
            if start is None:
                await send(message)
                return
            text += message.get("body", b"")
            if message.get("more_body", False):
                return
            kept = MutableHeaders(raw=start["headers"])
            for name in ("Content-Type", "Content-Length"):
                del kept[name]
            if "Content-Range" in kept:  # Starlette 0.41 leaves out the unit
                kept["Content-Range"] = f"bytes */{_size(kept)}"
            answer = Problem(start["status"], _detail(scope, kept, text.decode())).response_for(scope["path"])
            await send({**start, "headers": [*kept.raw, *answer.raw_headers]})
            await send({"type": "http.response.body", "body": answer.body})

        await self._app(scope, receive, send_problem)


def _is_plain_error(start: Message) -> bool:
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def _detail(scope: Scope, answer: Headers, text: str) -> str:
    asked = Headers(scope=scope).get("range")
    if asked is None or scope["method"] == "OPTIONS":
        return text
    size = _size(answer)
    wanted = f"a range within its {size} bytes" if size else "bytes=FIRST-LAST"
    return f"Range: expected {wanted}, got {asked[:60]!r}"


def _size(answer: Headers) -> str:
    """Size of the file that an answer states, "" if it states none."""
    return answer.get("content-range", "").rpartition("/")[2]
