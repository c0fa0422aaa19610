"""Bodies of requests: one JSON object."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from metaspec._jobs.problems import Problem

_LARGEST = 64 << 10  # bytes


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object that is the body of a request.

    Raises:
        Problem: 415 for another content type, which a form of another origin could send; 413 for a body that is too large, as
            soon as it is; 400 for what is not JSON, or names a field twice; 422 for another value than an object.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, f"expected Content-Type application/json, got {kind!r:.60}", "Content-Type")
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _LARGEST:
            detail = f"expected a body of at most {_LARGEST} bytes, got more"
            raise Problem(413, detail, headers={"Connection": "close"})
    try:
        document = json.loads(content, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Problem(422, f"the body: expected a JSON object, got a value of type {type(document).__name__}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r:.60} comes twice")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
