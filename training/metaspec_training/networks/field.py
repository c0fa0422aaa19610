"""DiffractionFieldNet: a network predicts the field just under the patterned layer, exact physics does the rest.

From the structure a convolutional network predicts the electric field under the patterned layer, for both polarisations and
as a smooth function of wavelength. A fixed layer without parameters (`Propagation`) computes the flux through each quadrant
from it. The interference of some hundred orders at the detectors, which a decoder of wavelength queries has to memorise, is
computed instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaspec_contract.conditions import Condition
from metaspec_contract.process import Process
from metaspec_training.networks.beam import BeamFeatures
from metaspec_training.networks.layers import CircularConv, FourierMixing, NetworkConfig, ResidualBlock, on_grid
from metaspec_training.networks.orders import FieldOrders
from metaspec_training.networks.propagation import GRID, Propagation, spline_basis


@dataclass(frozen=True)
class DiffractionFieldNetConfig(NetworkConfig):
    """Shape of the network.

    Attributes:
        stem: channels of the 64 x 64 map; the 32 x 32 map has twice as many. A multiple of 8.
        width: channels of the 16 x 16 map. A multiple of 16.
        blocks: residual blocks on that map.
        spectral_basis: cubic B-splines over optical frequency that the field is expanded in, at least 4.
        wavelength_nodes: wavelengths at which the flux is computed, at least 2; a cubic spline fills in the others.
        coarse_head: whether to learn, in a separate head, the difference that a coarser simulation grid makes to the field.
            Low-fidelity labels then do not pull the predictions, which are for the finer grid, towards the coarser one.
        beam: whether the network reads a crude solution, that of a scalar wave (`BeamPropagation`).
        distance_range_um: smallest and largest distance of the detectors that the network takes as a condition; None for
            none. No weight depends on it.
        process: the device, whose geometry and materials enter the propagation; None for that of the data, or for the
            default device without data.

    Raises:
        ValueError: a size that is too small, or no multiple of what it must be.
    """

    stem: int = 32
    width: int = 160
    blocks: int = 4
    spectral_basis: int = 32
    wavelength_nodes: int = 76
    coarse_head: bool = False
    beam: bool = False
    distance_range_um: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.distance_range_um is not None and self.process is not None:
            low, high = self.distance_range_um
            if not 0 < low < high or not low <= self.process.distance_um <= high:
                raise ValueError(
                    "model.config.distance_range_um must ascend, above 0, and hold distance_um of the process, "
                    f"{self.process.distance_um:g}, got {low:g} and {high:g}"
                )
        for name, unit in (("stem", 8), ("width", 16)):  # channels in a group of a normalisation
            if (size := getattr(self, name)) < unit or size % unit:
                raise ValueError(f"model.config.{name} must be a positive multiple of {unit}, got {size}")
        for name, least in (("blocks", 0), ("spectral_basis", 4), ("wavelength_nodes", 2)):
            if (size := getattr(self, name)) < least:
                raise ValueError(f"model.config.{name} must be at least {least}, got {size}")

    def build(self) -> DiffractionFieldNet:
        """The network, freshly initialised."""
        return DiffractionFieldNet(self)

    def for_process(self, process: Process) -> DiffractionFieldNetConfig:
        """The settings with the process filled in.

        Raises:
            ValueError: another process is set.
        """
        self.require_process(process)
        return replace(self, process=process)


class DiffractionFieldNet(nn.Module):
    """Density (B, 1, y, x), 1 = solid and 0 = void, to efficiencies (B, 2, 2, wavelengths).

    Attributes:
        conditions: what it takes beside the density, as keyword arguments (B, size): the distance of the detectors, if the
            settings state a range.
    """

    def __init__(self, config: DiffractionFieldNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiffractionFieldNetConfig()
        self.process = config.process or Process()
        self.conditions: tuple[Condition, ...] = ()
        if config.distance_range_um is not None:
            low, high = config.distance_range_um
            default = self.process.distance_um
            self.conditions = (Condition(name="distance_um", unit="um", low=low, high=high, default=default),)
        stem, width, basis = config.stem, config.width, config.spectral_basis
        self.stem = nn.Sequential(
            CircularConv(1, stem, 5, stride=2),
            nn.GroupNorm(8, stem),
            nn.SiLU(),
            ResidualBlock(stem, 2 * stem, stride=2),
            ResidualBlock(2 * stem, width, stride=2),
        )
        self.beam = BeamFeatures(self.process, GRID, width) if config.beam else None
        layers: list[nn.Module] = []
        for block in range(config.blocks):
            if block % 2 == 0:
                layers.append(FourierMixing(width, GRID))
            layers.append(ResidualBlock(width, width))
        self.body = nn.Sequential(*layers)
        # 2 polarisations x 2 components x 2 parts for each spline
        last = nn.Conv2d(256, 8 * basis, 1)
        _start_transparent(last, basis)
        self.head = nn.Sequential(nn.Conv2d(width, 256, 1), nn.SiLU(), last)
        self.coarse_head: nn.Conv2d | None = None
        if config.coarse_head:
            self.coarse_head = nn.Conv2d(256, 8 * basis, 1)
            for parameter in self.coarse_head.parameters():  # at first, the grids do not differ
                nn.init.zeros_(parameter)
        self.propagation = Propagation(self.process, basis, config.wavelength_nodes)
        self.orders = FieldOrders(self.process, basis)

    def forward(self, density: Tensor, low_fidelity: Tensor | None = None, distance_um: Tensor | None = None) -> Tensor:
        """Spectra at distances (B, 1) of the detectors, those of the process by default; structures as for `maps`."""
        return self.spectra(self.maps(density, low_fidelity), distance_um)

    def spectra(self, maps: Tensor, distance_um: Tensor | None = None) -> Tensor:
        """Spectra (B, 2, 2, wavelengths) of predicted fields, at distances as for `forward`."""
        with torch.autocast(maps.device.type, enabled=False):  # interference needs more than 8 bits of phase
            spectra: Tensor = self.propagation(_at_least_float32(maps), distance_um)
        return spectra.unflatten(1, (2, 2))

    def orders_of(self, maps: Tensor) -> Tensor:
        """Orders of predicted fields, as a data set keeps those of simulated ones: (B, 2, 2, 2, K, V), see `FieldOrders`."""
        with torch.autocast(maps.device.type, enabled=False):
            orders: Tensor = self.orders(_at_least_float32(maps))
        return orders

    def maps(self, density: Tensor, low_fidelity: Tensor | None = None) -> Tensor:
        """The field under the patterned layer, in splines over frequency: (B, 8 * basis, 16, 16).

        Args:
            density: (B, 1, y, x), of the pixels of the process.
            low_fidelity: structures whose field is predicted as on the coarser grid, bool (B,), or the share of the
                difference between the grids that their fields have, float32 (B,); default: none.
        """
        density = on_grid(density)
        encoded = self.stem(2 * density - 1)
        if self.beam is not None:
            encoded = encoded + self.beam(density)
        features = self.head[:-1](self.body(encoded))
        maps: Tensor = self.head[-1](features)
        if low_fidelity is not None and self.coarse_head is not None:
            maps = maps + low_fidelity[:, None, None, None] * self.coarse_head(features)
        return maps

    def with_basis(self, count: int) -> DiffractionFieldNet:
        """The same network with another number of splines, as a start for further training.

        The predicted field is refitted by least squares: more splines hardly change it, and not at all if their knots
        include the present ones (2 * spectral_basis - 3 splines).
        """
        before = self.config.spectral_basis
        frequency = 1000 / self.process.wavelengths_nm
        fit = np.linalg.lstsq(spline_basis(frequency, count), spline_basis(frequency, before), rcond=None)[0]
        matrix = torch.from_numpy(fit).float()
        state = self.state_dict()
        for name in ("head.2.weight", "head.2.bias", "coarse_head.weight", "coarse_head.bias"):
            if name in state:
                splines = state[name].unflatten(0, (8, before))
                state[name] = torch.einsum("ns,ps...->pn...", matrix, splines).flatten(0, 1)
        other = DiffractionFieldNet(replace(self.config, spectral_basis=count))
        other.load_state_dict(state)
        return other

    @torch.no_grad()
    def turn_field(self, phase: NDArray[np.float64]) -> None:
        """Turn the predicted field by a phase at each wavelength, which no spectrum depends on.

        The turned splines are refitted by least squares: exactly for one phase at all wavelengths, and for one that hardly
        changes between two knots up to the error of splines.

        Args:
            phase: phase in rad, (W,), at the wavelengths of the process.
        """
        basis = self.config.spectral_basis
        splines = spline_basis(1000 / self.process.wavelengths_nm, basis)
        fit = np.linalg.pinv(splines)
        cosine, sine = (torch.from_numpy(fit @ (part[:, None] * splines)) for part in (np.cos(phase), np.sin(phase)))
        state = self.state_dict()  # shares its memory with the parameters
        for name in ("head.2.weight", "head.2.bias", "coarse_head.weight", "coarse_head.bias"):
            if name in state:
                before = state[name].cpu().double().reshape(2, 2, 2, basis, -1)
                real, imaginary = before[:, :, 0], before[:, :, 1]
                turned = torch.stack([cosine @ real - sine @ imaginary, sine @ real + cosine @ imaginary], dim=2)
                state[name].copy_(turned.reshape(state[name].shape))

    def with_distance_range(self, low: float, high: float) -> DiffractionFieldNet:
        """The same network, which takes the distance of the detectors: no weight depends on it.

        Args:
            low: smallest distance in um.
            high: largest one.

        Raises:
            ValueError: they do not ascend, or do not hold the distance of the process.
        """
        other = DiffractionFieldNet(replace(self.config, process=self.process, distance_range_um=(low, high)))
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def at(
        self,
        density: Tensor,
        shift: Tensor,
        low_fidelity: Tensor | None = None,
        distance_um: Tensor | None = None,
    ) -> Tensor:
        """Spectra of the structure at other positions over the detectors, from one prediction of the field.

        Args:
            density: (B, 1, y, x), of the pixels of the process.
            shift: translations along rows and columns in 128ths of the period, (B, K, 2).
            low_fidelity: as for `maps`.
            distance_um: as for `forward`.

        Returns:
            Spectra (B, K, 2, 2, wavelengths); at shift (0, 0) those of `forward`, except for flux harmonics above 13.
        """
        return self.spectra_at(self.maps(density, low_fidelity), shift, distance_um)

    def spectra_at(self, maps: Tensor, shift: Tensor, distance_um: Tensor | None = None) -> Tensor:
        """Spectra (B, K, 2, 2, wavelengths) of predicted fields at other positions over the detectors, as for `at`."""
        with torch.autocast(maps.device.type, enabled=False):
            spectra: Tensor = self.propagation.at(_at_least_float32(maps), shift, distance_um)
        return spectra.unflatten(2, (2, 2))


def _at_least_float32(maps: Tensor) -> Tensor:
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _start_transparent(last: nn.Conv2d, basis: int) -> None:
    """Start from a transparent layer: amplitude 0.8 in the substrate is a flux of 0.93."""
    bias = torch.zeros(2, 2, 2, basis)
    bias[(0, 1), (0, 1), 0] = 0.8
    with torch.no_grad():
        last.weight *= 0.2
        last.bias = nn.Parameter(bias.flatten())
