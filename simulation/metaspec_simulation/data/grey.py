"""Grey densities, as optimisers visit them on the way to a binary structure.

A network that has seen binary structures only takes a grey one for the nearest binary one, and inside features its gradient is
a third of the true one. Densities are multiples of 1/255, so that 8 bits hold them exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaspec_contract.structures import PIXELS, Structure
from metaspec_simulation.data.levels import LEVELS, as_levels

Floats = NDArray[np.floating[Any]]

_KINDS = {"projected": 0.55, "blurred": 0.12, "faded": 0.15, "partly": 0.08, "noise": 0.07, "uniform": 0.03}


def grey_density(rng: np.random.Generator, structure: Structure) -> NDArray[np.float32]:
    """Draw a density, float32 (128, 128), in multiples of 1/255.

    Most are latents behind the filter and the projection of `metaspec.topology`, at a steepness from 1 to 64; others are
    blurred, of low contrast, grey in one half, noise or uniform.

    Args:
        rng: random number generator.
        structure: binary structure (128, 128) that most of them are made of.
    """
    density: Floats
    kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
    if kind == "projected":
        density = _projected(_filtered(_latent(rng, structure), rng.uniform(3, 12)), np.exp(rng.uniform(0, np.log(64))))
    elif kind == "blurred":
        density = _filtered(structure, rng.uniform(3, 16))
    elif kind == "faded":  # between a uniform density and the structure
        level, contrast = rng.uniform(0, 1), rng.uniform(0.1, 0.95)
        density = level + contrast * (_filtered(structure, rng.uniform(1, 6)) - level)
    elif kind == "partly":  # grey where a mask is
        mask = _filtered(_field(rng, rng.uniform(20, 50)) > 0, 8)
        density = structure + mask * (rng.uniform(0.2, 0.8) - structure) * rng.uniform(0.3, 1)
    elif kind == "noise":
        size = int(rng.choice([1, 2, 4, 8]))
        spread, level = rng.uniform(0.1, 1), rng.uniform(0.2, 0.8)
        noise = level + spread * rng.uniform(-0.5, 0.5, size=(PIXELS // size, PIXELS // size))
        density = np.kron(noise, np.ones((size, size)))
    else:
        density = np.full((PIXELS, PIXELS), rng.uniform(0, 1))
    return as_levels(density).astype(np.float32) / np.float32(LEVELS)


def _latent(rng: np.random.Generator, structure: Structure) -> Floats:
    """A latent in [0, 1]: the start of an optimisation, or part of the way from there to a structure."""
    start = rng.uniform(0.2, 0.8) + rng.uniform(0.05, 0.6) * _field(rng, np.exp(rng.uniform(np.log(2), np.log(26))))
    way = rng.uniform(0, 1) if rng.random() < 0.7 else 0.0
    return np.clip(start + way * (structure - start), 0, 1)


def _field(rng: np.random.Generator, correlation: float) -> Floats:
    """A Gaussian random field of variance 1, periodic, (128, 128)."""
    field = ndimage.gaussian_filter(rng.standard_normal((PIXELS, PIXELS)), correlation / 2, mode="wrap")
    scaled: Floats = (field - field.mean()) / field.std()
    return scaled


def _filtered(density: NDArray[np.generic], radius: float) -> Floats:
    """The mean around every pixel, weighted by a cone of a radius in pixels, periodic (Bourdin 2001)."""
    distance = np.minimum(np.arange(PIXELS), PIXELS - np.arange(PIXELS))
    cone = np.maximum(0, 1 - np.hypot(distance[:, None], distance) / radius)
    transfer = np.fft.rfft2(cone / cone.sum())
    filtered: Floats = np.fft.irfft2(np.fft.rfft2(density.astype(np.float64)) * transfer, s=density.shape)
    return filtered


def _projected(density: Floats, beta: float, eta: float = 0.5) -> Floats:
    """The tanh projection of topology optimisation (Wang, Lazarov and Sigmund 2011)."""
    low, high = np.tanh(beta * eta), np.tanh(beta * (1 - eta))
    projected: Floats = (low + np.tanh(beta * (density - eta))) / (low + high)
    return projected
