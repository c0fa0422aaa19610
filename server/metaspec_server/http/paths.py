"""Paths and methods of requests: the prefix of a proxy, a slash at the end, and HEAD."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["PAGES", "Paths"]

PAGES = ("/docs",)
"""Pages whose links are relative to their address without a slash at the end."""


class Paths:
    """Middleware that passes requests on with the path that the routes know, and HEAD as GET.

    A prefix that a proxy has left on the path is removed, and so is a slash at its end; only pages, whose relative links would
    break, are redirected (308, which keeps method and body). The HTTP server drops the body of an answer to HEAD.

    Args:
        app: application behind it.
        root_path: prefix of the proxy, such as `/metaspec`; paths without it are passed on, too.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Redirect a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if self._root_path and path == self._root_path:
            await _redirect(scope, f"{path}/")(scope, receive, send)
            return
        if self._root_path and path.startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path)
        if path.endswith("/") and path != "/":
            path = path.removesuffix("/")
            if path in PAGES:
                await _redirect(scope, f"..{path}")(scope, receive, send)
                return
        # A copy: the server must know that it is HEAD.
        inner = {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        try:
            await self._app(inner, receive, send)
        finally:
            if "route" in inner:  # for the access log
                scope["route"] = inner["route"]


def _redirect(scope: Scope, location: str) -> RedirectResponse:
    query = scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{location}?{query}" if query else location, 308)
