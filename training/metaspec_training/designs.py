"""Structures as optimisers make them, to simulate and train on: where a surrogate is used is not where random ones lie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from metaspec_contract.detectors import COLOURS
from metaspec_contract.figures_of_merit import efficiency_weights
from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.families import without_small_features
from metaspec_training.fit.module import load_network

_BATCH = 16


def make_designs(checkpoint: Path, out: Path, count: int = 256, seed: int = 0, steps: int = 24) -> None:
    """Optimise random structures for random colour-routing objectives by a network's gradient, and save them.

    Each start is a Gaussian random field, half of them symmetric about the diagonal. Its objective weighs the three colour
    efficiencies at random. Adam moves the field, which a smooth step turns into a density, sharper with every step. Both the
    result and the structure half-way are saved: an optimiser asks for the spectra of those, too.

    Args:
        checkpoint: of the network.
        out: .npy file to write, uint8 (count, 128, 128); simulate it with `metaspec-simulate run --structures`.
        count: structures.
        seed: of starts and objectives.
        steps: of the optimiser.

    Raises:
        ValueError: the checkpoint cannot be read, or a count below 2.
    """
    if count < 2 or steps < 2:
        raise ValueError(f"count and steps must be at least 2, got {count} and {steps}")
    network = load_network(checkpoint).requires_grad_(False)
    bands = colour_bands(int(network(torch.zeros(1, 1, PIXELS, PIXELS)).shape[-1]))
    rng = np.random.default_rng([seed, 0x0DE5])
    found: list[NDArray[np.uint8]] = []
    with tqdm(total=count, unit="structure") as bar:
        while len(found) < count:
            latent = torch.from_numpy(_starts(rng, _BATCH)).requires_grad_(True)
            weight = torch.from_numpy(rng.dirichlet((1.5, 1.5, 1.5), _BATCH)).float()
            optimizer = torch.optim.Adam([latent], lr=0.15)
            for step in range(steps):
                density = torch.sigmoid(4.0 * math.exp(2.5 * step / steps) * latent).unsqueeze(1)
                spectra = network(density).flatten(1, 2)
                efficiency = torch.einsum("ncw,kcw->nk", spectra, bands)
                optimizer.zero_grad()
                (-(weight * efficiency).sum()).backward()
                # Only what the shortest feature allows: the gradient's fine structure makes no difference to light.
                latent.grad = smooth(latent.grad)
                optimizer.step()
                if step in (steps // 2, steps - 1):
                    binary = (latent.detach().numpy() > 0).astype(np.uint8)
                    usable = [without_small_features(one) for one in binary]
                    found += [one for one in usable if 0 < one.mean() < 1]
            bar.update(min(count, len(found)) - bar.n)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, np.stack(found[:count]))
    print(f"{count} structures in {out}")


def colour_bands(wavelengths_nm: NDArray[np.float64]) -> Tensor:
    """What spectra (4, W) are multiplied with and summed for each colour's efficiency: float32 (3, 4, W)."""
    return torch.from_numpy(np.stack([efficiency_weights(colour, wavelengths_nm) for colour in COLOURS])).float()


def _starts(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Smooth random fields of unit variance, (count, 128, 128)."""
    fields = []
    for n in range(count):
        noise = rng.standard_normal((PIXELS, PIXELS))
        start = np.fft.irfft2(np.fft.rfft2(noise) * low_pass(rng.uniform(8, 20)), s=noise.shape)
        if n % 2:
            start = start + start.T
        fields.append(start / start.std())
    return np.stack(fields).astype(np.float32)


def smooth(gradient: Tensor | None) -> Tensor:
    """A gradient (..., 128, 128) without what is finer than the shortest feature."""
    assert gradient is not None
    kept = torch.from_numpy(low_pass(6.0)).float()
    return torch.fft.irfft2(torch.fft.rfft2(gradient) * kept, s=gradient.shape[-2:])


def low_pass(correlation: float) -> NDArray[np.float64]:
    """Gaussian low-pass of a correlation length in pixels, on the grid of `rfft2`."""
    k, half = 2 * np.pi * np.fft.fftfreq(PIXELS), 2 * np.pi * np.fft.rfftfreq(PIXELS)
    return np.exp(-(k[:, None] ** 2 + half**2) * correlation**2 / 4)
