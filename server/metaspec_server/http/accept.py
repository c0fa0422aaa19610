"""Weights in the headers Accept and Accept-Encoding (RFC 9110, 12.4.2)."""

from __future__ import annotations

import re

__all__ = ["weights"]

_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def weights(header: str) -> dict[str, float]:
    """Weight of each name in a header, in lower case: 1 by default, 0 where it is not a weight.

    Args:
        header: value of the header; empty if there is none.
    """
    found: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        text = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        found[name] = float(text) if _WEIGHT.fullmatch(text) else 0.0
    return found
