"""A small network of PyTorch that takes three conditions, a vector among them: trained and exported as any other one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metaspec_contract.conditions import Condition
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_training.networks.layers import NetworkConfig, on_grid

_POOLED = 8  # tiles along each side, whose mean density is all that the network sees


@dataclass(frozen=True)
class MadeUpNetConfig(NetworkConfig):
    """Settings of the network: only the process."""

    def build(self) -> MadeUpNet:
        """The network, freshly initialised."""
        return MadeUpNet(self)

    def for_process(self, process: Process) -> MadeUpNetConfig:
        """The settings with the process filled in.

        Raises:
            ValueError: another process is set.
        """
        self.require_process(process)
        return replace(self, process=process)


class MadeUpNet(nn.Module):
    """Density (B, 1, y, x) to efficiencies (B, 2, 2, wavelengths) that depend smoothly on it and on all conditions.

    What the thickness and the incidence do is made up; no data set has other values of them than the defaults.

    Attributes:
        conditions: two numbers, `distance_um` and `thickness_um`, and a vector of two, `incidence`.
    """

    def __init__(self, config: MadeUpNetConfig) -> None:
        super().__init__()
        self.config = config
        process = config.process or Process()
        self.conditions = (
            Condition(name="distance_um", unit="um", low=1.0, high=3.0, default=process.distance_um),
            Condition(name="thickness_um", unit="um", low=0.4, high=0.8, default=process.thickness_um),
            Condition(name="incidence", unit="degrees", low=-20.0, high=20.0, default=(0.0, 5.0), size=2),
        )
        wavelengths = len(process.wavelengths_nm)
        self.density, self.distance, self.thickness, self.incidence = (
            nn.Linear(size, 4 * wavelengths) for size in (_POOLED**2, 1, 1, 2)
        )

    def forward(
        self,
        density: Tensor,
        distance_um: Tensor | None = None,
        thickness_um: Tensor | None = None,
        incidence: Tensor | None = None,
    ) -> Tensor:
        """Efficiencies at conditions (B, size), the defaults where they are not given."""
        rows = density.shape[0]  # len would fix it in the trace
        distance, thickness, angles = (
            torch.tensor(condition.defaults, dtype=density.dtype).expand(rows, -1) if value is None else value
            for condition, value in zip(self.conditions, (distance_um, thickness_um, incidence), strict=True)
        )
        side = PIXELS // _POOLED
        tiles = on_grid(density).reshape(-1, _POOLED, side, _POOLED, side).mean(dim=(2, 4))
        logits = self.density(tiles.flatten(1)) + self.thickness(10 * (thickness - 0.5)).tanh()
        logits = logits + self.distance(distance) * self.incidence(angles / 20).sin()
        return torch.sigmoid(logits).reshape(-1, 2, 2, logits.shape[-1] // 4)
