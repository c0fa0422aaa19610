"""One-line messages from pydantic errors: the field, what was expected, what came."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

_NAMED = {"missing", "extra_forbidden", "json_invalid"}  # types whose message is complete without the value
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_LONGEST = 60  # characters shown of a value


def first_error(error: ValidationError) -> str:
    """Message of the first problem in a document: "designs.0.rank: Input should be a valid integer, got 'best'".

    The field is left out where the message already begins with it.
    """
    found = error.errors(include_url=False)[0]
    field, message = ".".join(map(str, found["loc"])), reason(found)
    line = message if re.match(rf"{re.escape(field)}\b", message) else f"{field}: {message}"
    return _CONTROL.sub(lambda character: repr(character[0])[1:-1], line)  # a document cannot forge a second line


def reason(found: Mapping[str, Any]) -> str:
    """Message of one of pydantic's `errors()`, without its field: "Input should be a valid integer, got 'best'"."""
    message: str = "unknown field" if found["type"] == "extra_forbidden" else found["msg"]
    if found["type"] in ("value_error", "assertion_error"):
        return re.sub("^(Value|Assertion) error, ", "", message)
    return message if found["type"] in _NAMED else message + _got(found["input"])


def _got(value: object) -> str:
    """Text for the value that came: a scalar itself, the type of anything else."""
    if value is None or isinstance(value, (str, float, bool)) or (isinstance(value, int) and abs(value) < 1e18):
        text = repr(value)
        return f", got {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
    return f", got a value of type {type(value).__name__}"
