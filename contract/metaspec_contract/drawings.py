"""Structures from files that others made: NumPy arrays of any grid, GDSII layouts, pictures, and designs of invrs-gym.

    drawing = read_drawing(Path("router.gds"))       # refuses what cannot be read
    densities = drawing.densities(process)           # (N, y, x), area averages over the pixels of the process

A density between 0 and 1 is a pixel that an edge crosses.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.area import average_to_pixels
from metaspec_contract.files import read_array
from metaspec_contract.gdsii import Layer
from metaspec_contract.layouts import SOLID_LAYER, Layout, read_layout
from metaspec_contract.process import Process
from metaspec_contract.structures import ROUNDING, InvalidStructure, as_density, check_structures

Floats = NDArray[np.float64]

LAYOUTS = (".gds", ".gds2", ".gdsii")
"""Endings of the names of layouts."""

ENDINGS = (".npy", *LAYOUTS, ".png", ".json")
"""Endings of the names of files that can be read."""

_SMALLEST, _LARGEST = 8, 16384  # pixels along a side
_TYPES = "\x93TYPES.ARRAY"  # totypes, the package of invrs-gym's files, marks arrays by this


@dataclass(frozen=True)
class Drawing:
    """Structures of one file, on the grid of the file.

    Attributes:
        path: path of the file.
        grids: densities (N, rows, columns), row 0 at the top; None for a layout.
        layout: the layout; None for a grid.
        lengths_um: fields of the process that the file states, by name.
    """

    path: Path
    grids: NDArray[Any] | None = None
    layout: Layout | None = None
    lengths_um: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of structures."""
        return 1 if self.grids is None else len(self.grids)

    def densities(self, process: Process) -> NDArray[np.float32]:
        """Densities on the pixels of a process, float32 (N, y, x): the share of each pixel that is solid.

        Raises:
            ValueError: a layout has another period.
        """
        if self.layout is not None:
            averaged = self.layout.density(process)[None]
        else:
            assert self.grids is not None
            averaged = average_to_pixels(self.grids, process.structure_shape)
        nearest = np.rint(averaged)
        return np.where(np.abs(averaged - nearest) <= ROUNDING, nearest, averaged).astype(np.float32)

    def remark(self, process: Process) -> str:
        """What has been changed, in words: "200 x 200 pixels averaged to 128 x 128"; "" if nothing."""
        remarks = []
        if self.layout is not None:
            remarks.append(f"cell {self.layout.cell}")
        elif self.grids is not None and self.grids.shape[1:] != process.structure_shape:
            (rows, columns), (y, x) = self.grids.shape[1:], process.structure_shape
            remarks.append(f"{rows} x {columns} pixels averaged to {y} x {x}")
        for name, value in self.lengths_um.items():
            if abs(value - getattr(process, name)) > 1e-6:
                remarks.append(f"made for {name} {value:.4g}, here {getattr(process, name):g}")
        return ", ".join(remarks)


def read_drawing(path: Path, *, cell: str | None = None, layer: Layer = SOLID_LAYER) -> Drawing:
    """Read the structures of a file, by the ending of its name.

    - `.npy`: densities (rows, columns) or (N, rows, columns), square, 1 is solid.
    - `.gds`, `.gds2`, `.gdsii`: one cell and layer, see `metaspec_contract.layouts`.
    - `.png`: shades of grey, white is solid, black is void; square.
    - `.json`: a design of invrs-gym's challenge "bayer_sorter", as its leaderboard publishes them. There, blue is collected
      where both coordinates are small, and red where they are large: the design is turned by 180 degrees.

    Args:
        path: path of the file.
        cell: name of the cell of a layout; by default the only one that no other cell refers to.
        layer: layer and datatype of the solid in a layout.

    Raises:
        ValueError: the file is missing, damaged, or not structures; or `cell` is given for another file than a layout.
        ImportError: a package is missing, gdstk for layouts, Pillow for pictures.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: the name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not a regular file")
    if ending in LAYOUTS:
        return Drawing(path, layout=read_layout(path, cell=cell, layer=layer))
    if cell is not None:
        raise ValueError(f"{path} is no layout: it has no cell {cell!r}")
    if ending == ".npy":
        return Drawing(path, _checked(path, read_array(path)))
    if ending == ".png":
        return Drawing(path, _checked(path, _read_picture(path)))
    return _read_invrs(path)


def _checked(path: Path, array: NDArray[Any]) -> NDArray[np.float32]:
    """Densities as float32 (N, rows, columns)."""
    if array.ndim not in (2, 3) or array.shape[-1] != array.shape[-2] or not array.size:
        raise InvalidStructure(
            f"{path}: structures must be square, (rows, columns) or (N, rows, columns), got {array.shape}"
        )
    side = array.shape[-1]
    if not _SMALLEST <= side <= _LARGEST:
        raise InvalidStructure(
            f"{path}: structures must have {_SMALLEST} to {_LARGEST} pixels along a side, got {side}"
        )
    checked = check_structures(array, (side, side), f"{path}: structures")
    return as_density(checked[:, 0])


def _read_picture(path: Path) -> NDArray[Any]:
    """Shades of grey from 0 to 1 of a PNG file."""
    try:
        image: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install pillow", name="PIL") from error
    if not path.exists():
        raise ValueError(f"{path} is missing")
    try:
        with image.open(path, formats=["PNG"]) as picture:
            if max(picture.size) > _LARGEST:
                raise ValueError(f"it has {picture.size[0]} x {picture.size[1]} pixels")
            transparent = picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255
            shades = np.asarray(picture if picture.mode in ("1", "L", "I;16", "I") else picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None
    if transparent:
        raise ValueError(f"{path}: the picture must have no transparent pixels")
    if shades.ndim == 3:
        if (shades != shades[..., :1]).any():
            raise ValueError(f"{path}: the picture must be in shades of grey, white for solid, got colours")
        shades = shades[..., 0]
    if shades.dtype == np.bool_:
        return shades
    return shades / (255 if shades.dtype == np.uint8 else 65535)


def _read_invrs(path: Path) -> Drawing:
    """A design of invrs-gym: JSON of the package totypes."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    design = document.get("density_metasurface") if isinstance(document, dict) else None
    if design is None:
        raise ValueError(f"{path} is no design of invrs-gym's bayer_sorter: it has no density_metasurface")
    fields = _fields(design)
    low, high = (_number(path, name, fields.get(name)) for name in ("lower_bound", "upper_bound"))
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"{path}: density_metasurface: lower_bound must be below upper_bound, both finite, got {low:g} and {high:g}"
        )
    density = (_array(path, "density_metasurface", fields.get("array")) - low) / (high - low)
    lengths = {}
    for theirs, ours in (("thickness_metasurface", "thickness_um"), ("offset_monitor_substrate", "distance_um")):
        if theirs in document:
            value = _array(path, theirs, _fields(document[theirs]).get("array"))
            if value.size != 1:
                raise ValueError(f"{path}: {theirs} must be one number, got shape {value.shape}")
            lengths[ours] = float(value.item())
    return Drawing(path, _checked(path, density)[:, ::-1, ::-1], lengths_um=lengths)


def _fields(value: Any) -> dict[str, Any]:
    """Fields of an object of totypes, a pair of its type's name and its fields; none of anything else."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)
    return value[1] if pair else {}


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: density_metasurface: {name} must be a number, got {value!r:.40}")
    return float(value)


def _array(path: Path, name: str, value: Any) -> Floats:
    """An array of totypes: its shape, dtype, and bytes in base64."""
    fields = _fields(value) if isinstance(value, list) and value[:1] == [_TYPES] else {}
    try:
        dtype = np.dtype(fields["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"its dtype is {dtype}")
        if not all(isinstance(length, int) and length >= 0 for length in fields["shape"]):
            raise ValueError(f"its shape is {fields['shape']}")
        flat = np.frombuffer(base64.b64decode(fields["bytes"], validate=True), dtype)
        array: Floats = flat.reshape(fields["shape"]).astype(np.float64)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{path}: {name} holds no array of totypes: {error}") from None
    return array
