"""The figure of a comparison of designs with their simulations."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from metaspec_contract.conditions import stated_conditions
from metaspec_contract.detectors import COLOUR_NAMES, COLOURS, DETECTOR_LINES
from metaspec_simulation.drawing import draw_structure, shade_bands
from metaspec_simulation.verify import Verification

SHOWN = 3
"""Number of designs whose structures and spectra are drawn."""

_MARKS = {"min": "black"} | {colour: f"tab:{COLOUR_NAMES[colour]}" for colour in COLOURS}


def draw_verification(result: Verification) -> Figure:
    """The best designs when simulated, with both spectra; their difference over wavelength; figures of merit.

    Args:
        result: comparison by `metaspec_simulation.verify.compare`.
    """
    predicted, simulated = result.merit(result.predicted), result.merit(result.simulated.spectra)
    thresholded, ranked = result.merit(result.thresholded.spectra)[-1], "min" in result.merits
    best = (np.argsort(-simulated[-1, :, 0], kind="stable") if ranked else np.arange(len(result.ranks)))[:SHOWN]
    figure = Figure(figsize=(3.9 * (len(best) + 1), 7.4), layout="constrained")
    axes = figure.subplots(2, len(best) + 1, height_ratios=(1, 1.1))
    drawn = (result.predicted, result.simulated.spectra[-1], result.thresholded.spectra[-1])
    highest = 1.25 * max(float(spectra[best].max()) for spectra in drawn)
    for column, k in enumerate(best):
        above, below = axes[:, column]
        draw_structure(above, result.designs.structures[k], result.designs.process.period_um)
        title = f"design {result.ranks[k]:03d}"
        title += f", {stated_conditions(result.conditions[k])}" if result.conditions[k] else ""
        title += f", non-discreteness {result.non_discreteness[k]:.3f}" if result.grey[k] else ""
        if ranked:
            title += (
                f"\nmin efficiency {predicted[k, 0]:.3f} {result.designs.origin},\n{simulated[-1, k, 0]:.3f} simulated"
            )
            title += f", {thresholded[k, 0]:.3f} thresholded" if result.grey[k] else ""
        above.set_title(title, fontsize=10)
        _draw_spectra(below, result, int(k))
        below.set(ylim=(0, highest), ylabel="" if column else "efficiency")
    _draw_legend(axes[1, 0], result)  # above the lines, where the limit leaves room
    _draw_error(axes[0, -1], result)
    if result.merits:
        _draw_parity(axes[1, -1], result.merits, predicted, simulated, result.designs.origin)
    else:
        axes[1, -1].set_axis_off()
    return figure


def _draw_spectra(axes: Axes, result: Verification, k: int) -> None:
    shade_bands(axes)
    for channel, colour in enumerate(DETECTOR_LINES.values()):
        axes.plot(result.wavelengths_nm, result.simulated.spectra[-1, k, channel], color=colour, alpha=0.45, lw=3)
        axes.plot(result.wavelengths_nm, result.predicted[k, channel], color=colour, lw=1.2, ls="--")
        if result.grey[k]:
            axes.plot(result.wavelengths_nm, result.thresholded.spectra[-1, k, channel], color=colour, lw=1, ls=":")
    mae = np.abs(result.error[k]).mean()
    axes.set_title(f"mean absolute difference {mae:.4f}", fontsize=10)
    axes.set(xlabel="wavelength (nm)", xlim=(result.wavelengths_nm[0], result.wavelengths_nm[-1]))


def _draw_legend(axes: Axes, result: Verification) -> None:
    styles = [
        Line2D([], [], color="0.3", alpha=0.45, lw=3, label=f"simulated, {result.cells[-1]} cells"),
        Line2D([], [], color="0.3", lw=1.2, ls="--", label=result.designs.origin),
    ]
    if result.grey.any():
        styles.append(Line2D([], [], color="0.3", lw=1, ls=":", label="simulated, thresholded at 1/2"))
    axes.legend(handles=styles, fontsize=9, loc="upper right", framealpha=0.9)


def _draw_error(axes: Axes, result: Verification) -> None:
    """The absolute difference of both spectra, mean over the designs, over wavelength."""
    shade_bands(axes)
    for channel, (name, colour) in enumerate(DETECTOR_LINES.items()):
        error = np.abs(result.error[:, channel]).mean(axis=0)
        axes.plot(result.wavelengths_nm, error, color=colour, lw=1.2, label=name)
    designs = "1 design" if len(result.ranks) == 1 else f"mean of {len(result.ranks)} designs"
    axes.set_title(f"absolute difference, {result.designs.origin}\nfrom simulated, {designs}", fontsize=10)
    highest = 1.25 * float(np.abs(result.error).mean(axis=0).max()) or 1
    axes.set(xlabel="wavelength (nm)", ylabel="efficiency", ylim=(0, highest))
    axes.set_xlim(result.wavelengths_nm[0], result.wavelengths_nm[-1])
    axes.legend(ncols=4, fontsize=9, loc="upper right")


def _draw_parity(
    axes: Axes, names: tuple[str, ...], predicted: NDArray[np.floating], simulated: NDArray[np.floating], origin: str
) -> None:
    """Figures of merit that the optimiser saw over simulated ones; with several grids, bars span their results."""
    finest = simulated[-1]
    limits = np.array([min(predicted.min(), simulated.min()), max(predicted.max(), simulated.max())])
    limits += np.array([-0.08, 0.08]) * max(np.ptp(limits), 0.02)
    axes.plot(limits, limits, color="0.4", lw=0.8)
    for column, name in enumerate(names):
        colour = _MARKS[name]
        spread = np.abs(np.stack([simulated.min(axis=0), simulated.max(axis=0)]) - finest)[..., column]
        axes.errorbar(
            finest[:, column],
            predicted[:, column],
            xerr=spread if len(simulated) > 1 else None,
            fmt="o",
            color=colour,
            mfc="none" if name == "min" else colour,  # a ring: the smallest colour often coincides with it
            ms=8 if name == "min" else 4,
            lw=1,
            label=name,
        )
    axes.set_title("colour efficiency, G = G1 + G2", fontsize=10)
    axes.set(xlabel="simulated", ylabel=origin, xlim=limits, ylim=limits, aspect="equal")
    axes.legend(fontsize=9, loc="upper left")
