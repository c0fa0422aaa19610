"""Polygons merged as in layout tools, and folded into a periodic cell. Needs gdstk, which is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEP = 2.0**-20  # of a pixel: grid on which polygons are merged
_GROUP = 256  # polygons that are merged at once: the effort grows with the square of how many overlap
_MOST_CROSSINGS = 10_000  # of a polygon with itself


def import_gdstk() -> Any:
    """gdstk, imported only when needed; an ImportError says how to install it."""
    try:
        return importlib.import_module("gdstk")
    except ImportError as error:
        raise ImportError("layouts need gdstk: pip install gdstk", name="gdstk") from error


def merged(polygons: Sequence[Floats], path: Path) -> list[Floats]:
    """The union of polygons, in pixels, as polygons that do not overlap.

    What a polygon winds around, in whichever direction and however often, is inside of it, as in KLayout. So each one is made
    simple first: together, loops of opposite directions would cancel.

    Args:
        polygons: corners (corners, 2) of each.
        path: path of their file, for messages.

    Raises:
        ValueError: a polygon crosses itself very often.
    """
    distinct = list(
        {points.tobytes(): points for points in (np.rint(one / _STEP) * _STEP for one in polygons)}.values()
    )
    simple: list[Floats] = []
    for points in distinct:
        parts = _union([points]) if len(points) > 3 else [points]
        if sum(map(len, parts)) > 2 * len(points) + _MOST_CROSSINGS:
            raise ValueError(
                f"{path}: a polygon of {len(points)} corners crosses itself more than {_MOST_CROSSINGS} times"
            )
        simple += parts
    if len(distinct) == 1:
        return simple
    while len(simple) > _GROUP:
        before = len(simple)
        simple = [part for k in range(0, before, _GROUP) for part in _union(simple[k : k + _GROUP])]
        if len(simple) > before / 2:
            break
    return _union(simple)


def _union(polygons: list[Floats]) -> list[Floats]:
    return _points(import_gdstk().boolean(_polygons(polygons), [], "or", precision=_STEP))


def folded(polygons: list[Floats], pixels: int) -> list[Floats]:
    """What polygons cover of the cell, in pixels, where what reaches over an edge continues on the other side."""
    cell = import_gdstk().rectangle((0, 0), (pixels, pixels))
    copies, over = [], False
    for polygon in polygons:
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        if (low >= 0).all() and (high <= pixels).all():
            copies.append(polygon)
            continue
        over = True
        for shift in product((-2, -1, 0, 1, 2), repeat=2):
            moved = np.array(shift, float) * pixels
            if (low + moved < pixels).all() and (high + moved > 0).all():
                copies.append(polygon + moved)
    if not over:
        return copies
    return _points(import_gdstk().boolean(_polygons(copies), cell, "and", precision=_STEP))


def _polygons(polygons: Sequence[Floats]) -> list[Any]:
    return [import_gdstk().Polygon(points) for points in polygons]


def _points(polygons: Sequence[Any]) -> list[Floats]:
    return [np.asarray(polygon.points) for polygon in polygons]
