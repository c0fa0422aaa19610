"""Structures unlike a network's training data: random ones of other kinds, and results of gradient ascent of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.families import without_small_features
from metaspec_training.designs import colour_bands, low_pass, smooth
from metaspec_training.networks.symmetric import SymmetricNetwork

Array = NDArray[Any]


def fields(rng: np.random.Generator, correlation: Array) -> Array:
    """Gaussian random fields of unit variance and correlation lengths in pixels (N,), (N, 128, 128)."""
    white = rng.standard_normal((len(correlation), PIXELS, PIXELS))
    kept = np.stack([low_pass(length) for length in correlation])
    field = np.fft.irfft2(np.fft.rfft2(white) * kept, s=(PIXELS, PIXELS))
    normalised: Array = field / field.std(axis=(1, 2), keepdims=True)
    return normalised


def cut(field: Array, fill: float) -> Array:
    """A structure with fill factor `fill`."""
    structure: Array = (field > np.quantile(field, 1 - fill)).astype(np.uint8)
    return structure


def fine_features(rng: np.random.Generator, count: int) -> Array:
    """Random fields of correlation lengths from 25 to 70 nm, where the first data sets have no feature below 78 nm."""
    correlation, fill = rng.uniform(1.5, 4.5, count), rng.uniform(0.25, 0.75, count)
    return np.stack([cut(field, share) for field, share in zip(fields(rng, correlation), fill, strict=True)])


def noise(rng: np.random.Generator, count: int) -> Array:
    """Squares of 1, 2 or 4 pixels, each randomly solid or void."""
    squares = [
        np.kron(rng.random((PIXELS // size,) * 2) < rng.uniform(0.3, 0.7), np.ones((size, size)))
        for size in rng.choice([1, 2, 4], count)
    ]
    return np.stack(squares).astype(np.uint8)


def extreme_fill(rng: np.random.Generator, count: int) -> Array:
    """Features as in the data sets, but 3 to 15 % solid or void, where random fields there have 25 to 75 %."""
    found: list[Array] = []
    while len(found) < count:
        share = rng.uniform(0.03, 0.15)
        fill = share if rng.random() < 0.5 else 1 - share
        one = without_small_features(cut(fields(rng, rng.uniform(8, 26, 1))[0], fill))
        if 0 < one.mean() < 1:
            found.append(one)
    return np.stack(found)


def ascend(
    network: SymmetricNetwork, starts: Array, penalty: float = 0.0, filtered: bool = False, steps: int = 40
) -> Array:
    """Structures from gradient ascent of the smallest predicted colour efficiency.

    Args:
        network: network that predicts.
        starts: starting latents (N, 128, 128); above 0 is solid.
        penalty: weight of the spread, mean over wavelengths; 0 uses one image only, as an optimiser would.
        filtered: whether to low-pass the gradient and remove small features at the end, for manufacturable designs.
        steps: steps of Adam, with increasingly binary density.
    """
    network.requires_grad_(False)
    bands = colour_bands(Process().wavelengths_nm)
    found = []
    for start in tqdm(starts, desc=f"ascent, {'filtered' if filtered else 'no filter'}, penalty {penalty:g}"):
        latent = torch.from_numpy(start).float().requires_grad_(True)
        optimizer = torch.optim.Adam([latent], lr=0.1)
        for step in range(steps):
            density = torch.sigmoid(4 * 12 ** (step / steps) * latent)[None, None]
            spectra = network(density)[0] if penalty else network.network(density)[0].flatten(0, 1)
            efficiency = (bands * spectra[:4]).sum(dim=(1, 2))
            value = -torch.logsumexp(-50 * efficiency, 0) / 50
            if penalty:
                value = value - penalty * spectra[4].mean()
            optimizer.zero_grad()
            (-value).backward()  # type: ignore[no-untyped-call]
            if filtered:
                latent.grad = smooth(latent.grad)
            optimizer.step()
        structure = (latent.detach().numpy() > 0).astype(np.uint8)
        found.append(without_small_features(structure) if filtered else structure)
    return np.stack(found)
