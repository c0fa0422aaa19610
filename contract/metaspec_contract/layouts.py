"""GDSII layouts as densities. Needs gdstk, which is imported only when a layout is read.

y of a layout points upwards and rows of a structure count downwards: a layout viewer shows a cell just as pictures of
structures do, with detector R at the top left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.area import polygon_density
from metaspec_contract.gdsii import Cell, Layer, Reference, parse_stream, read_stream
from metaspec_contract.merging import folded, import_gdstk, merged
from metaspec_contract.process import Process

Floats = NDArray[np.float64]

SOLID_LAYER: Layer = (1, 0)
"""Layer and datatype of the solid in layouts that we write."""

OUTLINE_LAYER: Layer = (100, 0)
"""Layer and datatype of the unit cell's outline in layouts that we write."""

_MOST_POLYGONS = 200_000
_DEEPEST = 50  # levels of references
_LARGEST_NUMBER = 2**15 - 1  # of a layer or datatype in GDSII
_ROUND_UM = 1e-4  # how far the polygon of a round end may be from its circle


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
    """Raise ValueError unless layer and datatype are non-negative 16-bit integers, as in GDSII."""
    if (
        not isinstance(layer, tuple | list)
        or len(layer) != 2
        or not all(isinstance(number, int | np.integer) for number in layer)
    ):
        raise ValueError(f"layer and datatype must be two integers, got {layer!r:.60}")
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
        arrays: steps of arrays of unit cells, of which one cell was taken: one or two vectors each, (1 or 2, 2).
        precision_um: database unit in um.
    """

    path: Path
    cell: str
    polygons: list[Floats]
    outlines: list[tuple[float, float, float, float]]
    arrays: list[Floats]
    precision_um: float

    def density(self, process: Process, origin_um: tuple[float, float] | None = None) -> Floats:
        """Share of each pixel that is solid, (y, x).

        Args:
            process: process whose period the layout must have.
            origin_um: lower left corner of the unit cell in um. By default that of the outline; without one, the origin or,
                where the solid lies around that, half a period to its left and below it.

        Raises:
            ValueError: the layout has another period, more than one unit cell, or solid that lies outside of the unit cell
                or reaches over its edge by more than a period.
        """
        if origin_um is not None and (np.shape(origin_um) != (2,) or not np.isfinite(origin_um).all()):
            raise ValueError(f"origin_um must be two finite numbers, got {origin_um!r:.60}")
        period = process.period_um
        tolerance = min(max(self.precision_um, 1e-6 * period), 0.5 * period / process.pixels)
        self._check_period(period, tolerance)
        if len(self.outlines) > 1 and origin_um is None:
            raise ValueError(
                f"{self.path}: cell {self.cell} has {len(self.outlines)} outlines of unit cells: name the unit cell"
            )
        corner = self._corner(period, tolerance) if origin_um is None else np.array(origin_um, float)
        self._check_reach(corner, period, tolerance)
        scale = process.pixels / period
        union = merged([(polygon - corner) * scale for polygon in self.polygons], self.path)
        self._check_inside(union, corner, 1 / scale, process.pixels, tolerance)
        return polygon_density(folded(union, process.pixels), process.pixels, process.pixels)

    def _check_period(self, period: float, tolerance: float) -> None:
        """Refuse arrays and outlines of another period."""
        sizes = []
        for steps in self.arrays:
            if not _spans(steps, period, tolerance):
                x, y = np.abs(steps).max(axis=0)
                if np.count_nonzero(np.abs(steps) > tolerance) > len(steps):
                    vectors = " and ".join(f"({step[0]:.6g}, {step[1]:.6g})" for step in steps)
                    raise ValueError(
                        f"{self.path}: the array has steps of {vectors} um, but the period is {period:g} um"
                    )
                sizes.append(("pitch of the array", (x, y) if len(steps) > 1 else (max(x, y),) * 2))
        sizes += [("outline", (right - left, top - bottom)) for left, bottom, right, top in self.outlines]
        for what, (x, y) in sizes:
            if max(abs(x - period), abs(y - period)) > tolerance:
                raise ValueError(f"{self.path}: the {what} is {x:.6g} x {y:.6g} um, but the period is {period:g} um")

    def _corner(self, period: float, tolerance: float) -> Floats:
        if self.outlines:
            return np.array(self.outlines[0][:2])
        low, high = _extent(self.polygons)
        for corner in (0.0, -period / 2):
            if (low >= corner - tolerance).all() and (high <= corner + period + tolerance).all():
                return np.array([corner, corner])
        raise ValueError(
            f"{self.path}: the solid of cell {self.cell} reaches from ({low[0]:.6g}, {low[1]:.6g}) to ({high[0]:.6g}, "
            f"{high[1]:.6g}) um, which is no period of {period:g} um from or around the origin: name the unit cell, or "
            f"draw its outline in layer {OUTLINE_LAYER[0]}/{OUTLINE_LAYER[1]}"
        )

    def _check_reach(self, corner: Floats, period: float, tolerance: float) -> None:
        """Refuse solid farther than a period from the unit cell."""
        if not self.polygons:
            return
        low, high = _extent(self.polygons)
        if (low < corner - period - tolerance).any() or (high > corner + 2 * period + tolerance).any():
            raise ValueError(
                f"{self.path}: the solid of cell {self.cell} reaches from ({low[0]:.6g}, {low[1]:.6g}) to ({high[0]:.6g}, "
                f"{high[1]:.6g}) um, more than a period over the edge of the unit cell, whose lower left corner is at "
                f"({corner[0]:.6g}, {corner[1]:.6g}) um"
            )

    def _check_inside(self, union: list[Floats], corner: Floats, pixel: float, pixels: int, tolerance: float) -> None:
        """Refuse solid wholly outside of the unit cell, unless all of it is one period, cut elsewhere."""
        if not union:
            return
        low, high = _extent(union)
        if not self.outlines and ((high - low) * pixel <= pixels * pixel + tolerance).all():
            return
        edge = tolerance / pixel
        for polygon in union:
            below, above = polygon.min(axis=0), polygon.max(axis=0)
            if (above <= edge).any() or (below >= pixels - edge).any():
                place, end = below * pixel + corner, above * pixel + corner
                raise ValueError(
                    f"{self.path}: cell {self.cell} has solid outside of the unit cell, from ({place[0]:.6g}, "
                    f"{place[1]:.6g}) to ({end[0]:.6g}, {end[1]:.6g}) um: it may only reach over the edge"
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
    _check_layers(layer, outline)
    return _layout(path, *read_stream(path), cell, layer, outline)


def parse_layout(
    content: bytes,
    path: Path,
    *,
    cell: str | None = None,
    layer: Layer = SOLID_LAYER,
    outline: Layer = OUTLINE_LAYER,
) -> Layout:
    """Read one cell of a GDSII stream, as `read_layout` does of a file.

    Args:
        content: bytes of the file.
        path: its name, for messages.
        cell: name of the cell; by default the only one that no other cell refers to.
        layer: layer and datatype of the solid.
        outline: layer and datatype of outlines of the unit cell.

    Raises:
        ValueError: it is damaged or not GDSII, has no such cell, or nothing in the layer.
        ImportError: gdstk is not installed.
    """
    _check_layers(layer, outline)
    return _layout(path, *parse_stream(content, path), cell, layer, outline)


def _check_layers(layer: Layer, outline: Layer) -> None:
    check_layer(layer)
    check_layer(outline)
    if layer == outline:
        raise ValueError(
            f"the solid cannot be in layer {layer[0]}/{layer[1]}, which is that of the unit cell's outline"
        )


def _layout(
    path: Path, cells: dict[str, Cell], precision_um: float, name: str | None, layer: Layer, outline: Layer
) -> Layout:
    for one in cells.values():
        for reference in one.references:
            if reference.cell not in cells:
                raise ValueError(f"{path} refers to cell {reference.cell}, which is not in the file")
    name = _chosen(path, cells, name)
    import_gdstk()
    hierarchy = _Hierarchy(path, cells, layer, outline)
    hierarchy.count(name)
    found = hierarchy.flat(name)
    if not found.solid and (found.others or not found.outlines):
        layers = ", ".join(f"{number[0]}/{number[1]}" for number in sorted(found.others)) or "none"
        raise ValueError(
            f"{path}: cell {name} has nothing in layer {layer[0]}/{layer[1]}; layers with polygons: {layers}"
        )
    boxes = [(*points.min(axis=0), *points.max(axis=0)) for points in found.outlines]
    distinct = {tuple(round(value / precision_um) for value in box): box for box in boxes}
    return Layout(path, name, found.solid, list(distinct.values()), found.arrays, precision_um)


def _chosen(path: Path, cells: dict[str, Cell], name: str | None) -> str:
    """The name of a cell, or of the only top cell."""
    if name is not None:
        if name not in cells:
            raise ValueError(f"{path} has no cell {name!r}, only {', '.join(sorted(cells)) or 'none'}")
        return name
    top = sorted(set(cells) - {reference.cell for one in cells.values() for reference in one.references})
    if len(top) != 1:
        raise ValueError(f"{path} must have one top cell, got {', '.join(top) or 'none'}: name the cell")
    return top[0]


@dataclass(frozen=True)
class _Flat:
    """What a cell has with all that it refers to: corners of the solid and of outlines, steps of arrays, other layers."""

    solid: list[Floats]
    outlines: list[Floats]
    arrays: list[Floats]
    others: set[Layer]


class _Hierarchy:
    """Cells with their references resolved, each once.

    Args:
        path: path of the file, for messages.
        cells: cells by name.
        layer: layer and datatype of the solid.
        outline: layer and datatype of outlines of the unit cell.
    """

    def __init__(self, path: Path, cells: dict[str, Cell], layer: Layer, outline: Layer) -> None:
        self._path, self._cells, self._layer, self._outline = path, cells, layer, outline
        self._known: dict[str, _Flat] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def count(self, name: str, depth: int = 0) -> tuple[int, int]:
        """Number of polygons of the solid and of outlines, and paths, that `flat` returns at most, without copying any.

        Raises:
            ValueError: they are too many, or the cell refers to itself.
        """
        if name in self._counts:
            return self._counts[name]
        if depth > _DEEPEST:
            raise ValueError(f"{self._path}: cell {name} refers to itself, or deeper than {_DEEPEST} levels")
        cell = self._cells[name]
        layers = [number for _, number in cell.polygons] + [wire.layer for wire in cell.wires]
        solid, outlines = layers.count(self._layer), layers.count(self._outline)
        for reference in cell.references:
            inner = self.count(reference.cell, depth + 1)
            copies = 1 if inner[1] else reference.columns * reference.rows
            solid, outlines = solid + copies * inner[0], outlines + copies * inner[1]
        if solid + outlines > _MOST_POLYGONS:
            raise ValueError(f"{self._path}: cell {name} has more than {_MOST_POLYGONS} polygons: name the unit cell")
        self._counts[name] = solid, outlines
        return solid, outlines

    def flat(self, name: str) -> _Flat:
        """Polygons of a cell that has been counted. Of an array of cells that have an outline, one is taken."""
        if name in self._known:
            return self._known[name]
        cell = self._cells[name]
        polygons = cell.polygons + [(points, wire.layer) for wire in cell.wires for points in _widened(wire)]
        flat = _Flat(
            [points for points, number in polygons if number == self._layer],
            [points for points, number in polygons if number == self._outline],
            [],
            {number for _, number in polygons} - {self._layer, self._outline},
        )
        for reference in cell.references:
            _place(flat, self.flat(reference.cell), reference)
        self._known[name] = flat
        return flat


def _place(flat: _Flat, inner: _Flat, reference: Reference) -> None:
    """Add what a reference places."""
    columns, rows = reference.columns, reference.rows
    arrays = [steps @ reference.turn.T for steps in inner.arrays]
    if inner.outlines and max(columns, rows) > 1:
        arrays.append(reference.steps[[number for number, count in enumerate((columns, rows)) if count > 1]])
        columns = rows = 1
    flat.others.update(inner.others)
    for theirs, ours in ((inner.solid, flat.solid), (inner.outlines, flat.outlines)):
        if placed := [points @ reference.turn.T + reference.origin for points in theirs]:
            for place in product(range(columns), range(rows)):
                ours.extend(points + place @ reference.steps for points in placed)
    known = {steps.tobytes() for steps in flat.arrays}
    flat.arrays.extend(steps for steps in arrays if steps.tobytes() not in known)


def _widened(wire: Any) -> list[Floats]:
    """Polygons of a path."""
    if wire.width == 0:
        return []
    path = import_gdstk().FlexPath(wire.points, wire.width, ends=wire.ends, simple_path=True, tolerance=_ROUND_UM)
    found = [np.asarray(polygon.points) for polygon in path.to_polygons()]
    return [points for points in found if np.isfinite(points).all()]


def _spans(steps: Floats, period: float, tolerance: float) -> bool:
    """Whether steps are those of the square lattice of a period, or of a row or column of it."""
    whole = np.rint(steps / period)
    if np.abs(steps - whole * period).max() > tolerance or np.abs(whole).max() > 1:
        return False
    if len(steps) == 1:
        return bool(np.abs(whole).sum() == 1)
    return bool(abs(round(whole[0, 0] * whole[1, 1] - whole[0, 1] * whole[1, 0])) == 1)


def _extent(polygons: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Lowest and highest x and y."""
    corners = np.concatenate(polygons)
    return corners.min(axis=0), corners.max(axis=0)
