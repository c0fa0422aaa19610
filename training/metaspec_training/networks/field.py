"""DiffractionFieldNet: a network predicts the field just under the patterned layer, exact physics does the rest.

From the structure a convolutional network predicts the electric field under the patterned layer, for both polarisations and
as a smooth function of wavelength. A fixed layer without parameters does the rest: Fourier orders, propagation through the
substrate (the angular spectrum method; Goodman, "Introduction to Fourier Optics", section 3.10), and the Poynting flux
through each quadrant. The interference of some hundred orders at the detectors, which a decoder of wavelength queries has to
memorise, is computed instead.

Everything is real arithmetic on pairs (real part, imaginary part): ONNX has no complex numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline, CubicSpline
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_simulation.physics.farfield import HARMONICS, max_order, window_harmonics
from metaspec_training.networks.beam import INDEX, BeamPropagation, complex_matrix
from metaspec_training.networks.layers import CircularConv, FourierMixing, NetworkConfig, ResidualBlock
from metaspec_training.networks.translation import Translation

GRID = 16
"""Points per axis on which the field is predicted: enough for orders up to 7."""


@dataclass(frozen=True)
class DiffractionFieldNetConfig(NetworkConfig):
    """Shape of the network.

    Attributes:
        stem: channels of the 64 x 64 map; the 32 x 32 map has twice as many. A multiple of 8.
        width: channels of the 16 x 16 map.
        blocks: residual blocks on that map.
        spectral_basis: cubic B-splines over optical frequency that the field is expanded in.
        wavelength_nodes: wavelengths at which the flux is computed; a cubic spline fills in the others.
        coarse_head: whether to learn the difference that a coarser simulation grid makes to the field. Labels of two
            grids then teach one network without pulling its predictions, for the finer grid, towards the coarser.
        beam: whether the network reads a crude solution, that of a scalar wave (`BeamPropagation`).
        process: the device, whose geometry and materials enter the propagation; None for that of the data, or for the
            default device without data.
    """

    stem: int = 32
    width: int = 160
    blocks: int = 4
    spectral_basis: int = 32
    wavelength_nodes: int = 76
    coarse_head: bool = False
    beam: bool = False
    process: Process | None = None

    def build(self) -> DiffractionFieldNet:
        """The network, freshly initialised."""
        return DiffractionFieldNet(self)

    def for_process(self, process: Process) -> DiffractionFieldNetConfig:
        """The settings with the process filled in.

        Raises:
            ValueError: another process is set.
        """
        if self.process is not None and (difference := self.process.difference(process)):
            raise ValueError(f"model.config.process and the data are of different processes: {difference}")
        return replace(self, process=process)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"process": self.process and self.process.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiffractionFieldNetConfig:
        """The inverse of `to_dict`."""
        process = values["process"]
        return cls(**values | {"process": process and Process.model_validate(process)})


class DiffractionFieldNet(nn.Module):
    """Density (B, 1, 128, 128), 1 = solid and 0 = void, to efficiencies (B, 2, 2, wavelengths)."""

    def __init__(self, config: DiffractionFieldNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiffractionFieldNetConfig()
        self.process = config.process or Process()
        stem, width, basis = config.stem, config.width, config.spectral_basis
        self.stem = nn.Sequential(
            CircularConv(1, stem, 5, stride=2),
            nn.GroupNorm(8, stem),
            nn.SiLU(),
            ResidualBlock(stem, 2 * stem, stride=2),
            ResidualBlock(2 * stem, width, stride=2),
        )
        self.beam: nn.Sequential | None = None
        if config.beam:
            wave = BeamPropagation(self.process, GRID)
            self.beam = nn.Sequential(wave, nn.Conv2d(2 * wave.wavelengths, width, 1))
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

    def forward(self, density: Tensor, coarse: Tensor | None = None) -> Tensor:
        maps = self.maps(density, coarse)
        with torch.autocast(maps.device.type, enabled=False):  # interference needs more than 8 bits of phase
            spectra: Tensor = self.propagation(_at_least_float32(maps))
        return spectra.unflatten(1, (2, 2))

    def maps(self, density: Tensor, coarse: Tensor | None = None) -> Tensor:
        """The field under the patterned layer, in splines over frequency: (B, 8 * basis, 16, 16).

        Args:
            density: (B, 1, 128, 128).
            coarse: structures for which the field on a coarser grid is wanted, bool (B,); default: none.
        """
        encoded = self.stem(2 * density - 1)
        if self.beam is not None:
            with torch.autocast(density.device.type, enabled=False):  # phases need more than 8 bits
                encoded = encoded + self.beam(density)
        features = self.head[:-1](self.body(encoded))
        maps: Tensor = self.head[-1](features)
        if coarse is not None and self.coarse_head is not None:
            maps = maps + coarse[:, None, None, None] * self.coarse_head(features)
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

    def at(self, density: Tensor, shift: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Spectra of the structure at other positions over the detectors, from one prediction of the field.

        Args:
            density: (B, 1, 128, 128).
            shift: translations along rows and columns in pixels, (B, K, 2).
            coarse: see `maps`.

        Returns:
            Spectra (B, K, 2, 2, wavelengths); at shift (0, 0) those of `forward`, except for flux harmonics above the seventh.
        """
        maps = self.maps(density, coarse)
        with torch.autocast(maps.device.type, enabled=False):
            spectra: Tensor = self.propagation.at(_at_least_float32(maps), shift)
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


class Propagation(nn.Module):
    """Maps of the field under the patterned layer to the flux through the four quadrants. No parameters.

    Input (B, 8 * basis, 16, 16), the channels being (polarisation, component, part, spline); output (B, 4, wavelengths).
    """

    dft_cos: Tensor
    dft_sin: Tensor
    splines: Tensor
    phase_cos: Tensor
    phase_sin: Tensor
    h_from_e: Tensor
    square_wave: Tensor
    interpolation: Tensor
    quadrants: Tensor
    to_points: Tensor
    window: Tensor

    def __init__(self, process: Process, basis: int, nodes: int) -> None:
        super().__init__()
        self.basis = basis
        self.translation = Translation()
        wavelengths = process.wavelengths_nm
        node = np.linspace(wavelengths[0], wavelengths[-1], nodes)
        if (highest := max_order(process)) >= GRID // 2:
            raise ValueError(
                f"DiffractionFieldNet predicts the field on {GRID} x {GRID} points, enough for Fourier orders up to "
                f"{GRID // 2 - 1}; with period_um {process.period_um:g} and wavelength_min_nm {process.wavelength_min_nm:g}, "
                f"orders up to {highest} propagate: train DiffractionNet (preset full)"
            )
        order = np.arange(-highest, highest + 1)
        index = process.substrate.index(node)[:, None, None]
        k0 = (2 * np.pi * 1000 / node)[:, None, None]
        kx = (2 * np.pi / process.period_um * order)[None, None, :]
        ky = kx.swapaxes(1, 2)
        squared = (index * k0) ** 2 - kx**2 - ky**2
        propagating = squared > 0
        # The floor bounds H of p waves at grazing angles; the network compensates for it.
        kz = np.sqrt(np.maximum(squared, (0.1 * index * k0) ** 2))
        # The network predicts the field without the common phase of the layer: it varies slowly with wavelength.
        phase = np.sqrt(np.maximum(squared, 0)) * process.distance_um + common_phase(process, node)[:, None, None]
        position = (
            np.arange(GRID) * 8 + 0.5
        ) / 128  # the stem's strides keep every eighth pixel, starting with the first
        angle = 2 * np.pi * np.outer(order, position)
        distance = order[:, None] - order[None, :]
        square_wave = np.where(distance % 2 != 0, 2 / (np.pi * np.where(distance == 0, 1, distance)), 0)
        self.points = points = (
            2 * int(order[-1]) + max(HARMONICS) + 1
        )  # no product of two orders aliases into a harmonic
        wave = np.exp(2j * np.pi * np.outer(order, np.arange(points) / points))
        window = window_harmonics(np.eye(points**2).reshape(-1, points, points).swapaxes(1, 2))
        for name, matrix in (
            ("to_points", complex_matrix(wave.T)),
            ("window", window),
            ("dft_cos", np.cos(angle) / GRID),
            ("dft_sin", np.sin(angle) / GRID),
            ("splines", spline_basis(1000 / node, basis)),
            ("phase_cos", propagating * np.cos(phase)),
            ("phase_sin", propagating * np.sin(phase)),
            ("h_from_e", np.stack([(kz + kx**2 / kz) / k0, kx * ky / kz / k0, (kz + ky**2 / kz) / k0])),
            ("square_wave", square_wave),
            ("interpolation", CubicSpline(node, np.eye(nodes))(wavelengths)),
            ("quadrants", np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 4),
        ):
            self.register_buffer(name, torch.tensor(matrix, dtype=torch.float32), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        real, imag = self._at_detectors(maps)
        h_real, h_imag = self._magnetic(real), self._magnetic(imag)
        total = (real * h_real + imag * h_imag).sum(dim=(1, 2, -2, -1))
        # A half-period window is (1 +- square wave) / 2 along each axis; the wave's coefficients are -i * square_wave.
        y_real, y_imag = self.square_wave @ h_real, self.square_wave @ h_imag
        across = self.square_wave.T
        rows = (real * y_imag - imag * y_real).sum(dim=(1, 2, -2, -1))
        columns = (real * (h_imag @ across) - imag * (h_real @ across)).sum(dim=(1, 2, -2, -1))
        both = -(real * (y_real @ across) + imag * (y_imag @ across)).sum(dim=(1, 2, -2, -1))
        parts = torch.stack([total, rows, columns, both], dim=1) / 2  # mean of two polarisations
        return (self.quadrants @ parts) @ self.interpolation.T

    def at(self, maps: Tensor, shift: Tensor) -> Tensor:
        """The flux with the structure moved by shifts (B, K, 2) in pixels: (B, K, 4, wavelengths)."""
        real, imag = self._at_detectors(maps)
        e = self._on_points(real, imag)
        h = self._on_points(self._magnetic(real), self._magnetic(imag))
        flux = (e * h).unflatten(-1, (2, -1)).sum(
            dim=(1, 2, -2)
        ) / 2  # real and imaginary parts, components, polarisations
        harmonics = flux.flatten(-2) @ self.window
        return self.translation(harmonics.transpose(1, 2), shift) @ self.interpolation.T

    def orders(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the orders under the layer, without the common phase, each (B, 2, 2, nodes, ky, kx)."""
        maps = maps.unflatten(1, (2, 2, 2, self.basis))
        real, imag = self._orders(*maps.unbind(3))
        return self._at_wavelengths(real), self._at_wavelengths(imag)

    def _at_detectors(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the orders at the detectors, each (B, 2, 2, nodes, ky, kx)."""
        real, imag = self.orders(maps)
        return real * self.phase_cos - imag * self.phase_sin, real * self.phase_sin + imag * self.phase_cos

    def _on_points(self, real: Tensor, imag: Tensor) -> Tensor:
        """Orders (..., ky, kx) to points of the cell (..., x, 2 y), real parts before imaginary ones."""
        along_x = torch.cat([real, imag], dim=-1) @ self.to_points
        return torch.cat(along_x.transpose(-1, -2).chunk(2, dim=-2), dim=-1) @ self.to_points

    def _orders(self, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """Fourier orders of complex maps: (..., 16, 16) to (..., ky, kx), with exp(-i k x)."""
        cos, sin = self.dft_cos.T, self.dft_sin.T
        real, imag = real @ cos + imag @ sin, imag @ cos - real @ sin
        return self.dft_cos @ real + self.dft_sin @ imag, self.dft_cos @ imag - self.dft_sin @ real

    def _at_wavelengths(self, orders: Tensor) -> Tensor:
        """Sum the splines: (B, 2, 2, basis, ky, kx) to (B, 2, 2, nodes, ky, kx)."""
        return (self.splines @ orders.flatten(-2)).unflatten(-1, orders.shape[-2:])

    def _magnetic(self, e: Tensor) -> Tensor:
        """(Hy, -Hx) of plane waves with (Ex, Ey) along axis 2: the factors of E in the flux."""
        xx, xy, yy = self.h_from_e.unbind()
        ex, ey = e.unbind(2)
        return torch.stack([xx * ex + xy * ey, xy * ex + yy * ey], dim=2)


def common_phase(process: Process, wavelengths_nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phase of the orders under the layer that a network does not predict, in rad: wavelengths in nm (W,) to (W,)."""
    return INDEX * (2 * np.pi * 1000 / wavelengths_nm) * process.thickness_um


def spline_basis(frequency: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Cubic B-splines, uniform over the range of `frequency`: (W,) to (W, count)."""
    low, high = float(frequency.min()), float(frequency.max())
    step = (high - low) / (count - 3)
    knots = low + step * np.arange(-3, count + 1)
    inside = np.clip(frequency, low, high - 1e-9 * step)
    return BSpline.design_matrix(inside, knots, 3).toarray()
