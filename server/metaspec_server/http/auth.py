"""Authentication by API keys, authorisation by their roles, and security headers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.core.keys import ApiKeys, Caller, Role
from metaspec_server.http.problems import Problem
from metaspec_server.ops.logs import caller_name

__all__ = ["Guard", "find_caller", "refusal", "roles_for"]

_OPEN = ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json", "/contract")
_CONTROL = ("/v2/repository/models/", "/v2/systemsharedmemory/", "/v2/cudasharedmemory/")
_SETTINGS = ("/v2/logging", "/trace/setting")  # ends of paths that are read with GET, and changed with POST

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'",
}
_LINES = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]  # as ASGI has them


def roles_for(method: str, path: str) -> tuple[Role, ...]:
    """The roles of which a request needs one; none for health checks, the pages and `/contract`, which need no key."""
    if path in _OPEN or path.startswith("/static/"):
        return ()
    if path == "/metrics":
        return (Role.METRICS,)
    if path.endswith(_SETTINGS) and method == "GET":
        return (Role.INFER, Role.CONTROL)
    return (Role.CONTROL,) if path.startswith(_CONTROL) or path.endswith(_SETTINGS) else (Role.INFER,)


class Guard:
    """Middleware that refuses requests without a valid key and role, and adds security headers to every answer.

    A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Args:
        app: application behind it.
        api_keys: valid keys, and the roles of their holders.
    """

    def __init__(self, app: ASGIApp, api_keys: ApiKeys) -> None:
        self._app, self._keys = app, api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].extend(_LINES)  # nothing behind it sets one of them
            await send(message)

        headers = Headers(scope=scope)
        caller = find_caller(headers, self._keys)
        caller_name.set(caller.name if caller else None)
        roles = roles_for(scope["method"], path)
        refused = refusal(caller, *roles) if self._keys.required and roles else None
        if roles == (Role.CONTROL,) and not self._keys.required and "origin" in headers:
            # Any page that a browser shows may send requests to this machine; it just cannot read the answers.
            refused = Problem(403, "without API keys, pages in a browser may not do this")
        if refused is not None:
            await refused.response_for(path)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def find_caller(headers: Mapping[str, str], api_keys: ApiKeys) -> Caller | None:
    """The holder of the key in the headers of a request; None without a valid key, or if callers need none."""
    if not api_keys.required:
        return None
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return api_keys.find(sent.strip().encode("latin-1"))  # the bytes that came


def refusal(caller: Caller | None, *roles: Role) -> Problem | None:
    """Why a caller may not do what needs one of these roles; None if it may."""
    if caller is None:
        return Problem(
            401,
            "expected a valid API key, as Authorization: Bearer KEY or X-API-Key: KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if not caller.roles & set(roles):
        return Problem(403, f"this API key has no role {' or '.join(roles)}, only {', '.join(sorted(caller.roles))}")
    return None
