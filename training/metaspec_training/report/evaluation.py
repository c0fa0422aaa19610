"""Evaluation of a network on unseen structures: errors, trivial predictors, symmetric images, distance to training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_simulation.dataset import Samples
from metaspec_training.fit.loss import AdaptiveSpectralLoss, merge_greens
from metaspec_training.networks.symmetric import D4

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Errors:
    """Errors of predicted against simulated efficiencies over a split.

    Attributes:
        mae: mean absolute error over structures, detectors and wavelengths.
        rms: root mean square error over the same.
        mae_by_detector: mean absolute error of R, G1, G2 and B.
        r2: share of the variance between structures that is explained.
        loss: loss with weights 2, 0.1, 100, 0.
        colour_efficiency: mean absolute error of the efficiencies of red, green (G1 + G2) and blue.
        peak_nm: median absolute error of the wavelength at which a detector's spectrum is highest, in nm.
    """

    mae: float
    rms: float
    mae_by_detector: dict[str, float]
    r2: float
    loss: float
    colour_efficiency: float
    peak_nm: float


def errors(prediction: Array, target: Array, process: Process) -> Errors:
    """Errors of predictions (N, 4, W) against simulations (N, 4, W) of a process."""
    wavelengths = process.wavelengths_nm
    error = prediction - target
    loss = AdaptiveSpectralLoss()(*(torch.from_numpy(x).unflatten(1, (2, 2)) for x in (prediction, target)))
    colours = [colour_efficiency(x, wavelengths) for x in (prediction, target)]
    peaks = [wavelengths[x.argmax(axis=-1)] for x in (prediction, target)]
    return Errors(
        mae=float(np.abs(error).mean()),
        rms=float(np.sqrt((error**2).mean())),
        mae_by_detector={name: float(np.abs(error[:, i]).mean()) for i, name in enumerate(CHANNELS)},
        r2=float(1 - (error**2).sum() / ((target - target.mean(axis=0)) ** 2).sum()),
        loss=float(loss.total),
        colour_efficiency=float(np.abs(colours[0] - colours[1]).mean()),
        peak_nm=float(np.median(np.abs(peaks[0] - peaks[1]))),
    )


def predict(network: nn.Module, structures: NDArray[Any], batch_size: int = 32) -> Array:
    """Spectra (N, 4, W) of structures or densities (N, 128, 128), in float32; (N, 5, W) by a `SymmetricNetwork`."""
    network.eval()
    density = torch.from_numpy(np.ascontiguousarray(structures[:, None], np.float32))
    with torch.inference_mode():
        parts = [network(batch).flatten(1, -2) for batch in density.split(batch_size)]
    return torch.cat(parts).numpy()


def predict_images(network: nn.Module, structures: NDArray[Any]) -> Array:
    """Spectra predicted from every image under D4 and mapped back: (N, 128, 128) to (8, N, 4, W). Exact ones would be equal."""
    images = []
    for symmetry in D4:
        back = np.argsort(symmetry.channels)
        images.append(predict(network, symmetry.apply(structures))[:, back])
    return np.stack(images)


def with_merged_greens(prediction: Array) -> Array:
    """Spectra (..., 4, W) with the mean of G1 and G2 in the place of both."""
    return merge_greens(torch.from_numpy(prediction).unflatten(-2, (2, 2))).flatten(-3, -2).numpy()


def mean_predictor(train: Samples, test: Samples) -> Array:
    """For every structure, the mean spectrum of the training split."""
    return np.broadcast_to(train.spectra.mean(axis=0), test.spectra.shape).copy()


def nearest_predictor(train: Samples, test: Samples) -> Array:
    """For every structure, the spectrum of the training structure that differs in the fewest pixels."""
    ours, theirs = (2.0 * s.structures.reshape(len(s), -1).astype(np.float32) - 1 for s in (test, train))
    return train.spectra[(ours @ theirs.T).argmax(axis=1)]


def distance_to_training(train: Samples, test: Samples, orders: int = 8) -> Array:
    """Distance of each test structure from the nearest training structure, (N,).

    It is the distance of the moduli of the Fourier coefficients up to `orders`: what light of these wavelengths resolves of
    a structure, wherever it lies. Mirror images and rotations count as the same structure.
    """
    ours, theirs = _moduli(test.structures, orders), _moduli(train.structures, orders)
    mirrored = theirs[:, :, ::-1]
    images = (theirs, theirs.swapaxes(1, 2), mirrored, mirrored.swapaxes(1, 2))
    flat = ours.reshape(len(ours), -1)
    nearest = np.full(len(ours), np.inf)
    for image in images:
        other = image.reshape(len(image), -1)
        squared = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * flat @ other.T
        nearest = np.minimum(nearest, squared.min(axis=1))
    return np.sqrt(np.maximum(nearest, 0)).astype(np.float32)


def _moduli(structures: NDArray[Any], orders: int) -> NDArray[np.float64]:
    """Moduli of the Fourier coefficients of orders -orders..orders along both axes: (N, 2 orders + 1, 2 orders + 1)."""
    around = np.arange(-orders, orders + 1)
    coefficients = np.fft.fft2(structures.astype(np.float32), norm="forward")
    return np.abs(coefficients[:, around[:, None], around])
