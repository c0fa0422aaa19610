"""Structures such as optimisers visit, to simulate and train on: random structures alone do not cover them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from metaspec_contract import files
from metaspec_contract.figures_of_merit import covered_colours, efficiency_weights
from metaspec_contract.process import Process, complete_process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.families import resampled, without_small_features
from metaspec_training.fit.checkpoint import Trained, read_checkpoint

_BATCH = 16  # at most


def make_designs(
    checkpoint: Path, out: Path, count: int = 256, seed: int = 0, steps: int = 24, process: Path | None = None
) -> None:
    """Optimise random structures for random colour-routing objectives by a network's gradient, and save them.

    Each start is a Gaussian random field, half of them symmetric about the diagonal. Its objective weighs the three colour
    efficiencies at random. Adam moves the field, which a smooth step turns into a density, sharper with every step. Both the
    result and the structure half-way are saved: an optimiser asks for the spectra of those, too.

    Args:
        checkpoint: checkpoint of the network.
        out: .npy file to write, uint8 (count, y, x); simulate it with `metaspec-simulate run --structures`.
        count: number of structures.
        seed: seed of starts and objectives.
        steps: steps of the optimiser.
        process: JSON file of the process, for a checkpoint that does not state it.

    Raises:
        ValueError: a file cannot be read, the process is unknown or contradicted, or a count below 2.
    """
    if count < 2 or steps < 2:
        raise ValueError(f"count and steps must be at least 2, got {count} and {steps}")
    trained = read_checkpoint(checkpoint)
    network = trained.network.requires_grad_(False)
    device = _process(checkpoint, trained, process)
    bands = colour_bands(device.wavelengths_nm)
    rng = np.random.default_rng([seed, 0x0DE5])
    found: list[NDArray[np.uint8]] = []
    size = min(_BATCH, count)
    with tqdm(total=count, unit="structure") as bar:
        while len(found) < count:
            latent = torch.from_numpy(_starts(rng, size)).requires_grad_(True)
            weight = torch.from_numpy(rng.dirichlet([1.5] * len(bands), size)).float()
            optimizer = torch.optim.Adam([latent], lr=0.15)
            for step in range(steps):
                density = torch.sigmoid(4.0 * math.exp(2.5 * step / steps) * latent).unsqueeze(1)
                spectra = network(density).flatten(1, 2)
                efficiency = torch.einsum("ncw,kcw->nk", spectra, bands)
                optimizer.zero_grad()
                (-(weight * efficiency).sum()).backward()
                # Only what the shortest feature allows: light does not resolve the fine structure of the gradient.
                latent.grad = smooth(latent.grad)
                optimizer.step()
                if step in (steps // 2, steps - 1):
                    binary = (latent.detach().numpy() > 0).astype(np.uint8)
                    usable = [without_small_features(one) for one in binary]
                    found += [one for one in usable if 0 < one.mean() < 1]
            bar.update(min(count, len(found)) - bar.n)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_array(out, np.stack([resampled(one, device.pixels) for one in found[:count]]))
    print(f"{count} structures in {out}")


def _process(checkpoint: Path, trained: Trained, file: Path | None) -> Process:
    """The process of a checkpoint, or that of a file where the checkpoint states none."""
    stated = None if trained.provenance is None else trained.provenance.process
    if file is None:
        if stated is None:
            raise ValueError(f"{checkpoint} does not state its process: give it with --process FILE.json")
        return stated
    try:
        given = complete_process(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if stated is not None and (difference := stated.difference(given)):
        raise ValueError(f"{checkpoint} and {file} are of different processes: {difference}")
    return given


def colour_bands(wavelengths_nm: NDArray[np.float64]) -> Tensor:
    """Weights on spectra (4, W) that sum up to the efficiencies of R, G and B: float32 (3, 4, W).

    Colours whose band the wavelengths do not reach are left out.

    Raises:
        ValueError: they reach none.
    """
    colours = covered_colours(wavelengths_nm)
    if not colours:
        first, last = wavelengths_nm[0], wavelengths_nm[-1]
        raise ValueError(
            f"no colour has its band between {first:g} and {last:g} nm: there is no efficiency to optimise"
        )
    return torch.from_numpy(np.stack([efficiency_weights(colour, wavelengths_nm) for colour in colours])).float()


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
    """A gradient (..., 128, 128) without details finer than the shortest feature."""
    assert gradient is not None
    kept = torch.from_numpy(low_pass(6.0)).float()
    return torch.fft.irfft2(torch.fft.rfft2(gradient) * kept, s=gradient.shape[-2:])


def low_pass(correlation: float) -> NDArray[np.float64]:
    """Gaussian low-pass filter of a correlation length in pixels, on the grid of `rfft2`."""
    k, half = 2 * np.pi * np.fft.fftfreq(PIXELS), 2 * np.pi * np.fft.rfftfreq(PIXELS)
    return np.exp(-(k[:, None] ** 2 + half**2) * correlation**2 / 4)
