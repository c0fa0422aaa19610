"""Closed loops in the plane: the boundaries of pixels, and polygons with holes as single outlines, as GDSII needs them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Loop = NDArray[np.float64]
"""Corners (corners, 2) as x and y, y upwards: counter-clockwise around solid, clockwise around a hole."""

_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # right, up, left, down


def boundaries(solid: NDArray[np.uint8]) -> list[Loop]:
    """Boundaries of the solid pixels of one cell, with a corner at every corner of a pixel on them, in pixels.

    Solid pixels that touch at a corner only are apart. What touches the edge of the cell ends there.

    Args:
        solid: binary structure (rows, columns), row 0 at the top.
    """
    up = np.pad(solid[::-1].astype(bool), 1)
    rows, columns = up.shape[0] - 1, up.shape[1] - 1  # corners of pixels along each side
    below, above = up[:-1, :], up[1:, :]
    left, right = up[:, :-1], up[:, 1:]
    # Edges with solid on their left, by direction and starting corner.
    edge = np.zeros((4, rows, columns), bool)
    edge[0, :, :-1] = (above & ~below)[:, 1:-1]
    edge[2, :, 1:] = (below & ~above)[:, 1:-1]
    edge[1, :-1, :] = (left & ~right)[1:-1]
    edge[3, 1:, :] = (right & ~left)[1:-1]
    direction, row, column = np.nonzero(edge)
    end_row, end_column = row + _STEPS[direction, 1], column + _STEPS[direction, 0]
    number = np.full(edge.shape, -1)
    number[edge] = np.arange(len(row))
    # At the end of an edge, the sharpest turn to the left stays with the same pixel.
    options = [number[(direction + turn) % 4, end_row, end_column] for turn in (1, 0, -1)]
    following = np.select([option >= 0 for option in options], options).tolist()
    corners = np.column_stack([column, row]).astype(float)
    return [corners[cycle] for cycle in _cycles(following)]


def _cycles(following: list[int]) -> list[list[int]]:
    """Cycles of a permutation."""
    seen = bytearray(len(following))
    cycles = []
    for first in range(len(following)):
        cycle = []
        while not seen[first]:
            seen[first] = 1
            cycle.append(first)
            first = following[first]
        if cycle:
            cycles.append(cycle)
    return cycles


def bridges(loops: Sequence[Loop]) -> NDArray[np.intp]:
    """For each hole a corner of it, and the corner to the left of that on the same grid line, of another loop.

    Nothing lies between the two: a cut there links the hole to what surrounds it. Each hole is linked to something farther
    left, so that all end at the outline of their polygon.

    Args:
        loops: loops of polygons that do not overlap, with a corner wherever they cross a line of whole y.

    Returns:
        (holes, 2): numbers of the two corners, counted through all loops; the one of the hole first.
    """
    corners = np.concatenate(loops)
    loop = np.repeat(np.arange(len(loops)), [len(one) for one in loops])
    on_line = np.flatnonzero(corners[:, 1] == np.rint(corners[:, 1]))
    order = on_line[np.lexsort((corners[on_line, 0], corners[on_line, 1]))]
    place = np.empty(len(corners), np.intp)
    place[order] = np.arange(len(order))
    hole = np.array([signed_area(one) < 0 for one in loops])
    inner = on_line[hole[loop[on_line]]]
    leftmost = inner[np.lexsort((corners[inner, 1], corners[inner, 0], loop[inner]))]
    leftmost = leftmost[np.unique(loop[leftmost], return_index=True)[1]]
    return np.column_stack([leftmost, order[place[leftmost] - 1]])


def linked(loops: Sequence[Loop], cuts: NDArray[np.intp]) -> list[Loop]:
    """Polygons whose holes are linked to their outlines by cuts.

    Args:
        loops: loops of polygons, outlines and holes.
        cuts: pairs of corners as from `bridges`.
    """
    corners = np.concatenate(loops)
    sizes = [len(one) for one in loops]
    starts = np.cumsum(sizes) - sizes
    following = np.concatenate(
        [start + np.roll(np.arange(size), -1) for start, size in zip(starts, sizes, strict=True)]
    )
    preceding = np.argsort(following)
    ahead, point = following.tolist(), list(range(len(corners)))
    last = preceding.tolist()  # the corner before each, or before the copy of it where its loop ends
    for inner, outer in cuts.tolist():
        # Along the loop of the outer corner, then the cut, around the hole, and back along the cut.
        back, out = len(ahead), len(ahead) + 1
        ahead += [out, ahead[outer]]
        point += [inner, outer]
        ahead[last[inner]] = back
        last[ahead[out]] = out
        ahead[outer] = inner
        last += [last[inner], back]
        last[inner] = outer
    return [corners[[point[node] for node in cycle]] for cycle in _cycles(ahead)]


def signed_area(loop: Loop) -> float:
    """Area of a loop, negative for a hole."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def without_straight_corners(loop: Loop) -> Loop:
    """A loop without repeated corners, and without corners between edges of the same direction."""
    loop = loop[(loop != np.roll(loop, 1, axis=0)).any(axis=1)]
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    bent: Loop = loop[(turn != 0) | ((before * after).sum(axis=1) <= 0)]
    return bent


def simplified(loop: Loop, tolerance: float, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which corners of a loop to keep, so that no other one is farther from the new loop than a tolerance.

    D. Douglas and T. Peucker, Cartographica 10, 112 (1973).

    Args:
        loop: the loop.
        tolerance: largest distance, in units of the corners.
        kept: corners that must stay.
    """
    first = int(np.argmax(kept)) if kept.any() else 0
    turned = np.roll(loop, -first, axis=0)
    closed = np.concatenate([turned, turned[:1]])
    keep = np.append(np.roll(kept, -first), True)
    keep[0] = True
    if keep.sum() < 3:
        keep[int(((closed - closed[0]) ** 2).sum(axis=1).argmax())] = True
    fixed = np.flatnonzero(keep).tolist()
    pending = list(pairwise(fixed))
    while pending:
        start, end = pending.pop()
        if end - start < 2:
            continue
        along = closed[end] - closed[start]
        away = closed[start + 1 : end] - closed[start]
        length = float(np.hypot(*along))
        distance = np.abs(away[:, 0] * along[1] - away[:, 1] * along[0]) / length if length else np.hypot(*away.T)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = start + 1 + farthest
            keep[middle] = True
            pending += [(start, middle), (middle, end)]
    return np.roll(keep[:-1], first)
