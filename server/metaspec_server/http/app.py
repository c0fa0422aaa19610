"""The application: routes, error handlers and middleware."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from metaspec_contract.validation import reason
from metaspec_server import __version__
from metaspec_server.core.keys import ApiKeys
from metaspec_server.core.service import Service
from metaspec_server.http import contract, gdsii, oip, oip_control_routes, rest
from metaspec_server.http.access_log import UNKNOWN_ROUTE, AccessLog
from metaspec_server.http.auth import Guard
from metaspec_server.http.compression import Compression
from metaspec_server.http.cross_origin import cross_origin
from metaspec_server.http.draining import Draining
from metaspec_server.http.error_answers import EXPECTED, answer_to
from metaspec_server.http.error_bodies import ErrorBodies
from metaspec_server.http.hot_routes import HotRoutes
from metaspec_server.http.openapi import add_security
from metaspec_server.http.paths import Paths
from metaspec_server.http.problems import Problem
from metaspec_server.http.query import knows_query
from metaspec_server.ops.metrics import Metrics
from metaspec_server.ops.telemetry import traced

__all__ = ["create_app"]

_WEB = Path(__file__).parents[1] / "web"
_SWAGGER_UI = ("fastapi_offline", "static")  # package and folder of its script and style sheet

_ROUTERS = (
    rest.router,
    contract.router,
    gdsii.router,
    oip_control_routes.router,  # before the routes of a model that would be named "stats"
    oip.router,
)
"""Routers whose routes have their whole path: FastAPI joins no prefix to the path by which a request is counted."""


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            add_security(super().openapi())
        return super().openapi()


def create_app(service: Service, metrics: Metrics, api_keys: ApiKeys) -> ASGIApp:
    """The ASGI application that serves a service.

    Args:
        service: the service.
        metrics: metrics that the service counts in.
        api_keys: valid keys.

    Raises:
        TelemetryError: traces are configured, but the packages that send them are missing.
    """
    app = _Application(
        title="MetaSpec",
        version=__version__,
        summary="Spectra of metasurface colour routers, and their gradients, predicted by a trained network.",
        openapi_url=None,  # as a route below, like all others
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": service.settings.root_path}] if service.settings.root_path else None,
        license_info={"name": "Apache-2.0"},
    )
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    files = StaticFiles(directory=_WEB, packages=[_SWAGGER_UI])
    metrics.watch(service.states, lambda: service.cache_bytes, lambda: service.registry.unreadable)

    @app.get("/", include_in_schema=False, dependencies=[Depends(_known_range)])
    async def page() -> Response:
        return FileResponse(_WEB / "index.html")

    @app.get("/docs", include_in_schema=False, dependencies=[Depends(_known_range)])
    async def documentation() -> Response:
        return FileResponse(_WEB / "docs.html")

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return JSONResponse(app.openapi())

    @app.get("/static/{path:path}", include_in_schema=False, dependencies=[Depends(_known_range)])
    async def static(request: Request, path: str) -> Response:
        return await files.get_response(path, request.scope)

    @app.get("/metrics", tags=["Operation"], response_class=Response, dependencies=[Depends(knows_query())])
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def problem(request: Request, error: Exception) -> Response:
        return answer_to(error, request.url.path)

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, problem)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path, status = request.scope["path"], error.status_code
        detail, headers = str(error.detail), dict(error.headers or {})
        if status == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {path[:200]!r}; /docs lists the routes"
        elif status == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = _methods_at(path, routes)
            headers["Allow"] = ", ".join(methods)
            detail = f"the method must be {' or '.join(methods)}"
        return await problem(request, Problem(status, detail, headers=headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return await problem(request, Problem(422, f"{field}: {reason(first)}", field=field))

    routes = [route for one in (app, *_ROUTERS) for route in one.routes if isinstance(route, Route)]
    for route in routes:
        promised = (int(status) for status in getattr(route, "responses", {}))
        metrics.expect(route.path, sorted({200, 500, *(status for status in promised if status > 500)}))
    metrics.expect(UNKNOWN_ROUTE, (401, 403, 404))
    guarded = cross_origin(
        Guard(Compression(HotRoutes(ErrorBodies(app), app)), api_keys), service.settings.cors_origins
    )
    return AccessLog(Draining(traced(Paths(guarded, service.settings.root_path)), service), metrics)


async def _known_range(request: Request) -> None:
    """Ignore a range in another unit than bytes, as a server must (RFC 9110, 14.2)."""
    unit = request.headers.get("range", "").partition("=")[0].strip().lower()
    if unit != "bytes":
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]


def _methods_at(path: str, routes: Iterable[Route]) -> list[str]:
    """Methods of all routes that a path matches, for the header Allow (RFC 9110, 10.2.1); a single route states its own."""
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
