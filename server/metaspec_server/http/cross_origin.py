"""Cross-origin requests (CORS): pages of which origins may call the server from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from metaspec_server.http.error_bodies import ErrorBodies

__all__ = ["cross_origin"]

_SENT = (
    "Accept-Encoding",
    "Authorization",
    "Content-Encoding",
    "Inference-Header-Content-Length",
    "Traceparent",
    "X-API-Key",
    "X-Request-ID",
)
_READ = (
    "Inference-Header-Content-Length",
    "MetaSpec-Condition-Shapes",
    "MetaSpec-Dtype",
    "MetaSpec-Gradient-Shape",
    "MetaSpec-Merged-Greens",
    "MetaSpec-Model",
    "MetaSpec-Shape",
    "MetaSpec-Version",
    "Retry-After",
    "X-Request-ID",
)


def cross_origin(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, which pages of these origins may call; the application itself if there are none.

    Keys come in headers, which the page sets: cookies and other credentials of the browser are never allowed.

    Args:
        app: application behind it.
        origins: origins such as `https://example.org`, or `*` alone for all.
    """
    if not origins:
        return app
    crossing = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_SENT,
        expose_headers=_READ,
        allow_credentials=False,
    )
    return ErrorBodies(crossing)
