"""Plots of a report: each function takes numbers and returns a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaspec_contract.detectors import CHANNELS, COLOUR_LINES, COLOUR_NAMES, DETECTOR_LINES
from metaspec_simulation.dataset import Samples
from metaspec_training.report.gradients import PARTS, Comparison, mean

Array = NDArray[np.floating]


def draw_history(run: Path) -> Figure | None:
    """Loss and its terms, validation error and gradient norm over the steps of a run, from its TensorBoard log.

    None for a run that was logged elsewhere, such as by an experiment tracker.
    """
    log = EventAccumulator(str(run))
    log.Reload()
    scalars = {name: log.Scalars(name) for name in log.Tags()["scalars"]}
    if not {"train/loss", "validation/mae"} & scalars.keys():
        return None
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    terms, error, gradient = figure.subplots(1, 3)

    def plot(axes: Axes, name: str, label: str, colour: str) -> None:
        if name in scalars:
            steps, values = zip(*((event.step, event.value) for event in scalars[name]), strict=True)
            axes.plot(steps, values, color=colour, lw=1, marker="o" if len(steps) == 1 else "", label=label)

    for name, colour in zip(("loss", "mse", "rel", "grad", "curv"), ("k", "C0", "C1", "C2", "C3"), strict=True):
        plot(terms, f"train/{name}", name, colour)
    terms.set(title="training loss and its terms", yscale="log", xlabel="step")
    if terms.lines:  # none in a run of fewer steps than trainer.log_every_n_steps
        terms.legend(ncols=2)
    plot(error, "validation/loss", "loss (2 / 0.1 / 100)", "C4")
    plot(error, "validation/mae", "mean absolute error", "k")
    error.set(title="validation", yscale="log", xlabel="step")
    error.legend()
    plot(gradient, "train/gradient_norm", "norm", "C0")
    plot(gradient, "train/clipped_fraction", "clipped", "C3")
    gradient.set(title="gradient norm, share of clipped steps", xlabel="step", ylim=(0, None))
    if gradient.lines:
        gradient.legend()
    return figure


def draw_spectra(prediction: Array, test: Samples, numbers: NDArray[np.integer]) -> Figure:
    """The best, the median and the worst prediction beside their structures and simulated spectra.

    Args:
        prediction: predicted spectra, (N, 4, W).
        test: samples that were predicted.
        numbers: number of each sample in its data set, (N,).
    """
    ranked = np.abs(prediction - test.spectra).mean(axis=(1, 2)).argsort()
    picked = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    wavelength = test.process.wavelengths_nm
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1, 1.6])
    side = test.process.period_um
    for column, (name, n) in enumerate(picked.items()):
        structure, spectra = axes[:, column]
        structure.imshow(test.structures[n], cmap="Greys", vmin=0, vmax=1, extent=(0, side, side, 0))
        structure.set(title=f"{name}: sample {numbers[n]}, {test.family[n]}", xlabel="x (um)", ylabel="y (um)")
        for channel, label in enumerate(CHANNELS):
            colour = DETECTOR_LINES[label]
            spectra.plot(wavelength, test.spectra[n, channel], color=colour, alpha=0.45, lw=3)
            spectra.plot(wavelength, prediction[n, channel], color=colour, lw=1.2, label=label)
        mae = np.abs(prediction[n] - test.spectra[n]).mean()
        limits = {"xlim": (wavelength[0], wavelength[-1]), "ylim": (0, max(0.5, float(test.spectra[n].max())))}
        spectra.set(title=f"mean absolute error {mae:.4f}", xlabel="wavelength (nm)", **limits)
    axes[1, 0].set_ylabel("efficiency")
    axes[1, 0].legend(title="thick: simulated\nthin: predicted", ncols=2)
    figure.suptitle("Structures from above, dark is solid; samples as numbered in the data set, from 0", fontsize=10)
    return figure


def draw_by_wavelength(prediction: Array, test: Samples) -> Figure:
    """Mean absolute error and mean error (bias) of each detector over wavelength."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    size, bias = figure.subplots(1, 2, sharex=True)
    wavelength, error = test.process.wavelengths_nm, prediction - test.spectra
    for channel, label in enumerate(CHANNELS):
        colour = DETECTOR_LINES[label]
        size.plot(wavelength, np.abs(error[:, channel]).mean(axis=0), color=colour, label=label)
        bias.plot(wavelength, error[:, channel].mean(axis=0), color=colour)
    size.set(title="mean absolute error", xlabel="wavelength (nm)", ylim=(0, None))
    bias.set(title="mean error", xlabel="wavelength (nm)")
    bias.axhline(0, color="k", lw=0.5)
    size.legend(ncols=4)
    return figure


def draw_families(error: Array, family: NDArray[np.str_]) -> Figure:
    """Mean absolute error of each structure (N,), by family (N,)."""
    names = sorted(set(family.tolist()))
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.boxplot([error[family == name] for name in names], orientation="horizontal", tick_labels=names)
    axes.set(title="error by family", xlabel="mean absolute error of a structure", xlim=(0, None))
    return figure


def draw_scatter(x: Array, error: Array, label: str, correlation: float) -> Figure:
    """Error of each structure (N,) over a quantity that may predict it (N,), with their rank correlation."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, error, ".", ms=4)
    axes.set(title=f"rank correlation {correlation:.2f}", xlabel=label, ylabel="mean absolute error")
    axes.set(xlim=(0, None), ylim=(0, None))
    return figure


def draw_parity(predicted: Array, simulated: Array, names: list[str]) -> Figure:
    """Predicted over simulated figures of merit, both (N, len(names))."""
    figure = Figure(figsize=(4 * len(names), 3.8), layout="constrained")
    axes = figure.subplots(1, len(names))
    for column, (one, name) in enumerate(zip(axes, names, strict=True)):
        low = min(simulated[:, column].min(), predicted[:, column].min())
        high = max(simulated[:, column].max(), predicted[:, column].max())
        one.plot([low, high], [low, high], "k", lw=0.5)
        one.plot(simulated[:, column], predicted[:, column], ".", ms=4, color={"min": "k"}.get(name, f"tab:{name}"))
        error = np.abs(predicted[:, column] - simulated[:, column]).mean()
        one.set(title=f"{name}: mean error {error:.4f}", xlabel="simulated", ylabel="predicted")
    return figure


def draw_gradients(comparisons: Mapping[str, Comparison], numbers: NDArray[np.integer] | None = None) -> Figure:
    """For each comparison, a row: a density, both gradients of one efficiency, and the agreement by part and colour.

    The efficiency is that of green, or of the first colour where green has none. The density is the one whose gradients have
    the median cosine.

    Args:
        comparisons: comparisons by the name of their densities.
        numbers: number of each structure in its data set, (N,), None if they are of none.
    """
    figure = Figure(figsize=(13, 3.4 * len(comparisons)), layout="constrained")
    rows = figure.subplots(len(comparisons), 4, squeeze=False, width_ratios=[1, 1, 1, 1.5])
    for (density, simulated, predicted, parts), (name, one) in zip(rows, comparisons.items(), strict=True):
        colours = one.truth.colours
        drawn = colours.index("G") if "G" in colours else 0
        cosine = one.cosine[0, :, drawn]
        n = int(np.argsort(cosine)[(len(cosine) - 1) // 2])
        density.imshow(one.truth.densities[n], cmap="Greys", vmin=0, vmax=1)
        density.set_ylabel(name)
        density.set_title("dark is solid" if numbers is None else f"sample {numbers[n]}, dark is solid", fontsize=10)
        limit = float(np.quantile(np.abs(one.truth.gradients[n, drawn]), 0.998))
        for axes, gradient, title in (
            (simulated, one.truth.gradients[n, drawn], f"gradient of {COLOUR_NAMES[colours[drawn]]}, solver"),
            (predicted, one.gradients[n, drawn], f"network, cosine {cosine[n]:.2f}"),
        ):
            axes.imshow(gradient, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(title, fontsize=10)
        for axes in (density, simulated, predicted):
            axes.set(xticks=[], yticks=[])
        for values, marker, label in ((one.cosine, "o", "cosine"), (one.ratio, "x", "norm ratio")):
            for index, column in enumerate(mean(values, axis=1).T):
                colour = COLOUR_LINES[colours[index]]
                parts.plot(column, PARTS, marker, color=colour, label=label if index == drawn else None)
        parts.axvline(1, color="k", lw=0.5)
        parts.set(xlim=(min(0, parts.get_xlim()[0]), max(1.05, parts.get_xlim()[1])))
        parts.invert_yaxis()
        parts.grid(axis="y", alpha=0.3)
    rows[0, 3].legend(fontsize=8)
    return figure
