"""GDSII layouts as densities, for users: one function over the contract's reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.layouts import OUTLINE_LAYER, SOLID_LAYER, read_layout
from metaspec_contract.process import Process

_DEFAULT = Process()


def read_gds(
    path: str | Path,
    *,
    process: Process = _DEFAULT,
    cell: str | None = None,
    layer: tuple[int, int] = SOLID_LAYER,
    boundary_layer: tuple[int, int] = OUTLINE_LAYER,
    origin_um: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Read a unit cell from GDSII: the share of each pixel that is solid, an exact area average.

    References may be rotated, reflected, magnified and repeated; of an array of unit cells, one is taken. The union of all
    polygons counts, however they overlap, cross themselves or are oriented, and what reaches over the edge of the unit cell
    continues on its other side. Database units are converted.

    Args:
        path: path of the file.
        process: process whose period the layout must have, and whose pixels the result has; `surrogate.metadata().process`.
        cell: name of the layout cell; by default the only one that no other cell refers to.
        layer: layer and datatype of the solid.
        boundary_layer: layer and datatype of the unit cell's outline, which need not be there.
        origin_um: lower left corner of the unit cell in um. By default that of the outline; without one, the origin or, where
            the solid lies around that, half a period to its left and below it.

    Returns:
        float32 (y, x), row 0 at the top. `density > 0.5` is the binary structure.

    Raises:
        ValueError: the file is missing or damaged, has no such cell, nothing in the layer, another period, several unit cells,
            or solid outside of the unit cell.
    """
    layout = read_layout(Path(path), cell=cell, layer=layer, outline=boundary_layer)
    return layout.density(process, origin_um).astype(np.float32)
