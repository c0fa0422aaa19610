"""Structures that a network was not trained on: unlike its data sets, or made by an optimiser to please it."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.families import without_small_features
from metaspec_training.designs import colour_bands, low_pass, smooth
from metaspec_training.networks.symmetric import SymmetricNetwork


def fields(rng: np.random.Generator, correlation: np.ndarray) -> np.ndarray:
    """Gaussian random fields of unit variance and correlation lengths in pixels (N,), (N, 128, 128)."""
    white = rng.standard_normal((len(correlation), PIXELS, PIXELS))
    kept = np.stack([low_pass(length) for length in correlation])
    field = np.fft.irfft2(np.fft.rfft2(white) * kept, s=(PIXELS, PIXELS))
    return field / field.std(axis=(1, 2), keepdims=True)


def cut(field: np.ndarray, fill: float) -> np.ndarray:
    """A structure of which a share `fill` is solid."""
    return (field > np.quantile(field, 1 - fill)).astype(np.uint8)


def fine_features(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random fields of correlation lengths from 25 to 70 nm, where the data sets have no feature below 78 nm."""
    correlation, fill = rng.uniform(1.5, 4.5, count), rng.uniform(0.25, 0.75, count)
    return np.stack([cut(field, share) for field, share in zip(fields(rng, correlation), fill, strict=True)])


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Squares of 1, 2 or 4 pixels, each solid or void by chance."""
    squares = [
        np.kron(rng.random((PIXELS // size,) * 2) < rng.uniform(0.3, 0.7), np.ones((size, size)))
        for size in rng.choice([1, 2, 4], count)
    ]
    return np.stack(squares).astype(np.uint8)


def extreme_fill(rng: np.random.Generator, count: int) -> np.ndarray:
    """Features as in the data sets, but 3 to 15 % solid or void, where random fields there have 25 to 75 %."""
    found: list[np.ndarray] = []
    while len(found) < count:
        share = rng.uniform(0.03, 0.15)
        fill = share if rng.random() < 0.5 else 1 - share
        one = without_small_features(cut(fields(rng, rng.uniform(8, 26, 1))[0], fill))
        if 0 < one.mean() < 1:
            found.append(one)
    return np.stack(found)


def ascend(
    network: SymmetricNetwork, starts: np.ndarray, penalty: float = 0.0, filtered: bool = False, steps: int = 40
) -> np.ndarray:
    """Structures that gradient ascent of the smallest predicted colour efficiency makes of latents (N, 128, 128).

    Args:
        network: whose predictions are exploited.
        starts: above 0 is solid.
        penalty: what each unit of spread, mean over wavelengths, costs; 0 takes one image alone, as an optimiser would.
        filtered: low-pass the gradient and remove small features at the end, as a design that can be made needs it.
        steps: of Adam, with a density that gets sharper.
    """
    network.requires_grad_(False)
    bands = colour_bands(len(Process().wavelengths_nm))
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
            (-value).backward()
            if filtered:
                latent.grad = smooth(latent.grad)
            optimizer.step()
        structure = (latent.detach().numpy() > 0).astype(np.uint8)
        found.append(without_small_features(structure) if filtered else structure)
    return np.stack(found)
