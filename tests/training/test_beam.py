from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_training.networks.beam import INDEX, SLICES, BeamPropagation
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig

PROCESS = Process()
WAVELENGTHS_NM = 1000 / np.linspace(1000 / 700, 1000 / 400, 16)


@pytest.fixture
def density() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 1, 128, 128)).astype(np.float32))


def complex_field(density: torch.Tensor) -> NDArray[np.complex64]:
    real, imag = BeamPropagation(PROCESS, points=16)(density).chunk(2, dim=1)
    field: NDArray[np.complex64] = (real + 1j * imag).numpy()
    return field


@pytest.mark.parametrize("solid", [False, True])
def test_a_uniform_layer_adds_its_phase(solid: bool) -> None:
    index = PROCESS.solid.index(WAVELENGTHS_NM) if solid else np.ones(16)
    phase = 2 * np.pi * 1000 / WAVELENGTHS_NM * PROCESS.thickness_um * (index - INDEX)
    field = complex_field(torch.full((1, 1, 128, 128), float(solid)))
    np.testing.assert_allclose(field[0], np.broadcast_to(np.exp(1j * phase)[:, None, None], (16, 16, 16)), atol=1e-5)


def test_equals_the_split_step_method_by_fourier_transforms(density: torch.Tensor) -> None:
    """Feit and Fleck's method as their paper has it, complex and with FFTs; the wave is read at the pooled points."""
    pooled = density[0, 0].reshape(32, 4, 32, 4).mean((1, 3)).double().numpy()
    order = np.fft.fftfreq(32, 1 / 32)
    kept = np.abs(order) <= 10
    ours = BeamPropagation(PROCESS, points=16)
    ours.sample, ours.sample_across = ours.points, ours.points_across  # at the points on which it is propagated
    real, imag = ours(density[:1]).chunk(2, dim=1)
    for n, wavelength in enumerate(WAVELENGTHS_NM):
        k0, dz = 2 * np.pi * 1000 / wavelength, PROCESS.thickness_um / SLICES
        transverse = (2 * np.pi / PROCESS.period_um * order) ** 2
        kz = np.sqrt((INDEX * k0) ** 2 - transverse[:, None] - transverse + 0j)
        diffract = np.exp(1j * (kz - INDEX * k0) * dz) * np.outer(kept, kept)
        epsilon = PROCESS.solid.index(np.array([wavelength]))[0] ** 2
        screen = np.exp(1j * k0 * dz * (np.sqrt(1 + (epsilon - 1) * pooled) - INDEX))
        wave = np.ones((32, 32), complex)
        for _ in range(SLICES):
            wave = np.fft.ifft2(np.fft.fft2(wave * screen) * diffract)
        np.testing.assert_allclose((real + 1j * imag)[0, n].numpy(), wave, atol=1e-5)


def test_moves_with_the_pattern(density: torch.Tensor) -> None:
    moved = complex_field(density.roll((16, -8), (2, 3)))
    np.testing.assert_allclose(moved, np.roll(complex_field(density), (2, -1), (2, 3)), atol=1e-5)


def test_a_network_reads_the_wave(density: torch.Tensor) -> None:
    config = DiffractionFieldNetConfig(stem=8, width=32, blocks=1, beam=True)
    assert DiffractionFieldNetConfig.from_dict(config.to_dict()) == config
    network = config.build().eval()
    plain = DiffractionFieldNet(DiffractionFieldNetConfig(stem=8, width=32, blocks=1)).eval()
    taken_over = network.load_state_dict(plain.state_dict(), strict=False)
    assert taken_over.missing_keys == ["beam.1.weight", "beam.1.bias"]
    assert network.beam is not None
    assert (network(density) - plain(density)).abs().max() > 1e-4
    with torch.no_grad():
        for parameter in network.beam.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(density), plain(density))
