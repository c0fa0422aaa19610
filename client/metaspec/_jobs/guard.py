"""Who may call: the token, and what keeps pages of other origins out. Every answer gets security headers."""

from __future__ import annotations

import hashlib
import hmac
import re
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec._jobs.problems import Problem

_SHORTEST = 16  # characters of a token
_LOCAL = {"127.0.0.1", "localhost", "[::1]"}
_OPEN = {"/", "/session"}  # what is answered without a token: the page itself, and where the token is given
_READING = ("GET", "HEAD")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'",
}
_LINES = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]  # as ASGI has them


def read_token(file: Path) -> str:
    """The token in a file.

    Raises:
        ValueError: it is missing, too short, or holds more than one word.
    """
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file: {file} cannot be read as ASCII text: {error}") from None
    if len(token) < _SHORTEST or len(token.split()) != 1:
        raise ValueError(f"--token-file: {file} must hold one word of at least {_SHORTEST} characters")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Middleware that refuses requests without the token, and those that pages of other origins make.

    Without a token, the name in `Host` must be one of this machine: otherwise, a page whose name is made to lead here could
    call (DNS rebinding). Such a page does not have the token, so with one, every name is right.

    Args:
        app: application behind it.
        token: token that callers need; None for none.
        host: address that the service listens at.
    """

    def __init__(self, app: ASGIApp, token: str | None, host: str) -> None:
        self._app, self._token = app, token
        self._hosts = _LOCAL | {f"[{host}]" if ":" in host else host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                message["headers"].extend(line for line in _LINES if line[0] not in known)
            await send(message)

        if (problem := self._refusal(scope)) is not None:
            await problem.response(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self._token is None and re.sub(r":\d*$", "", host).lower() not in self._hosts:
            return Problem(403, f"expected a Host of {', '.join(sorted(self._hosts))}, got {host!r:.60}", "Host")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        reading = scope["method"] in _READING
        if not reading and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Problem(403, f"expected no Origin, or that of this service, got {origin!r:.60}", "Origin")
        if site not in ("none", "same-origin") and not (reading and headers.get("sec-fetch-mode") == "navigate"):
            return Problem(403, f"expected a request of this service's own page, or a link, got one that is {site:.60}")
        if scope["query_string"] and path != "/" and not path.startswith("/static/"):
            return Problem(400, f"expected no query, got {scope['query_string'].decode('latin-1')!r:.60}", "query")
        if self._token is None or path in _OPEN or path.startswith("/static/"):
            return None
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same_token(self._token, sent.strip()):
            return None
        name, value = session(self._token)
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(name)
        except CookieError:
            cookie = None
        if cookie is not None and hmac.compare_digest(cookie.value.encode(), value.encode()):
            return None
        detail = "expected the token, as Authorization: Bearer TOKEN, or the cookie of POST /session"
        return Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def same_token(token: str | None, sent: str) -> bool:
    """Whether a text is the token; every text is where there is none. It takes as long for every text."""
    return token is None or hmac.compare_digest(sent.encode(), token.encode())


def session(token: str) -> tuple[str, str]:
    """Name and value of the cookie of the page, which the token alone gives: a restart ends no session."""
    name, value = (hmac.new(token.encode(), part, hashlib.sha256).hexdigest() for part in (b"name", b"session"))
    return f"metaspec-jobs-{name[:8]}", value
