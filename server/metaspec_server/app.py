"""The application: routes, error answers, and the life of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse

from metaspec_server import native, oip
from metaspec_server.problems import Problem
from metaspec_server.service import Service


def create_app(service: Service) -> FastAPI:
    """The ASGI application that serves a service, and closes it at shutdown."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="MetaSpec",
        version=version("metaspec"),
        summary="Spectra of metasurface colour routers, predicted by a trained network.",
        lifespan=lifespan,
        license_info={"name": "Apache-2.0"},
    )
    app.state.service = service
    app.include_router(native.router)
    app.include_router(oip.router)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return error.oip_response() if request.url.path.startswith("/v2") else error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return await problem(request, Problem(error.status_code, str(error.detail), headers=headers))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return await problem(request, Problem(422, f"{field}: {first['msg']}", field=field))

    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, error: ClientDisconnect) -> Response:
        return await problem(request, Problem(400, "the connection was closed before the body was complete"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return await problem(request, Problem(500, "an unexpected error; the server's log has the traceback"))

    return app
