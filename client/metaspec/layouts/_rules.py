"""Width and spacing of layouts by KLayout's design rule check. Needs klayout."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._extras import missing_extra
from metaspec.layouts._writing import solid_outlines
from metaspec_contract.layout_writing import Outlines
from metaspec_contract.process import Process

_PERIOD_UM = Process().period_um
_FIRST_NM, _LARGEST_NM = 32, 512


class Rules(NamedTuple):
    """The largest whole numbers of nm that KLayout's checks find no violation of.

    Attributes:
        width_nm: width of the solid.
        space_nm: space between solid, the width of the void.
    """

    width_nm: int
    space_nm: int


def largest_rules(
    structure: ArrayLike,
    *,
    period_um: float = _PERIOD_UM,
    unit_nm: float | None = None,
    tolerance_nm: float | None = None,
) -> Rules:
    """The largest width and space rules that the layout of a structure passes in KLayout, in a periodic array.

    They are Euclidian checks as in KLayout's scripts, `width(d, euclidian)` and `space(d, euclidian)` with the default angle
    limit of 90 degrees: no two edges that face each other may be closer than d, their ends and corners included. That is
    stricter than `metaspec.topology.feature_size`: steps of single pixels count, and a disc passes for .71 of its diameter
    only, since edges on it that face each other at a right angle are that close.

    Args and errors are those of `metaspec.layouts.write_gds`.

    Returns:
        At most 512 nm and half of the period each.
    """
    return outline_rules(solid_outlines(structure, period_um, unit_nm, tolerance_nm))


def outline_rules(outlines: Outlines) -> Rules:
    """The largest rules that the outlines of a structure pass; see `largest_rules`."""
    kdb = import_klayout()
    loops, unit_nm, period_nm = outlines.loops, 1000 * outlines.unit_um, 1000 * outlines.period_um
    # To 1 pm: on a coarse grid, rules would be rounded to it before they are checked.
    scale = max(1, round(1000 * unit_nm))
    unit_nm /= scale
    period = round(period_nm / unit_nm)
    most = min(_LARGEST_NM, math.floor(period_nm / 2))
    cell = kdb.Region([kdb.Polygon([kdb.Point(scale * int(x), scale * int(y)) for x, y in loop]) for loop in loops])
    tiled = kdb.Region()
    for x in (-period, 0, period):
        for y in (-period, 0, period):
            tiled += cell.moved(x, y)

    @cache
    def around(margin_nm: int) -> Any:
        """The middle cell with a margin of its neighbours, merged."""
        margin = math.ceil(margin_nm / unit_nm)
        return (tiled & kdb.Region(kdb.Box(-margin, -margin, period + margin, period + margin))).merged()

    middle = kdb.Box(0, 0, period, period)

    def violations(check: str, rule_nm: int) -> list[float]:
        """Distances of the pairs of edges that are closer than a rule in the middle cell."""
        margin_nm = 2 ** math.ceil(math.log2(rule_nm)) + 1
        pairs = getattr(around(margin_nm), check)(
            round(rule_nm / unit_nm), False, kdb.Region.Euclidian, None, None, None
        )
        return [_distance(pair) * unit_nm for pair in pairs.each() if middle.contains(pair.bbox().center())]

    return Rules(*(_largest(partial(violations, check), most) for check in ("width_check", "space_check")))


def _largest(violations: Callable[[int], list[float]], most: int) -> int:
    """The largest rule without violations."""
    rule = min(_FIRST_NM, most)
    while not (found := violations(rule)):
        if rule == most:
            return most
        rule = min(2 * rule, most)
    rule = min(math.floor(min(found)) + 1, rule)
    while rule and violations(rule):  # the ends of the pairs are rounded
        rule -= 1
    return rule


def _distance(pair: Any) -> float:
    """Smallest distance of the two edges of a pair."""
    edges = [np.array([[edge.x1, edge.y1], [edge.x2, edge.y2]], float) for edge in (pair.first, pair.second)]
    distances = []
    for (start, end), others in zip(edges, edges[::-1], strict=True):
        along = end - start
        length = along @ along
        for point in others:
            share = np.clip((point - start) @ along / length, 0, 1) if length else 0.0
            distances.append(float(np.hypot(*(start + share * along - point))))
    return min(distances)


def import_klayout() -> Any:
    """KLayout's database, imported only when needed.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import klayout.db
    except ImportError as error:
        raise missing_extra("design rule checks need", "klayout", "drc") from error
    module: Any = klayout.db
    return module
