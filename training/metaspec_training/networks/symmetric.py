"""Averaging over symmetric images: mean prediction, and its spread as an uncertainty.

The symmetries of the square only permute the exact spectra (`metaspec_contract.structures.Symmetry`). A network learns that
from examples, and obeys it where it has learnt well: where its predictions of a structure and of its images contradict each
other, at most one of them is right. Half-period shifts are as exact but add no information: a network whose strides divide
half a period obeys them by construction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.structures import Symmetry, symmetries
from metaspec_training.networks.layers import conditions_of

D4 = tuple(symmetries())[:8]
"""The symmetries of the square, the identity first."""

GROUPS = {
    2: (Symmetry(), Symmetry(flip_columns=True)),
    4: tuple(symmetry for symmetry in D4 if not symmetry.transpose),
    8: D4,
}
"""Images by their number. Each set is a group, so that mean and spread are themselves symmetric under it."""

DEFAULT_IMAGES = 4

_FLOOR = 1e-5  # smallest spread: keeps its gradient finite where all images agree
_SCALE = 256.0  # squares of small deviations are too small for float16


class SymmetricNetwork(nn.Module):
    """Density (B, 1, y, x) to the mean efficiencies of R, G1, G2, B and their spread, (B, 5, wavelengths).

    The spread at a wavelength is the root mean square, over images and detectors, of the deviation from the mean.

    Args:
        network: network from density (B, 1, y, x) to efficiencies (B, 2, 2, wavelengths).
        images: number of images, one of `GROUPS`.

    Raises:
        ValueError: another number of images.
    """

    back: Tensor

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        if images not in GROUPS:
            raise ValueError(f"images must be one of {', '.join(map(str, GROUPS))}, got {images}")
        self.network = network
        self.conditions = conditions_of(network)
        self.images = GROUPS[images]
        back = [np.eye(len(CHANNELS))[:, list(symmetry.channels)] for symmetry in self.images]
        self.register_buffer("back", torch.tensor(np.stack(back), dtype=torch.float32), persistent=False)

    def forward(self, density: Tensor, **conditions: Tensor) -> Tensor:
        """Mean and spread, (B, 5, wavelengths). Conditions are those of the network, and the same for all images."""
        images = torch.cat([apply_symmetry(symmetry, density) for symmetry in self.images], dim=1)
        repeated = {
            name: value.unsqueeze(1).expand(-1, len(self.images), -1).flatten(0, 1)
            for name, value in conditions.items()
        }
        spectra = self.network(images.flatten(0, 1).unsqueeze(1), **repeated).flatten(1, 2)
        mapped_back = self.back @ spectra.unflatten(0, (-1, len(self.images)))
        mean = mapped_back.mean(dim=1)
        deviation = _SCALE * (mapped_back - mean.unsqueeze(1))
        spread = (deviation.square().mean(dim=(1, 2)) + (_SCALE * _FLOOR) ** 2).sqrt() / _SCALE
        return torch.cat([mean, spread.unsqueeze(1)], dim=1)


def apply_symmetry(symmetry: Symmetry, x: Tensor) -> Tensor:
    """`Symmetry.apply` for tensors: transform the last two axes (y, x)."""
    if symmetry.transpose:
        x = x.transpose(-1, -2)
    if flipped := [axis for axis, flip in ((-2, symmetry.flip_rows), (-1, symmetry.flip_columns)) if flip]:
        x = x.flip(flipped)
    if shifted := [axis for axis, shift in ((-2, symmetry.shift_rows), (-1, symmetry.shift_columns)) if shift]:
        x = x.roll([x.shape[-1] // 2] * len(shifted), shifted)
    return x
