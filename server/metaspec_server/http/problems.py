"""Error answers: RFC 9457 problem documents on our own routes, error objects of the Open Inference Protocol below `/v2`."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeAlias

from starlette.responses import JSONResponse

from metaspec_contract.conditions import InvalidCondition
from metaspec_contract.structures import InvalidStructure
from metaspec_server.core.errors import (
    Closed,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    InvalidSharedMemory,
    MemoryFull,
    OutOfRange,
    QueueFull,
    ServiceError,
    StillLoading,
    TooManyStructures,
    TooMuchMemory,
    UnknownModel,
    UnknownRegion,
)

__all__ = ["DomainError", "Problem", "problem_of"]

_LONGEST_FIELD = 60  # characters

_STATUSES: dict[type[ServiceError], int] = {
    InvalidSharedMemory: 400,
    UnknownModel: 404,
    UnknownRegion: 404,
    TooManyStructures: 413,
    TooMuchMemory: 413,
    OutOfRange: 422,
    EngineFailure: 500,
    Closed: 503,
    EngineUnavailable: 503,
    MemoryFull: 503,
    QueueFull: 503,
    StillLoading: 503,
    DeadlineExceeded: 504,
}


class Problem(Exception):
    """Ends a request with an error answer.

    Args:
        status: HTTP status.
        detail: description of what is wrong and what was expected.
        headers: additional headers, such as `Retry-After`.
        field: part of the request that is wrong.
    """

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, field: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.field = status, detail, headers, field

    def response_for(self, path: str) -> JSONResponse:
        """The answer to a request for this path."""
        if path.startswith("/v2"):
            return JSONResponse({"error": self.detail}, self.status, self.headers)
        body: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


DomainError: TypeAlias = ServiceError | InvalidStructure | InvalidCondition
"""Errors of the service, and of the checks of structures and conditions."""


def problem_of(error: DomainError) -> Problem:
    """The problem that answers a request which raised one of these errors."""
    if isinstance(error, InvalidStructure):
        return Problem(422, str(error), field="structures")
    if isinstance(error, InvalidCondition):
        return Problem(422, str(error), field=error.name[:_LONGEST_FIELD])
    headers = None if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
    field = "cotangent" if isinstance(error, OutOfRange) else None
    return Problem(_STATUSES[type(error)], str(error), headers=headers, field=field)
