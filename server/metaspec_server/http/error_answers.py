"""Answers to the exceptions that end a request: one place for the routes of FastAPI and those that are answered before it."""

from __future__ import annotations

from typing import get_args

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from metaspec_server.http.problems import DomainError, Problem, problem_of

__all__ = ["EXPECTED", "answer_to"]

EXPECTED = (Problem, *get_args(DomainError), ClientDisconnect)
"""Exceptions by which a route ends a request on purpose. Any other one is a fault of the server."""


def answer_to(error: Exception, path: str) -> JSONResponse:
    """The answer to a request for a path that has ended with an exception; status 500 if it is none of `EXPECTED`."""
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, DomainError):
        problem = problem_of(error)
    elif isinstance(error, ClientDisconnect):
        problem = Problem(400, "the connection was closed before the body was complete")
    else:
        # uvicorn closes the connection after an exception: the caller is told.
        detail = "an unexpected error; the server's log has the traceback"
        problem = Problem(500, detail, headers={"Connection": "close"})
    return problem.response_for(path)
