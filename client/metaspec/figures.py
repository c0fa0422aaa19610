"""Pictures of designs: the structure, its spectra, and how the optimisation went. Needs matplotlib.

A structure is drawn as it is stored, row 0 at the top: x is the column and points right, y is the row and points down, and
detector R is at the top left. Figures do not go through pyplot: save them with `savefig`, or show them in a notebook.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._spectra import Spectra
from metaspec.optimise import History
from metaspec_contract.detectors import BANDS_NM, COLOURS

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ImportError('pictures need matplotlib: pip install "metaspec[optimise]"') from error

_LINES = {"R": "tab:red", "G1": "tab:green", "G2": "yellowgreen", "B": "tab:blue"}
_BANDS = {"R": "tab:red", "G": "tab:green", "B": "tab:blue"}
_WORDS = {"R": "red", "G": "green", "B": "blue"}
_QUADRANTS = (("R", 0, 0), ("G1", 0, 1), ("G2", 1, 0), ("B", 1, 1))  # name, row and column
_MATERIAL = LinearSegmentedColormap.from_list("material", ["#fbfaf6", "#39536b"])  # void to solid


def draw_structure(structure: ArrayLike, *, period_um: float = 2.0, title: str = "", tiles: int = 3) -> Figure:
    """The unit cell with the quadrants of the detectors, and some of the periodic pattern that it makes.

    Args:
        structure: (rows, columns), 1 is solid, 0 is void; densities between are shades.
        period_um: side of the unit cell.
        title: of the figure.
        tiles: periods along each side of the pattern.
    """
    array = np.asarray(structure, float)
    figure = Figure(figsize=(9, 4.9), layout="constrained")
    figure.suptitle(title, fontsize=11)
    cell, pattern = figure.subplots(1, 2)
    _image(cell, array, period_um)
    cell.set_title("unit cell (dark = solid)", fontsize=10)
    half = period_um / 2
    for draw_line in (cell.axhline, cell.axvline):
        draw_line(half, color="0.5", lw=0.9, ls=(0, (5, 4)))
    for name, row, column in _QUADRANTS:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": _LINES[name]}
        x, y = (column + 0.06) * half, (row + 0.06) * half
        cell.text(x, y, name, color=_LINES[name], ha="left", va="top", bbox=box, fontweight="bold", fontsize=9)
    _image(pattern, np.tile(array, (tiles, tiles)), tiles * period_um)
    pattern.set_title(f"{tiles} x {tiles} periods", fontsize=10)
    corner = tiles // 2 * period_um
    pattern.add_patch(Rectangle((corner, corner), period_um, period_um, fill=False, edgecolor="tab:orange", lw=1.8))
    return figure


def _image(ax: Axes, density: NDArray[np.float64], side_um: float) -> None:
    ax.imshow(density, cmap=_MATERIAL, vmin=0, vmax=1, extent=(0, side_um, side_um, 0), interpolation="nearest")
    ticks = np.linspace(0, side_um, 5 if side_um < 4 else 4)
    ax.set(xlabel="x (µm)", ylabel="y (µm)", xticks=ticks, yticks=ticks)


def draw_spectra(spectra: Spectra, *, title: str = "") -> Figure:
    """The spectra of one design over the bands of the colours, with efficiency and crosstalk of each.

    The efficiency of a colour, the mean over its band of the power in its detectors (green: G1 + G2), is the dashed line
    over its band.

    Args:
        spectra: of one structure.
        title: of the figure.
    """
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, fontsize=10, loc="left")
    wavelengths = spectra.wavelengths_nm
    for name, colour in _LINES.items():
        ax.plot(wavelengths, spectra.channel(name)[0], color=colour, lw=1.5, label=name)
    if "spread" in spectra.channels:
        ax.plot(wavelengths, spectra.channel("spread")[0], color="0.4", lw=1, ls=":", label="spread: how unsure")
    green = spectra.channel("G1")[0] + spectra.channel("G2")[0]
    ax.plot(wavelengths, green, color="darkgreen", lw=2, label="G1 + G2")
    for colour, efficiency, crosstalk in zip(
        COLOURS, spectra.colour_efficiency()[0], spectra.crosstalk()[0], strict=True
    ):
        low, high = BANDS_NM[colour]
        ax.axvspan(low, high, color=_BANDS[colour], alpha=0.08, lw=0)
        label = f"{_WORDS[colour]}, {low:g} to {high:g} nm:\nefficiency {efficiency:.3f}\ncrosstalk {crosstalk:.3f}"
        ax.hlines(efficiency, low, high, color=_BANDS[colour], ls="--", lw=1.5, label=label)
    ax.set(xlabel="wavelength (nm)", ylabel="efficiency", xlim=(wavelengths[0], wavelengths[-1]), ylim=(0, None))
    figure.legend(fontsize=9, loc="outside right upper", frameon=False)
    return figure


def draw_history(history: History, *, objective: str) -> Figure:
    """The objective of every start over the steps, best and median of them, and of the thresholded structures.

    Args:
        history: of a run.
        objective: its name.
    """
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    ax = figure.subplots()
    steps = np.arange(1, len(history.value) + 1)
    ax.plot(steps, history.value, color="0.75", lw=0.7)
    ax.plot(steps, np.median(history.value, axis=1), color="tab:blue", lw=1.8, label="median of the starts")
    ax.plot(steps, history.value.max(axis=1), color="tab:orange", lw=1.8, label="best of the starts")
    best = np.maximum.accumulate(history.binary_value.max(axis=1))
    ax.plot(history.checked + 1, best, "k.-", lw=1, ms=5, label="best binary structure so far")
    changes = np.flatnonzero(history.beta[1:] != history.beta[:-1]) + 1
    for change in changes:
        ax.axvline(change + 0.5, color="0.6", lw=0.8, ls=":")
    for start in (0, *changes):
        ax.text(
            start + 1,
            1.01,
            f" β = {history.beta[start]:.3g}",
            transform=ax.get_xaxis_transform(),
            fontsize=8,
            color="0.4",
        )
    ax.set(xlabel="step", ylabel=f"objective {objective}", xlim=(1, max(2, len(steps))))
    ax.legend(fontsize=9, loc="lower right")
    return figure
