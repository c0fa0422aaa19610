"""Authentication by API keys, and security headers."""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.http.problems import Problem

__all__ = ["ApiKeyError", "Guard", "read_api_keys"]

_OPEN = ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json", "/contract")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'"
)
_DOCS_POLICY = (  # Swagger UI comes from a CDN and starts with a script in the page
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' "
    "https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com; connect-src 'self'; base-uri 'none'"
)


class ApiKeyError(ValueError):
    """A file of API keys that cannot be used."""


def read_api_keys(path: Path) -> list[bytes]:
    """The keys in a file, one per line; empty lines and lines that start with # are ignored.

    Raises:
        ApiKeyError: the file cannot be read, holds no key, or a key of fewer than 16 characters.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ApiKeyError(f"--api-keys: {path} cannot be read: {error}") from None
    found = [line.encode() for line in lines if line and not line.startswith("#")]
    if not found:
        raise ApiKeyError(f"--api-keys: {path} has no keys in it, expected one per line")
    if short := [number for number, key in enumerate(found, 1) if len(key) < 16]:
        raise ApiKeyError(f"--api-keys: key {short[0]} in {path} is shorter than 16 characters")
    return found


class Guard:
    """Middleware that refuses requests without a valid key, and adds security headers to every answer.

    A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Health checks, the pages and `/contract` need none.

    Args:
        app: application behind it.
        api_keys: valid keys; if empty, no key is needed.
    """

    def __init__(self, app: ASGIApp, api_keys: list[bytes]) -> None:
        self._app, self._keys = app, api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers["Content-Security-Policy"] = _DOCS_POLICY if path == "/docs" else _POLICY
            await send(message)

        if (
            self._keys
            and not (path in _OPEN or path.startswith("/static/"))
            and not self._is_valid(Headers(scope=scope))
        ):
            problem = Problem(
                401,
                "expected a valid API key, as Authorization: Bearer KEY or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await problem.response_for(path)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _is_valid(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = (token if scheme.lower() == "bearer" else headers.get("x-api-key", "")).strip().encode()
        # All keys are compared, each in constant time: the duration reveals nothing about a guess.
        matches = [hmac.compare_digest(sent, key) for key in self._keys]
        return any(matches)
