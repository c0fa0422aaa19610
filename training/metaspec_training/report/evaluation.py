"""Evaluation of a network on unseen structures: errors, trivial predictors, symmetric images, distance to training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency, covered_colours
from metaspec_contract.process import Process
from metaspec_contract.structures import Symmetry
from metaspec_simulation.dataset import Samples
from metaspec_training.fit.loss import AdaptiveSpectralLoss, merge_greens
from metaspec_training.networks.symmetric import D4

Array = NDArray[np.float32]

PLATEAU = 0.95
"""Share of the mean spectrum's error that a network's must be below. Those that have not left the plateau on which training
starts have between that and all of it (`docs/training.md`, "The seven improvements")."""


@dataclass(frozen=True)
class Errors:
    """Errors of predicted against simulated efficiencies over a split.

    Attributes:
        mae: mean absolute error over structures, detectors and wavelengths.
        rms: root mean square error over the same.
        mae_by_detector: mean absolute error of R, G1, G2 and B.
        r2: share of the variance between structures that is explained.
        loss: loss with weights 2, 0.1, 100, 0.
        colour_efficiency: mean absolute error of the efficiencies of red, green (G1 + G2) and blue, of those whose band the
            wavelengths reach; None if they reach none.
        peak_nm: median absolute error of the wavelength at which a detector's spectrum is highest, in nm.
    """

    mae: float
    rms: float
    mae_by_detector: dict[str, float]
    r2: float
    loss: float
    colour_efficiency: float | None
    peak_nm: float


def errors(prediction: Array, target: Array, process: Process) -> Errors:
    """Errors of predictions (N, 4, W) against simulations (N, 4, W) of a process."""
    wavelengths = process.wavelengths_nm
    error = prediction - target
    loss = AdaptiveSpectralLoss()(*(torch.from_numpy(x).unflatten(1, (2, 2)) for x in (prediction, target)))
    covered = covered_colours(wavelengths)
    colours = [colour_efficiency(x, wavelengths, colours=covered) for x in (prediction, target)]
    peaks = [wavelengths[x.argmax(axis=-1)] for x in (prediction, target)]
    return Errors(
        mae=float(np.abs(error).mean()),
        rms=float(np.sqrt((error**2).mean())),
        mae_by_detector={name: float(np.abs(error[:, i]).mean()) for i, name in enumerate(CHANNELS)},
        r2=float(1 - (error**2).sum() / ((target - target.mean(axis=0)) ** 2).sum()),
        loss=float(loss.total),
        colour_efficiency=float(np.abs(colours[0] - colours[1]).mean()) if covered else None,
        peak_nm=float(np.median(np.abs(peaks[0] - peaks[1]))),
    )


def predict(
    network: nn.Module,
    structures: NDArray[Any],
    batch_size: int = 32,
    device: str = "cpu",
    conditions: Mapping[str, Array] | None = None,
) -> Array:
    """Spectra (N, 4, W) of structures or densities (N, 128, 128), in float32; (N, 5, W) by a `SymmetricNetwork`.

    Args:
        network: network, which is moved to the device.
        structures: structures or densities, (N, 128, 128).
        batch_size: number of structures at a time.
        device: device to compute on, as torch names it.
        conditions: values of the network's conditions by name, (N, size); the defaults without.
    """
    network.eval().to(device)
    parts = []
    starts = range(0, len(structures), batch_size)
    with torch.inference_mode():
        for start in tqdm(starts, "predicting", unit="batch", delay=2.0, leave=False, disable=None):
            rows = slice(start, start + batch_size)
            batch = np.ascontiguousarray(structures[rows, None], np.float32)
            given = {name: torch.from_numpy(values[rows]).to(device) for name, values in (conditions or {}).items()}
            parts.append(network(torch.from_numpy(batch).to(device), **given).flatten(1, -2).cpu())
    return torch.cat(parts).numpy()


def predict_images(
    network: nn.Module,
    structures: NDArray[Any],
    batch_size: int = 32,
    device: str = "cpu",
    images: Sequence[Symmetry] = D4,
) -> Array:
    """Spectra predicted from every image and mapped back: (N, 128, 128) to (images, N, 4, W). Exact ones would be equal.

    Arguments are those of `predict`, and the symmetries; default: all 8 of the square.
    """
    predicted = []
    for symmetry in images:
        back = np.argsort(symmetry.channels)
        predicted.append(predict(network, symmetry.apply(structures), batch_size, device)[:, back])
    return np.stack(predicted)


GREENS_TOGETHER = tuple(symmetry for symmetry in D4 if {*symmetry.channels[1:3]} == {1, 2})
"""Symmetries that exchange green with green only: those that a network that was taught the mean of G1 and G2 can be held to."""


def with_merged_greens(prediction: Array) -> Array:
    """Spectra (..., 4, W) with the mean of G1 and G2 in the place of both."""
    return merge_greens(torch.from_numpy(prediction).unflatten(-2, (2, 2))).flatten(-3, -2).numpy()


def mean_spectrum(samples: Samples, split: str) -> Array:
    """Mean of the spectra of a split, (4, W)."""
    wanted = (samples.split == split)[:, None, None]
    mean: Array = samples.spectra.mean(axis=0, dtype=np.float64, where=wanted).astype(np.float32)
    return mean


def uselessness(mae: float, of_mean_spectrum: float) -> str | None:
    """A warning of a network that has learnt hardly more than the mean spectrum, None for a better one.

    Args:
        mae: mean absolute error of the network.
        of_mean_spectrum: that of the mean spectrum of the training data, on the same structures.
    """
    if mae < PLATEAU * of_mean_spectrum:
        return None
    return (
        f"This network is useless: its mean absolute error, {mae:.4f}, is not clearly below that of the mean spectrum of the "
        f"training data, {of_mean_spectrum:.4f}. Train it for longer, and do not design with it."
    )


def nearest_predictor(train: Samples, test: Samples) -> Array:
    """For every structure, the spectrum of the training structure that differs in the fewest pixels."""
    ours = _signs(test)
    most, nearest = np.full(len(test), -np.inf), np.zeros(len(test), np.intp)
    for start, block in _blocks(train):
        alike = ours @ _signs(block).T
        best = alike.argmax(axis=1)
        equal = np.take_along_axis(alike, best[:, None], axis=1)[:, 0]
        nearest = np.where(equal > most, start + best, nearest)
        most = np.maximum(most, equal)
    return train.spectra[nearest]


def distance_to_training(train: Samples, test: Samples, orders: int = 8) -> Array:
    """Distance of each test structure from the nearest training structure, (N,).

    It is the distance of the moduli of the Fourier coefficients up to `orders`: what light of these wavelengths resolves of
    a structure, wherever it lies. Mirror images and rotations count as the same structure.
    """
    flat = np.concatenate([_moduli(block.structures, orders).reshape(len(block), -1) for _, block in _blocks(test)])
    nearest = np.full(len(flat), np.inf)
    for _, block in _blocks(train):
        theirs = _moduli(block.structures, orders)
        mirrored = theirs[:, :, ::-1]
        for image in (theirs, theirs.swapaxes(1, 2), mirrored, mirrored.swapaxes(1, 2)):
            other = image.reshape(len(image), -1)
            squared = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * flat @ other.T
            nearest = np.minimum(nearest, squared.min(axis=1))
    return np.sqrt(np.maximum(nearest, 0)).astype(np.float32)


def _blocks(samples: Samples, size: int = 1024) -> Iterator[tuple[int, Samples]]:
    """Consecutive samples, `size` at a time, each block with the number of its first one."""
    for start in range(0, len(samples), size):
        yield start, samples.take(np.arange(start, min(start + size, len(samples))))


def _signs(samples: Samples) -> Array:
    """Structures as -1 and 1, float32 (N, pixels): the product of two counts equal pixels less different ones."""
    signs: Array = 2 * samples.structures.reshape(len(samples), -1).astype(np.float32) - 1
    return signs


def _moduli(structures: NDArray[Any], orders: int) -> NDArray[np.float64]:
    """Moduli of the Fourier coefficients of orders -orders..orders along both axes: (N, 2 orders + 1, 2 orders + 1)."""
    around = np.arange(-orders, orders + 1)
    coefficients = np.fft.fft2(structures.astype(np.float32), norm="forward")
    return np.abs(coefficients[:, around[:, None], around])
