"""Authentication by API keys, authorisation by their roles, and security headers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.core.keys import ApiKeys, Caller, Role
from metaspec_server.http.problems import Problem
from metaspec_server.ops.logs import caller_name

__all__ = ["Guard", "find_caller", "refusal", "role_for"]

_OPEN = ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json", "/contract")
_CONTROL = (
    "/v2/repository/models/",
    "/v2/systemsharedmemory/",
    "/v2/cudasharedmemory/",
    "/v2/logging",
    "/v2/trace/setting",
)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'"
)


def role_for(path: str) -> Role | None:
    """The role that a path needs; None for health checks, the pages and `/contract`, which need no key."""
    if path in _OPEN or path.startswith("/static/"):
        return None
    if path == "/metrics":
        return Role.METRICS
    return Role.CONTROL if path.startswith(_CONTROL) else Role.INFER


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
                answer = MutableHeaders(scope=message)
                answer.update(_HEADERS)
                answer["Content-Security-Policy"] = _POLICY
            await send(message)

        headers = Headers(scope=scope)
        caller = find_caller(headers, self._keys)
        caller_name.set(caller.name if caller else None)
        role = role_for(path)
        refused = refusal(caller, role) if self._keys.required and role is not None else None
        if role is Role.CONTROL and not self._keys.required and "origin" in headers:
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


def refusal(caller: Caller | None, role: Role) -> Problem | None:
    """Why a caller may not do what needs a role; None if it may."""
    if caller is None:
        return Problem(
            401,
            "expected a valid API key, as Authorization: Bearer KEY or X-API-Key: KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if role not in caller.roles:
        return Problem(403, f"this API key has no role {role}, only {', '.join(sorted(caller.roles))}")
    return None
