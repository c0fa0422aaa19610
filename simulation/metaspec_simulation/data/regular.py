"""Regular binary structures: gratings, chequerboards, films, crosses, rings and letters.

Random fields and random shapes are never as regular as what an engineer draws, and a network that has seen nothing regular errs
most there. All widths are in pixels. Solid and void are interchanged half of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.structures import PIXELS, Structure

THINNEST = 3
"""Smallest width of a line, a gap or a stroke in pixels; 3 pixels of the default period are 47 nm."""

Generator = np.random.Generator
Floats = NDArray[np.float64]
Shape = Callable[[Generator, Floats, Floats, float], NDArray[np.bool_]]
"""A shape from a random number generator, coordinates y (128, 1) and x (1, 128) from its centre, and its size in pixels."""

_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, -1))  # rows and columns, across the lines of a grating


def gratings(rng: Generator) -> Structure:
    """Lines along x, y or a diagonal: equal and evenly spaced, or of random widths."""
    rows, columns = _DIRECTIONS[rng.choice(len(_DIRECTIONS), p=(0.25, 0.25, 0.15, 0.15, 0.1, 0.1))]
    axis = np.arange(PIXELS)
    # A width along this position is hypot(rows, columns) times the width across the lines.
    position = (rows * axis[:, None] + columns * axis) % PIXELS
    return _stripes(rng, int(np.ceil(THINNEST * np.hypot(rows, columns))), rng.uniform(0, 1))[position].astype(np.uint8)


def chequerboards(rng: Generator) -> Structure:
    """Squares or rectangles that touch at their corners, all equal or of random sizes."""
    fill = 0.5 if rng.random() < 0.5 else rng.uniform(0.1, 0.9)
    rows = _stripes(rng, THINNEST, fill)
    columns = rows if rng.random() < 0.2 else _stripes(rng, THINNEST, fill)
    return _either(rng, rows[:, None] ^ columns)


def films(rng: Generator) -> Structure:
    """A full or an empty cell with a few small pillars, holes or bars; rarely without any."""
    features = int(rng.integers(1, 5)) if rng.random() < 0.96 else 0
    return _either(rng, _union(rng, _few_features, features, smallest=4, largest=25))


def crosses(rng: Generator) -> Structure:
    """Crosses with arms along x and y, on a lattice or anywhere."""
    return _either(rng, _placed(rng, _cross))


def rings(rng: Generator) -> Structure:
    """Rings, round or square, on a lattice or anywhere."""
    return _either(rng, _placed(rng, _ring))


def letters(rng: Generator) -> Structure:
    """Letters in four orientations, on a lattice or anywhere."""
    return _either(rng, _placed(rng, _letter))


REGULAR: dict[str, Callable[[Generator], Structure]] = {
    draw.__name__: draw for draw in (gratings, chequerboards, films, crosses, rings, letters)
}
"""Families of regular structures, by name."""


def _stripes(rng: Generator, thinnest: int, fill: float) -> NDArray[np.bool_]:
    """Solid and void in turn along an axis, bool (128,): equal lines half of the time, none narrower than `thinnest`."""
    most = PIXELS // (2 * thinnest)
    axis = (np.arange(PIXELS) + rng.integers(PIXELS)) % PIXELS
    lines = int(np.exp(rng.uniform(0, np.log(most + 1))))
    if rng.random() < 0.5:
        width = np.clip(fill * PIXELS, lines * thinnest, PIXELS - lines * thinnest)
        return np.asarray(axis * lines % PIXELS < width)
    slack = PIXELS - 2 * lines * thinnest
    solid, void = (thinnest + share * slack * rng.dirichlet(np.ones(lines)) for share in (fill, 1 - fill))
    edges = np.cumsum(np.stack([solid, void], axis=1))
    return np.searchsorted(np.rint(edges), axis, side="right") % 2 == 0


def _few_features(rng: Generator, y: Floats, x: Floats, size: float) -> NDArray[np.bool_]:
    """A bar across the cell, a box or an ellipse."""
    kind, other = rng.choice(["bar", "box", "ellipse"], p=(0.2, 0.4, 0.4)), rng.uniform(4, 25)
    if rng.random() < 0.5:
        y, x = x, y
    if kind == "bar":
        return np.abs(y + 0 * x) < size / 2
    if kind == "box":
        return (np.abs(y) < size / 2) & (np.abs(x) < other / 2)
    return np.hypot(2 * y / size, 2 * x / other) < 1


def _cross(rng: Generator, y: Floats, x: Floats, size: float) -> NDArray[np.bool_]:
    widths = rng.uniform(THINNEST, max(size / 2, THINNEST + 1), size=2)
    lengths = size * rng.uniform(0.5, 1, size=2)
    along_y = (2 * np.abs(x) < widths[0]) & (2 * np.abs(y) < lengths[0])
    along_x = (2 * np.abs(y) < widths[1]) & (2 * np.abs(x) < lengths[1])
    return along_y | along_x


def _ring(rng: Generator, y: Floats, x: Floats, size: float) -> NDArray[np.bool_]:
    power = rng.choice([2, 2, 8])  # the superellipse of exponent 8 is a square with rounded corners
    width = rng.uniform(THINNEST, max(0.4 * size, THINNEST + 1))
    distance = (np.abs(y) ** power + np.abs(x) ** power) ** (1 / power)
    return (distance < size / 2) & (distance >= size / 2 - width)


def _letter(rng: Generator, y: Floats, x: Floats, size: float) -> NDArray[np.bool_]:
    strokes = _LETTERS[rng.choice(list(_LETTERS))]
    width = rng.uniform(THINNEST, max(0.2 * size, THINNEST + 1))
    for _ in range(rng.integers(4)):
        y, x = x, -y
    points = [((np.array(stroke) / (6, 4) - 0.5) * (size - width, 0.7 * size - width)) for stroke in strokes]
    distances = [_distance(y, x, *ends) for line in points for ends in pairwise(line)]
    return np.min(distances, axis=0) < width / 2


_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(6, 0), (0, 2), (6, 4)], [(4, 0.7), (4, 3.3)]],
    "B": [[(0, 0), (0, 3), (1, 4), (2, 4), (3, 3), (4, 4), (5, 4), (6, 3), (6, 0), (0, 0)], [(3, 0), (3, 3)]],
    "E": [[(0, 4), (0, 0), (6, 0), (6, 4)], [(3, 0), (3, 3)]],
    "F": [[(0, 4), (0, 0), (6, 0)], [(3, 0), (3, 3)]],
    "G": [[(1, 4), (0, 3), (0, 1), (1, 0), (5, 0), (6, 1), (6, 3), (5, 4), (3, 4), (3, 2)]],
    "H": [[(0, 0), (6, 0)], [(0, 4), (6, 4)], [(3, 0), (3, 4)]],
    "K": [[(0, 0), (6, 0)], [(0, 4), (3, 0), (6, 4)]],
    "L": [[(0, 0), (6, 0), (6, 4)]],
    "M": [[(6, 0), (0, 0), (4, 2), (0, 4), (6, 4)]],
    "N": [[(6, 0), (0, 0), (6, 4), (0, 4)]],
    "P": [[(6, 0), (0, 0), (0, 3), (1, 4), (2, 4), (3, 3), (3, 0)]],
    "R": [[(6, 0), (0, 0), (0, 3), (1, 4), (2, 4), (3, 3), (3, 0)], [(3, 1.5), (6, 4)]],
    "S": [[(1, 4), (0, 3), (0, 1), (1, 0), (2, 0), (3, 1), (3, 3), (4, 4), (5, 4), (6, 3), (6, 1), (5, 0)]],
    "T": [[(0, 0), (0, 4)], [(0, 2), (6, 2)]],
    "U": [[(0, 0), (5, 0), (6, 1), (6, 3), (5, 4), (0, 4)]],
    "Y": [[(0, 0), (3, 2), (0, 4)], [(3, 2), (6, 2)]],
    "Z": [[(0, 0), (0, 4), (6, 0), (6, 4)]],
}
"""Strokes of letters, as points (row, column) on a raster of 6 x 4."""


def _distance(y: Floats, x: Floats, start: Floats, stop: Floats) -> Floats:
    """Distance of every pixel from a line segment, (128, 128)."""
    (y0, x0), (dy, dx) = start, stop - start
    along = np.clip(((y - y0) * dy + (x - x0) * dx) / (dy**2 + dx**2), 0, 1)
    distance: Floats = np.hypot(y - y0 - along * dy, x - x0 - along * dx)
    return distance


def _placed(rng: Generator, draw: Shape) -> NDArray[np.bool_]:
    """One shape on a square lattice, or different ones at random places."""
    if rng.random() < 0.6:
        return _union(rng, draw, int(rng.integers(1, 7)), smallest=16, largest=100)
    period = PIXELS / rng.choice([1, 2, 3, 4, 6], p=(0.3, 0.3, 0.15, 0.15, 0.1))
    shape = draw(rng, *_axes(), rng.uniform(0.6, 1) * period)
    places = np.rint(np.arange(0, PIXELS, period)).astype(int)
    return np.logical_or.reduce([np.roll(shape, (row, column), axis=(0, 1)) for row in places for column in places])


def _union(rng: Generator, draw: Shape, count: int, smallest: float, largest: float) -> NDArray[np.bool_]:
    """A union of shapes of random sizes at random places."""
    structure = np.zeros((PIXELS, PIXELS), bool)
    for _ in range(count):
        shape = draw(rng, *_axes(), rng.uniform(smallest, largest))
        structure |= np.roll(shape, rng.integers(PIXELS, size=2).tolist(), axis=(0, 1))
    return structure


def _axes() -> tuple[Floats, Floats]:
    axis = np.arange(PIXELS, dtype=np.float64) - (PIXELS - 1) / 2
    return axis[:, None], axis[None, :]


def _either(rng: Generator, structure: NDArray[np.bool_]) -> Structure:
    """The structure, or half of the time its inverse."""
    return (structure ^ bool(rng.random() < 0.5)).astype(np.uint8)
