"""The application: routes, error handlers and middleware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from metaspec_contract.structures import InvalidStructure
from metaspec_contract.validation import reason
from metaspec_server import __version__
from metaspec_server.core.errors import ServiceError
from metaspec_server.core.keys import ApiKeys
from metaspec_server.core.service import Service
from metaspec_server.http import contract, oip, rest
from metaspec_server.http.access_log import AccessLog
from metaspec_server.http.auth import Guard
from metaspec_server.http.compression import Compression
from metaspec_server.http.cross_origin import cross_origin
from metaspec_server.http.draining import Draining
from metaspec_server.http.openapi import add_security
from metaspec_server.http.paths import Paths
from metaspec_server.http.problems import Problem, problem_of
from metaspec_server.http.query import knows_query
from metaspec_server.ops.metrics import Metrics
from metaspec_server.ops.telemetry import traced

__all__ = ["create_app"]

_WEB = Path(__file__).parents[1] / "web"
_SWAGGER_UI = ("fastapi_offline", "static")  # package and folder of its script and style sheet


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
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": service.settings.root_path}] if service.settings.root_path else None,
        license_info={"name": "Apache-2.0"},
    )
    app.state.service = service
    app.router.routes.extend(oip.HOT_ROUTES)
    app.include_router(rest.router)
    app.include_router(contract.router)
    app.include_router(oip.router)
    app.mount("/static", StaticFiles(directory=_WEB, packages=[_SWAGGER_UI]), name="static")
    metrics.watch(service.states, lambda: service.cache_bytes, lambda: service.registry.unreadable)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_WEB / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return FileResponse(_WEB / "docs.html")

    @app.get("/metrics", tags=["Operation"], response_class=Response, dependencies=[Depends(knows_query())])
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.response_for(request.url.path)

    @app.exception_handler(ServiceError)
    @app.exception_handler(InvalidStructure)
    async def service_error(request: Request, error: ServiceError | InvalidStructure) -> Response:
        return await problem(request, problem_of(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return await problem(request, Problem(error.status_code, str(error.detail), headers=headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return await problem(request, Problem(422, f"{field}: {reason(first)}", field=field))

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return await problem(request, Problem(400, "the connection was closed before the body was complete"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        # uvicorn closes the connection after an exception: the caller is told.
        headers = {"Connection": "close"}
        detail = "an unexpected error; the server's log has the traceback"
        return await problem(request, Problem(500, detail, headers=headers))

    for route in (*rest.router.routes, *oip.router.routes):
        if isinstance(route, APIRoute):
            metrics.expect(route.path, [200, *(int(status) for status in route.responses if int(status) >= 500)])
    guarded = cross_origin(Guard(Compression(app), api_keys), service.settings.cors_origins)
    return AccessLog(Draining(traced(Paths(guarded, service.settings.root_path)), service), metrics)
