"""Error answers: RFC 9457 problem documents that name the field, what was expected and what came."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from metaspec._jobs.jobs import Conflict, UnknownJob
from metaspec._jobs.settings import WrongSetting


class Problem(Exception):
    """Ends a request with an error answer.

    Args:
        status: HTTP status.
        detail: what is wrong: what was expected, what came.
        field: part of the request that is wrong.
        headers: additional headers.
    """

    def __init__(
        self, status: int, detail: str, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field, self.headers = status, detail, field, headers

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        title = HTTPStatus(self.status).phrase
        body: dict[str, object] = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        if self.field is not None:
            body["field"] = self.field
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


HANDLED: tuple[type[Exception], ...] = (Problem, WrongSetting, UnknownJob, Conflict, HTTPException)
"""Errors that answer a request; others are mistakes of this program."""


def problem_of(error: Exception, request: Request) -> Problem:
    """The problem that answers a request which raised one of `HANDLED`."""
    match error:
        case Problem():
            return error
        case WrongSetting():
            return Problem(422, str(error), error.field)
        case UnknownJob():
            return Problem(404, str(error), "name")
        case Conflict():
            return Problem(409, str(error))
        case HTTPException():
            detail = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
            if error.status_code == 405:
                detail = f"expected {(error.headers or {}).get('Allow', 'another method')}, got {request.method}"
            return Problem(error.status_code, detail, headers=dict(error.headers or {}))
        case _:
            raise error
