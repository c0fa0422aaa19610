"""What figures of structures and spectra share.

A structure is drawn as it is stored, row 0 at the top: x is the column and points right, y is the row and points down, and
detector R is at the top left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from metaspec_contract.detectors import BANDS_NM, COLOUR_LINES, DETECTOR_LINES, QUADRANTS

_MATERIAL = LinearSegmentedColormap.from_list("material", ["#fbfaf6", "#39536b"])  # void to solid


def draw_structure(axes: Axes, structure: NDArray[Any], period_um: float) -> None:
    """Draw a structure, solid dark, with the quadrants of its detectors."""
    axes.imshow(structure, cmap=_MATERIAL, vmin=0, vmax=1, extent=(0, period_um, period_um, 0), interpolation="nearest")
    half = period_um / 2
    for draw_line in (axes.axhline, axes.axvline):
        draw_line(half, color="0.5", lw=0.9, ls=(0, (5, 4)))
    for name, colour in DETECTOR_LINES.items():
        row, column = QUADRANTS[name]
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour}
        x, y = (column + 0.06) * half, (row + 0.06) * half
        axes.text(x, y, name, color=colour, ha="left", va="top", bbox=box, fontweight="bold", fontsize=9)
    ticks = np.linspace(0, period_um, 5)
    axes.set(xlabel="x (µm)", ylabel="y (µm)", xticks=ticks, yticks=ticks)


def shade_bands(axes: Axes) -> None:
    """Shade the bands of the three colours."""
    for colour, (low, high) in BANDS_NM.items():
        axes.axvspan(low, high, color=COLOUR_LINES[colour], alpha=0.08, lw=0)
