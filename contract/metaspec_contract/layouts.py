"""GDSII layouts as densities. Needs gdstk, which is imported only when a layout is read.

y of a layout points upwards and rows of a structure count downwards: a layout viewer shows a cell just as pictures of
structures do, with detector R at the top left.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.area import polygon_density
from metaspec_contract.process import Process

Floats = NDArray[np.float64]
Layer = tuple[int, int]

SOLID_LAYER: Layer = (1, 0)
"""Layer and datatype of the solid in layouts that we write."""

OUTLINE_LAYER: Layer = (100, 0)
"""Layer and datatype of the unit cell's outline in layouts that we write."""

_END_OF_LIBRARY = b"\x00\x04\x04\x00"  # the last record of a GDSII stream
_CELL_NAME, _REFERENCE_NAME = b"\x06\x06", b"\x12\x06"  # kinds of records
_MOST_POLYGONS = 200_000
_DEEPEST = 50  # levels of references


_LARGEST_NUMBER = 2**15 - 1  # of a layer or datatype in GDSII


def parse_layer(text: str, option: str) -> Layer:
    """Layer and datatype from "LAYER/DATATYPE".

    Args:
        text: value of an option.
        option: name of the option, for messages.

    Raises:
        ValueError: not two integers that GDSII can hold.
    """
    layer, _, datatype = text.partition("/")
    try:
        numbers = int(layer), int(datatype)
    except ValueError:
        raise ValueError(f"{option} must be two integers, LAYER/DATATYPE, got {text!r}") from None
    check_layer(numbers)
    return numbers


def check_layer(layer: Layer) -> None:
    """Raise ValueError unless layer and datatype are within the 16-bit integers of GDSII."""
    if not all(0 <= number <= _LARGEST_NUMBER for number in layer):
        raise ValueError(f"layer and datatype must lie between 0 and {_LARGEST_NUMBER}, got {layer[0]}/{layer[1]}")


@dataclass(frozen=True)
class Layout:
    """The solid of one cell of a layout, references resolved; lengths in um.

    Attributes:
        path: file that it is from.
        cell: name of the cell.
        polygons: corners of the solid, each (corners, 2) as x and y.
        outlines: distinct outlines of unit cells, (left, bottom, right, top) each; none where the layout has no such layer.
        pitches: distances in x and y of arrays of unit cells, of which one cell was taken.
        precision_um: database unit in um.
    """

    path: Path
    cell: str
    polygons: list[Floats]
    outlines: list[tuple[float, float, float, float]]
    pitches: list[tuple[float, float]]
    precision_um: float

    def density(self, process: Process, origin_um: tuple[float, float] | None = None) -> Floats:
        """Share of each pixel that is solid, (y, x).

        Args:
            process: process whose period the layout must have.
            origin_um: lower left corner of the unit cell in um. By default that of the outline; without one, the origin or,
                where the solid lies around that, half a period to its left and below it.

        Raises:
            ValueError: the layout has another period, or more than one unit cell.
        """
        period = process.period_um
        tolerance = max(self.precision_um, 1e-6 * period)
        sizes = [(right - left, top - bottom) for left, bottom, right, top in self.outlines]
        for what, (x, y) in [("pitch of the array", one) for one in self.pitches] + [("outline", one) for one in sizes]:
            if max(abs(x - period), abs(y - period)) > tolerance:
                raise ValueError(f"{self.path}: the {what} is {x:.6g} x {y:.6g} um, but the period is {period:g} um")
        if len(self.outlines) > 1 and origin_um is None:
            raise ValueError(
                f"{self.path}: cell {self.cell} has {len(self.outlines)} outlines of unit cells: name the unit cell"
            )
        corner = self._corner(period, tolerance) if origin_um is None else np.array(origin_um, float)
        return polygon_density([polygon - corner for polygon in self.polygons], period, process.pixels)

    def _corner(self, period: float, tolerance: float) -> Floats:
        if self.outlines:
            return np.array(self.outlines[0][:2])
        corners = np.concatenate(self.polygons)
        low, high = corners.min(axis=0), corners.max(axis=0)
        for corner in (0.0, -period / 2):
            if (low >= corner - tolerance).all() and (high <= corner + period + tolerance).all():
                return np.array([corner, corner])
        raise ValueError(
            f"{self.path}: the solid of cell {self.cell} reaches from ({low[0]:.6g}, {low[1]:.6g}) to ({high[0]:.6g}, "
            f"{high[1]:.6g}) um, which is no period of {period:g} um from or around the origin: name the unit cell, or "
            f"draw its outline in layer {OUTLINE_LAYER[0]}/{OUTLINE_LAYER[1]}"
        )


def read_layout(
    path: Path, *, cell: str | None = None, layer: Layer = SOLID_LAYER, outline: Layer = OUTLINE_LAYER
) -> Layout:
    """Read one cell of a GDSII file: polygons, boxes and paths, through rotated, reflected and magnified references.

    Args:
        path: path of the file.
        cell: name of the cell; by default the only one that no other cell refers to.
        layer: layer and datatype of the solid.
        outline: layer and datatype of outlines of the unit cell.

    Raises:
        ValueError: the file is missing, damaged or not GDSII, has no such cell, or nothing in the layer.
        ImportError: gdstk is not installed.
    """
    _check_stream(path)
    library = _gdstk().read_gds(path, unit=1e-6)
    chosen = _cell(path, library, cell)
    reader = _Reader(path, outline)
    found = list(reader.polygons(chosen))
    solid = [points for points, number in found if number == layer]
    boxes = [(*points.min(axis=0), *points.max(axis=0)) for points, number in found if number == outline]
    others = sorted({number for _, number in found} - {layer, outline})
    if not solid and (others or not boxes):
        layers = ", ".join(f"{number[0]}/{number[1]}" for number in others) or "none"
        raise ValueError(
            f"{path}: cell {chosen.name} has nothing in layer {layer[0]}/{layer[1]}; layers with polygons: {layers}"
        )
    precision_um = float(library.precision) * 1e6
    distinct = {tuple(round(value / precision_um) for value in box): box for box in boxes}
    return Layout(path, chosen.name, solid, list(distinct.values()), reader.pitches, precision_um)


def _gdstk() -> Any:
    try:
        return importlib.import_module("gdstk")
    except ImportError as error:
        raise ImportError("layouts need gdstk: pip install gdstk", name="gdstk") from error


def _check_stream(path: Path) -> None:
    """Refuse what is not a whole GDSII stream, of which gdstk would complain on standard error."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if content[2:4] != b"\x00\x02":  # the header, which states the version
        raise ValueError(f"{path} is not a GDSII file: it does not begin with a header")
    place, record = 0, b""
    names: dict[bytes, set[bytes]] = {_CELL_NAME: set(), _REFERENCE_NAME: set()}
    while record != _END_OF_LIBRARY:
        length = int.from_bytes(content[place : place + 2], "big")
        record = content[place : place + 4]
        if length < 4 or place + length > len(content):
            raise ValueError(f"{path} is a damaged GDSII file: it ends, or has no record, at byte {place}")
        if record[2:] in names:
            names[record[2:]].add(content[place + 4 : place + length].rstrip(b"\0"))
        place += length
    if missing := names[_REFERENCE_NAME] - names[_CELL_NAME]:
        name = min(missing).decode("ascii", "replace")
        raise ValueError(f"{path} refers to cell {name}, which is not in the file")


def _cell(path: Path, library: Any, name: str | None) -> Any:
    """The cell of a name, or the only top cell."""
    cells = {one.name: one for one in library.cells}
    if name is not None:
        if name not in cells:
            raise ValueError(f"{path} has no cell {name!r}, only {', '.join(sorted(cells)) or 'none'}")
        return cells[name]
    top = sorted(one.name for one in library.top_level())
    if len(top) != 1:
        raise ValueError(f"{path} must have one top cell, got {', '.join(top) or 'none'}: name the cell")
    return cells[top[0]]


class _Reader:
    """Polygons of a cell and of what it refers to.

    Args:
        path: path of the file, for messages.
        outline: layer and datatype of outlines of the unit cell.

    Attributes:
        pitches: distances in x and y of arrays of unit cells.
    """

    def __init__(self, path: Path, outline: Layer) -> None:
        self._path, self._outline = path, outline
        self.pitches: list[tuple[float, float]] = []

    def polygons(self, cell: Any, depth: int = 0) -> Iterator[tuple[Floats, Layer]]:
        """Corners and layer of each polygon. Of an array of cells that have an outline, one is taken."""
        if depth > _DEEPEST:
            raise ValueError(f"{self._path}: cell {cell.name} refers to itself, or deeper than {_DEEPEST} levels")
        for polygon in (*cell.polygons, *(one for path in cell.paths for one in path.to_polygons())):
            yield polygon.points, (polygon.layer, polygon.datatype)
        count = 0
        for reference in cell.references:
            inner = [
                (_placed(points, reference), number) for points, number in self.polygons(reference.cell, depth + 1)
            ]
            offsets = reference.repetition.get_offsets() if reference.repetition.size else np.zeros((1, 2))
            if len(offsets) > 1 and any(number == self._outline for _, number in inner):
                self.pitches.append(_pitch(offsets))
                offsets = offsets[:1]
            count += len(inner) * len(offsets)
            if count > _MOST_POLYGONS:
                raise ValueError(
                    f"{self._path}: cell {cell.name} has more than {_MOST_POLYGONS} polygons: name the unit cell"
                )
            for offset in offsets:
                for points, number in inner:
                    yield points + offset, number


def _placed(points: Floats, reference: Any) -> Floats:
    """Corners after a reference's reflection, magnification, rotation and shift."""
    flip = -1.0 if reference.x_reflection else 1.0
    cosine, sine = np.cos(reference.rotation), np.sin(reference.rotation)
    turn = reference.magnification * np.array([[cosine, -sine * flip], [sine, cosine * flip]])
    placed: Floats = points @ turn.T + np.array(reference.origin)
    return placed


def _pitch(offsets: Floats) -> tuple[float, float]:
    """Smallest distances in x and y between the places of an array; of one row or column, the same in both."""
    steps = [np.diff(np.unique(offsets[:, axis].round(9))) for axis in (0, 1)]
    x, y = (float(step[step > 1e-6].min()) if (step > 1e-6).any() else None for step in steps)
    return (x or y or 0.0, y or x or 0.0)
