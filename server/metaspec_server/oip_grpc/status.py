"""Status codes of gRPC for the errors that HTTP answers with a status."""

from __future__ import annotations

import grpc

from metaspec_server.core.errors import MemoryFull, QueueFull
from metaspec_server.http.problems import DomainError, Problem, problem_of
from metaspec_server.oip_grpc.request_message import MessageTooLarge

__all__ = ["CANCELLED", "TIMED_OUT", "code_of", "problem_for"]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

CANCELLED = 499
"""Status in the log and the metrics of a call that its caller has cancelled."""

TIMED_OUT = 504
"""Status of a call that was not answered by its deadline."""


def problem_for(error: Exception) -> Problem | None:
    """The problem that an error is to the caller; None for an unexpected error."""
    if isinstance(error, Problem):
        return error
    return problem_of(error) if isinstance(error, DomainError) else None


def code_of(problem: Problem, error: Exception) -> grpc.StatusCode:
    """Status code of a problem.

    A full queue or memory and a message above the limit are RESOURCE_EXHAUSTED; 503 is UNAVAILABLE otherwise, and 413
    INVALID_ARGUMENT.

    Args:
        problem: the problem.
        error: error that it was made from.
    """
    return _CODES[429 if isinstance(error, QueueFull | MemoryFull | MessageTooLarge) else problem.status]
