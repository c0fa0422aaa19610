"""Structures that a network was not trained on: unlike its data sets, or made by an optimiser to please it."""

from __future__ import annotations

import numpy as np
import torch
from metaspec_simulation import PIXELS, Process
from metaspec_simulation.merit import COLOURS
from metaspec_simulation.structures import without_small_features
from metaspec_training.symmetric import SymmetricNetwork
from tqdm import tqdm


def fields(rng: np.random.Generator, correlation: np.ndarray) -> np.ndarray:
    """Gaussian random fields of unit variance and correlation lengths in pixels (N,), (N, 128, 128)."""
    k = 2 * np.pi * np.fft.fftfreq(PIXELS)
    low_pass = np.exp(-(k[:, None] ** 2 + k**2) * correlation[:, None, None] ** 2 / 4)
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((len(correlation), PIXELS, PIXELS))) * low_pass).real
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
    bands = torch.from_numpy(_bands())
    k = 2 * np.pi * np.fft.fftfreq(PIXELS)
    low_pass = torch.from_numpy(np.exp(-(k[:, None] ** 2 + k**2) * 6**2 / 4)).float()
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
                assert latent.grad is not None
                latent.grad = torch.fft.ifft2(torch.fft.fft2(latent.grad) * low_pass).real
            optimizer.step()
        structure = (latent.detach().numpy() > 0).astype(np.uint8)
        found.append(without_small_features(structure) if filtered else structure)
    return np.stack(found)


def _bands() -> np.ndarray:
    """What spectra (4, W) are multiplied with and summed for the efficiency of each colour: (3, 4, W)."""
    wavelengths = Process().wavelengths_nm
    bands = np.zeros((len(COLOURS), 4, len(wavelengths)), np.float32)
    for row, ((low, high), detectors) in enumerate(COLOURS.values()):
        inside = (wavelengths >= low) & (wavelengths < high)
        bands[row, list(detectors)] = inside / inside.sum()
    return bands
