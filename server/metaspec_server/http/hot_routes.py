"""The routes that compute, answered before FastAPI: its layers take a quarter of the time of a small request.

The functions are those of the FastAPI routes, which document them and answer the rarer forms, such as a query at `/predict`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from metaspec_server.http import oip, rest
from metaspec_server.http.error_answers import EXPECTED, answer_to
from metaspec_server.http.query import check_query

__all__ = ["HotRoutes"]

_Answer: TypeAlias = Callable[[Request], Awaitable[Response]]

_WITHOUT_QUERY: dict[str, _Answer] = {
    "/predict": lambda request: rest.predict(request, rest.Choice()),
    "/gradient": lambda request: rest.gradient(request, rest.Choice()),
}
_INFER = "/v2/models/{model}/infer"
_INFER_VERSION = "/v2/models/{model}/versions/{version}/infer"
_ROUTES = {
    route.path: route for router in (rest.router, oip.router) for route in router.routes if isinstance(route, Route)
}


class HotRoutes:
    """Middleware that answers the routes that compute, and passes all other requests on.

    Args:
        app: application behind it.
        application: the application of FastAPI, whose state the routes use.
    """

    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        self._app, self._application = app, application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        found = _find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        template, answer = found
        scope["app"] = self._application
        scope["route"] = _ROUTES[template]  # for the access log and for traces
        try:
            response = await answer(Request(scope, receive, send))
        except EXPECTED as error:
            response = answer_to(error, scope["path"])
        except Exception as error:
            await answer_to(error, scope["path"])(scope, receive, send)
            raise  # uvicorn logs the traceback
        await response(scope, receive, send)


def _find(scope: Scope) -> tuple[str, _Answer] | None:
    """Template of the path, and the function that answers a request; None if FastAPI answers it."""
    path: str = scope["path"]
    if path in _WITHOUT_QUERY:
        return None if scope["query_string"] else (path, _WITHOUT_QUERY[path])
    if not (path.startswith("/v2/models/") and path.endswith("/infer")):
        return None
    match path.split("/")[3:-1]:
        case [model] if model:
            return _INFER, partial(_infer, model=model)
        case [model, "versions", version] if model and version:
            return _INFER_VERSION, partial(_infer, model=model, version=version)
    return None


async def _infer(request: Request, model: str, version: str | None = None) -> Response:
    check_query(request)
    return await oip.infer(request, model, version)
