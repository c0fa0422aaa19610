"""Figures of designs: the structure, its spectra, and the history of the optimisation. Needs matplotlib.

A structure is drawn with row 0 at the top: x is the column and points right, y is the row and points down, and detector R
is at the top left. Figures do not use pyplot: a notebook shows them where they are the value of a cell; `savefig` saves them.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._extras import missing_extra
from metaspec.optimise import History
from metaspec_contract.detectors import (
    BANDS_NM,
    CHANNELS,
    COLOUR_LINES,
    COLOUR_NAMES,
    DETECTOR_LINES,
    DETECTORS,
    QUADRANTS,
    SPREAD,
)
from metaspec_contract.figures_of_merit import crosstalk_colours
from metaspec_contract.process import Process
from metaspec_contract.spectra import MERGED_GREENS, Spectra

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise missing_extra("figures need", "matplotlib", "optimise") from error

__all__ = ["draw_history", "draw_spectra", "draw_structure"]


def __dir__() -> list[str]:
    return __all__


_PERIOD_UM = Process().period_um
_MATERIAL = LinearSegmentedColormap.from_list("material", ["#fbfaf6", "#39536b"])  # void to solid
_LABEL_WIDTH = 0.08  # of the steps: width of a label of the steepness
_DPI = 80  # of a figure in a notebook


class _Figure(Figure):
    """A figure that a notebook shows where it is the value of a cell, once, whether pyplot is in use or not."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=_DPI)
        return png.getvalue()


def draw_structure(structure: ArrayLike, *, period_um: float = _PERIOD_UM, title: str = "", tiles: int = 3) -> Figure:
    """The unit cell with the quadrants of the detectors, and several periods of the structure.

    Args:
        structure: (rows, columns), 1 is solid, 0 is void; densities between are drawn as shades.
        period_um: side of the unit cell in um; default: that of the default process; pass
            `surrogate.metadata().process.period_um` for another one.
        title: title of the figure.
        tiles: number of periods along each side.
    """
    array = np.asarray(structure, float)
    figure = _Figure(figsize=(9, 4.9), layout="constrained")
    figure.suptitle(title, fontsize=11)
    cell, tiled = figure.subplots(1, 2)
    _image(cell, array, period_um)
    cell.set_title("unit cell (dark = solid)", fontsize=10)
    half = period_um / 2
    for draw_line in (cell.axhline, cell.axvline):
        draw_line(half, color="0.5", lw=0.9, ls=(0, (5, 4)))
    for name, (row, column) in QUADRANTS.items():
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": DETECTOR_LINES[name]}
        x, y = (column + 0.06) * half, (row + 0.06) * half
        cell.text(x, y, name, color=DETECTOR_LINES[name], ha="left", va="top", bbox=box, fontweight="bold", fontsize=9)
    _image(tiled, np.tile(array, (tiles, tiles)), tiles * period_um)
    tiled.set_title(f"{tiles} x {tiles} periods", fontsize=10)
    corner = tiles // 2 * period_um
    tiled.add_patch(Rectangle((corner, corner), period_um, period_um, fill=False, edgecolor="tab:orange", lw=1.8))
    return figure


def _image(ax: Axes, density: NDArray[np.float64], side_um: float) -> None:
    ax.imshow(density, cmap=_MATERIAL, vmin=0, vmax=1, extent=(0, side_um, side_um, 0), interpolation="nearest")
    ticks = np.linspace(0, side_um, 5 if side_um < 4 else 4)
    ax.set(xlabel="x (µm)", ylabel="y (µm)", xticks=ticks, yticks=ticks)


def draw_spectra(spectra: Spectra, *, title: str = "") -> Figure:
    """The spectra of one design over the bands of the colours, with the efficiency and crosstalk of each colour in range.

    The dashed line over a band is the colour's efficiency: the mean over the band of the power in its detectors.

    Args:
        spectra: spectra of one structure.
        title: title of the figure.

    Raises:
        ValueError: the spectra of another number of structures.
    """
    if len(spectra) != 1:
        raise ValueError(f"draw_spectra draws one structure, got {len(spectra)}: choose one, such as spectra[0]")
    figure = _Figure(figsize=(9.5, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.set_title(title, fontsize=10, loc="left")
    wavelengths = spectra.wavelengths_nm
    for name in CHANNELS:
        ax.plot(wavelengths, spectra.channel(name)[0], color=DETECTOR_LINES[name], lw=1.5, label=name)
    if SPREAD in spectra.channels:
        ax.plot(wavelengths, spectra.channel(SPREAD)[0], color="0.4", lw=1, ls=":", label=f"{SPREAD} (uncertainty)")
    green = sum(spectra.channel(name)[0] for name in DETECTORS["G"])
    ax.plot(wavelengths, green, color="darkgreen", lw=2, label=" + ".join(DETECTORS["G"]))
    both = crosstalk_colours(wavelengths)
    crosstalk = dict(zip(both, spectra.crosstalk(both)[0], strict=True))
    for colour, efficiency in zip(spectra.colours, spectra.colour_efficiency(spectra.colours)[0], strict=True):
        low, high = BANDS_NM[colour]
        ax.axvspan(low, high, color=COLOUR_LINES[colour], alpha=0.08, lw=0)
        label = f"{COLOUR_NAMES[colour]}, {low:g} to {high:g} nm:\nefficiency {efficiency:.3f}"
        label += f"\ncrosstalk {crosstalk[colour]:.3f}" if colour in crosstalk else ""
        ax.hlines(efficiency, low, high, color=COLOUR_LINES[colour], ls="--", lw=1.5, label=label)
    ax.set(xlabel="wavelength (nm)", ylabel="efficiency", xlim=(wavelengths[0], wavelengths[-1]), ylim=(0, None))
    note = MERGED_GREENS.replace(": ", ":\n") if spectra.merged_greens else None
    figure.legend(fontsize=9, loc="outside right upper", frameon=False, title=note, title_fontsize=9)
    return figure


def draw_history(history: History, *, objective: str) -> Figure:
    """The objective of every start over the steps, their best and median, and the best thresholded structure.

    Conditions of which each start has its own value are drawn below, that of the start with the best design in orange.

    Args:
        history: history of a run.
        objective: name of the objective.
    """
    heights = [4.2, *(1.6 for _ in history.conditions)]
    figure = _Figure(figsize=(9.5, sum(heights)), layout="constrained")
    ax, *below = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    steps = np.arange(1, len(history.value) + 1)
    ax.plot(steps, history.value, color="0.75", lw=0.7)
    ax.plot(steps, np.median(history.value, axis=1), color="tab:blue", lw=1.8, label="median of the starts")
    ax.plot(steps, history.value.max(axis=1), color="tab:orange", lw=1.8, label="best of the starts")
    best = np.maximum.accumulate(history.binary_value.max(axis=1))
    ax.plot(history.checked + 1, best, "k.-", lw=1, ms=5, label="best binary structure so far")
    changes = np.flatnonzero(history.beta[1:] != history.beta[:-1]) + 1
    for change in changes:
        ax.axvline(change + 0.5, color="0.6", lw=0.8, ls=":")
    labelled = [0]
    for change in changes:
        if change - labelled[-1] >= _LABEL_WIDTH * len(steps):
            labelled.append(int(change))
    for start in labelled:
        ax.text(
            start + 1,
            1.01,
            f" β = {history.beta[start]:.3g}",
            transform=ax.get_xaxis_transform(),
            fontsize=8,
            color="0.4",
        )
    ax.set(ylabel=f"objective {objective}", xlim=(min(1, history.checked[0] + 1), max(2, len(steps))))
    for axes, (name, values) in zip(below, history.conditions.items(), strict=True):
        axes.plot(steps, values, color="0.75", lw=0.7)
        axes.plot(steps, values[:, history.binary_value.max(axis=0).argmax()], color="tab:orange", lw=1.8)
        axes.set(ylabel=name)
    [ax, *below][-1].set(xlabel="step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _leave_out_penalties(ax, history)
    ax.legend(fontsize=9, loc="lower right")
    return figure


def _leave_out_penalties(ax: Axes, history: History) -> None:
    """Limit the axis where a problem's penalties push the values far below all others."""
    usual = np.concatenate([history.value[:1].ravel(), history.binary_value.max(axis=1)])
    low, high = usual.min(), max(usual.max(), history.value.max())
    if np.isfinite([low, high]).all() and history.value.min() < low - 0.5 * (high - low) < high:
        bottom = low - 0.1 * (high - low)
        ax.set_ylim(bottom, high + 0.05 * (high - low))
        note = f"values below {bottom:.2g}, under the penalties, are not shown"
        ax.text(0.01, 0.02, note, transform=ax.transAxes, fontsize=8, color="0.4")
