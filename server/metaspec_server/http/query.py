"""Queries: a name that a route does not know, a value given twice, or a number in another form than JSON's is refused."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated, TypeAlias

from fastapi import Request
from pydantic import BeforeValidator

from metaspec_server.http.problems import Problem

__all__ = ["NUMBER", "Number", "check_query", "knows_query", "spelled", "unknown_name"]

NUMBER = r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
"""Regular expression of a number in a query."""

_LONGEST = 60  # characters of a name in a message


def spelled(pattern: str, expected: str) -> BeforeValidator:
    """Check how a number in a query is spelled: pydantic alone takes `1.0`, `+1`, ` 1` and `0_1` for 1.

    Args:
        pattern: regular expression of the spellings.
        expected: description of them.
    """

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, got {value[:60]!r}")
        return value

    return BeforeValidator(check)


Number: TypeAlias = Annotated[float, spelled(NUMBER, "a number")]
"""A number in a query."""


def knows_query(
    *names: str, repeated: Collection[str] = (), others: bool = False
) -> Callable[[Request], Awaitable[None]]:
    """Dependency of routes that take only these names in the query.

    Args:
        *names: names that may be given once.
        repeated: names that may be given several times.
        others: whether other names may be given, once, because the route checks them itself: they depend on the model.
    """

    async def check(request: Request) -> None:  # not in a thread of FastAPI's
        check_query(request, names, repeated, others)

    return check


def check_query(
    request: Request, names: Collection[str] = (), repeated: Collection[str] = (), others: bool = False
) -> None:
    """Check the names in the query of a request; see `knows_query`.

    Raises:
        Problem: an unknown name, or one that is given twice; 400 below `/v2`, otherwise 422.
    """
    if not request.scope["query_string"]:  # without parsing the URL
        return
    known, seen = sorted({*names, *repeated}), set()
    status = 400 if request.url.path.startswith("/v2") else 422
    for name, _ in request.query_params.multi_items():
        if name not in known and not others:
            raise unknown_name(status, name, known)
        if name in seen and name not in repeated:
            raise Problem(status, f"{name[:_LONGEST]}: given twice in the query, expected once", field=name[:_LONGEST])
        seen.add(name)


def unknown_name(status: int, name: str, known: Sequence[str], why: str = "") -> Problem:
    """The problem of a name that a route does not know.

    Args:
        status: HTTP status.
        name: the name.
        known: names that the route knows.
        why: what else could have been known, and is not, as it continues the sentence.
    """
    names = f"known are {', '.join(known)}" if known else "this route takes none"
    return Problem(status, f"{name[:_LONGEST]}: unknown name in the query; {names}{why}", field=name[:_LONGEST])
