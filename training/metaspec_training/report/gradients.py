"""Agreement of a network's gradient with the solver's, which is exact: direction and size, by spatial frequency and region.

What an optimiser follows is not the error of the spectra but this. The solver's gradients are kept on disk, named by a hash of
all that they depend on, so none is computed twice and none is out of date.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from metaspec_contract import files
from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES, COLOURS
from metaspec_contract.figures_of_merit import covered_colours, efficiency_weights
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.physics import solver as solver_module
from metaspec_training.report.evaluation import with_merged_greens

Array = NDArray[np.floating]

GREY_RADIUS_NM, GREY_BETA = 120.0, 4.0
"""Filter and projection of `grey`: about a quarter of the pixels of random structures then lie between 0.05 and 0.95."""

DECAY = 1e-3
"""Share of the energy at which the solver's runs end here. They are several times shorter than by its default. On
two structures at 48 cells, the cosine with gradients of the default was above .9997 in every part, the norm within .003."""

BANDS = (0, 4, 8, 24, math.inf)
"""Edges of the bands of spatial frequency, in orders: periods per cell."""

_BANDS = tuple(f"orders {low} to {high}" if high < math.inf else f"orders from {low}" for low, high in pairwise(BANDS))
PARTS = ("all pixels", *_BANDS, "edges", "inside solid", "inside void")
"""Parts of a gradient that are compared: all of it, its bands of spatial frequency, its pixels by region."""


@dataclass(frozen=True)
class Truth:
    """What the solver says about N densities.

    Attributes:
        densities: densities, float32 (N, y, x).
        spectra: simulated efficiencies, float32 (N, 4, W).
        gradients: gradients of the efficiencies of the colours with respect to the density, for a whole cell of it
            (as many times that of a pixel as it has pixels), float32 (N, colours, y, x).
        colours: the colours: those whose band the wavelengths reach.
    """

    densities: Array
    spectra: Array
    gradients: Array
    colours: tuple[str, ...] = COLOURS


@dataclass(frozen=True)
class Comparison:
    """Gradients of a network beside those of the solver.

    Attributes:
        truth: densities, and what the solver says about them.
        gradients: the network's gradients, like those of the truth, float32 (N, colours, y, x).
        spectra_error: mean absolute error of the network's spectra, (N,).
        share: share of each part in the power of the solver's gradient, (PARTS, N, colours).
        cosine: cosine of both gradients in each part, (PARTS, N, colours); NaN where one of them is zero.
        ratio: norm of the network's gradient over that of the solver's, (PARTS, N, colours); NaN where the solver's is zero.
    """

    truth: Truth
    gradients: Array
    spectra_error: Array
    share: Array
    cosine: Array
    ratio: Array

    @property
    def slope(self) -> Array:
        """Slope of the regression of the network's gradient on the solver's, without intercept, (PARTS, N, colours)."""
        return self.cosine * self.ratio


def efficiencies(process: Process) -> NDArray[np.float64]:
    """Weights on spectra that sum up to the efficiencies of the colours whose band the wavelengths reach, (colours, 4, W).

    Raises:
        ValueError: they reach none.
    """
    wavelengths = process.wavelengths_nm
    colours = covered_colours(wavelengths)
    if not colours:
        raise ValueError(
            "gradients are compared for the efficiencies of red, green and blue, and no wavelength from "
            f"{wavelengths[0]:g} to {wavelengths[-1]:g} nm lies in the band of one of them"
        )
    return np.stack([efficiency_weights(colour, wavelengths) for colour in colours])


def by_family(family: NDArray[np.str_], count: int) -> NDArray[np.intp]:
    """Indices of `count` structures, or all if there are fewer: the first of each family, then the second, and so on."""
    place = np.empty(len(family), np.intp)
    for name in np.unique(family):
        place[family == name] = np.arange(np.count_nonzero(family == name))
    return np.argsort(place, kind="stable")[:count]


def grey(structures: NDArray[np.uint8], process: Process) -> NDArray[np.float32]:
    """Densities as an optimiser visits them on the way to a structure: filtered by a cone, then projected by tanh.

    Filter: B. Bourdin, Int. J. Numer. Methods Eng. 50, 2143 (2001); projection: F. Wang, B. S. Lazarov and O. Sigmund, Struct.
    Multidiscip. Optim. 43, 767 (2011).

    Args:
        structures: structures, (N, y, x).
        process: process, for the width of a pixel.
    """
    pixels = process.pixels
    distance = np.minimum(np.arange(pixels), pixels - np.arange(pixels)) * process.pixel_nm
    cone = np.maximum(0, 1 - np.hypot(distance[:, None], distance) / GREY_RADIUS_NM)
    filtered = np.fft.irfft2(np.fft.rfft2(structures) * np.fft.rfft2(cone / cone.sum()), s=process.structure_shape)
    projected = 0.5 + np.tanh(GREY_BETA * (filtered - 0.5)) / (2 * np.tanh(GREY_BETA / 2))
    density: NDArray[np.float32] = projected.clip(0, 1).astype(np.float32)
    return density


def gradient_solver(process: Process, cells: int, threads: int = 2) -> Solver:
    """A solver that is as exact as this comparison needs."""
    return Solver(process, cells, decay=DECAY, threads=threads)


def solver_truth(solver: Solver, densities: NDArray[Any], folder: Path) -> Truth:
    """Spectra and gradients of the solver, from `folder` where they are there already; otherwise with a progress bar.

    Interrupted, it goes on where it was: each density has its own files, of 100 KiB. They are named by the SHA-256 of density,
    process, grid, bounds, objectives and the source code of the solver. A damaged file is computed again.

    Args:
        solver: solver to ask.
        densities: densities, (N, y, x).
        folder: folder of the files; it is made if it does not exist.
    """
    weights = efficiencies(solver.process)
    exact = np.ascontiguousarray(densities, np.float32)
    keys = [_key(solver, weights, density) for density in exact]
    shapes = weights.shape[1:], (len(weights), *exact.shape[1:])
    found = {key: one for key in keys if (one := _read(folder, key, *shapes)) is not None}
    missing = {key: density for key, density in zip(keys, exact, strict=True) if key not in found}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for key, density in tqdm(missing.items(), desc="gradients by the solver", unit="structure"):
            simulation, gradients = solver.gradient(density, weights)
            by_area = (gradients * density.size).astype(np.float16)
            spectra_file, gradients_file = _files(folder, key)
            files.write_array(spectra_file, simulation.spectra)
            files.write_array(gradients_file, by_area)
            found[key] = simulation.spectra, by_area
    spectra, by_density = zip(*(found[key] for key in keys), strict=True)
    colours = covered_colours(solver.process.wavelengths_nm)
    return Truth(exact, np.stack(spectra), np.stack(by_density).astype(np.float32), colours)


def compare(
    network: nn.Module, truth: Truth, process: Process, merged_greens: bool = False, batch_size: int = 4
) -> Comparison:
    """Compare a network's gradients and spectra with the solver's.

    Args:
        network: network, in evaluation mode.
        truth: densities, and what the solver says about them.
        process: process of both.
        merged_greens: whether only the mean of G1 and G2 counts in the error of the spectra.
        batch_size: number of densities at a time.
    """
    network.eval()
    weights = torch.from_numpy(efficiencies(process)).float()
    spectra, gradients = [], []
    for batch in torch.from_numpy(truth.densities[:, None]).split(batch_size):
        density = batch.clone().requires_grad_(True)
        predicted = network(density).flatten(1, -2)[:, : len(CHANNELS)]
        sums = torch.einsum("ncw,kcw->k", predicted, weights)
        by_density = [torch.autograd.grad(one, density, retain_graph=True)[0][:, 0] for one in sums]
        gradients.append(torch.stack(by_density, dim=1) * density[0].numel())
        spectra.append(predicted.detach())
    both = torch.cat(spectra).numpy(), truth.spectra
    ours, theirs = (with_merged_greens(one) for one in both) if merged_greens else both
    error = np.abs(ours - theirs).mean(axis=(1, 2))
    return agreement(torch.cat(gradients).numpy(), truth, error)


def agreement(gradients: Array, truth: Truth, spectra_error: Array) -> Comparison:
    """Agreement of gradients (N, colours, y, x) with the solver's, in every part."""
    ours, theirs = _parts(gradients, truth.densities), _parts(truth.gradients, truth.densities)
    product, power, exact = (
        np.einsum("pnkyx,pnkyx->pnk", a, b) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(exact > 0, np.sqrt(power / exact), np.nan)
        cosine = np.where((exact > 0) & (power > 0), product / np.sqrt(power * exact), np.nan)
        share = exact / exact[0]
    return Comparison(truth, gradients, spectra_error, share, cosine, ratio)


def mean(values: Array, axis: int | tuple[int, ...]) -> Array:
    """The mean over `axis` of what is not NaN; NaN where nothing else is there."""
    averaged: Array = np.ma.masked_invalid(values).mean(axis=axis)
    return np.ma.filled(averaged, np.nan)


def document(comparison: Comparison) -> dict[str, Any]:
    """Means over the structures, by part and colour, for JSON; None where a part is nowhere present."""

    def by_colour(values: Array) -> dict[str, float | None]:
        means = mean(values, axis=0)
        colours = comparison.truth.colours
        return {colour: None if np.isnan(one) else float(one) for colour, one in zip(colours, means, strict=True)}

    names = ("share", "cosine", "ratio", "slope")
    return {
        "structures": len(comparison.truth.densities),
        "spectra_mae": float(comparison.spectra_error.mean()),
        "parts": {
            part: {name: by_colour(getattr(comparison, name)[index]) for name in names}
            for index, part in enumerate(PARTS)
        },
    }


def table(comparisons: Mapping[str, Comparison]) -> list[list[str]]:
    """Rows of text, the first of which is the head: means over structures and colours of each comparison's parts.

    Args:
        comparisons: comparisons by name, of the same colours.
    """
    head = ["part of the gradient"]
    colours = next(iter(comparisons.values())).truth.colours
    rows = [[part] for part in PARTS] + [[f"all pixels, {COLOUR_NAMES[colour]}"] for colour in colours]
    for name, one in comparisons.items():
        head += [f"{name}: share", "cosine", "norm ratio"]
        for column in (one.share, one.cosine, one.ratio):
            values = [*mean(column, axis=(1, 2)), *mean(column[0], axis=0)]
            for row, value in zip(rows, values, strict=True):
                row.append("" if np.isnan(value) else f"{value:.2f}")
    return [head, *rows]


def _parts(gradients: Array, densities: Array) -> Array:
    """The parts of gradients (N, C, 128, 128), (PARTS, N, C, 128, 128). Regions are those of the density cut at 0.5."""
    frequency = np.fft.fftfreq(densities.shape[-1], 1 / densities.shape[-1])
    order = np.hypot(frequency[:, None], frequency)
    spectrum = np.fft.fft2(gradients.astype(np.float64))
    bands = [np.fft.ifft2(spectrum * ((order >= low) & (order < high))).real for low, high in pairwise(BANDS)]
    solid = densities > 0.5
    neighbours = (np.roll(solid, step, axis) for axis in (-2, -1) for step in (-1, 1))
    edge = np.any([solid != neighbour for neighbour in neighbours], axis=0)
    regions = [gradients * region[:, None] for region in (edge, solid & ~edge, ~solid & ~edge)]
    return np.stack([gradients.astype(np.float64), *bands, *regions])


def _key(solver: Solver, weights: Array, density: Array) -> str:
    settings = {
        "process": solver.process.model_dump(mode="json"),
        "cells": solver.grid.cells,
        "decay": solver.decay,
        "longest": solver.longest,
        "source": _solver_source(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(weights.tobytes())
    digest.update(density.tobytes())
    return digest.hexdigest()[:32]


@functools.cache
def _solver_source() -> str:
    """SHA-256 of the source code of the solver: what another version of it computed is not taken for its own."""
    digest = hashlib.sha256()
    for file in sorted(Path(solver_module.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}-spectra.npy", folder / f"{key}-gradients.npy"


def _read(
    folder: Path, key: str, spectra_shape: tuple[int, ...], gradients_shape: tuple[int, ...]
) -> tuple[Array, Array] | None:
    """Spectra and gradients of one density, or None if they are not there or damaged."""
    try:
        spectra, gradients = (files.read_array(file) for file in _files(folder, key))
    except ValueError:
        return None
    if spectra.shape != spectra_shape or gradients.shape != gradients_shape:
        return None
    return spectra, gradients
