from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaspec_contract.process import Process
from metaspec_simulation.physics.farfield import flux_map, quadrant_weights
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.layers import CircularConv, FourierMixing
from metaspec_training.networks.propagation import Propagation
from metaspec_training.networks.query import DiffractionNet, DiffractionNetConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def density() -> torch.Tensor:
    return torch.randint(0, 2, (2, 1, 128, 128)).float()


@pytest.mark.parametrize(
    "config", [DiffractionNetConfig(), DiffractionNetConfig.baseline(), DiffractionNetConfig(beam=True)]
)
def test_diffraction_net_predicts_efficiencies(config: DiffractionNetConfig, density: torch.Tensor) -> None:
    spectra = DiffractionNet(config).eval()(density)
    assert spectra.shape == (2, 2, 2, 301)
    assert ((spectra > 0) & (spectra < 1)).all()
    assert DiffractionNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "config",
    [
        DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2, beam=True),
        DiffractionFieldNetConfig(width=32, blocks=1, stem=16, wavelength_nodes=20, beam=True),
    ],
)
def test_structures_of_other_pixels(config: DiffractionNetConfig | DiffractionFieldNetConfig) -> None:
    """A network of one size serves processes of all: it sees the same structure on 128 x 128 pixels."""
    network = config.build().eval()
    structure = torch.randint(0, 2, (2, 1, 64, 64)).float()
    predictions = []
    for pixels in (64, 128, 256):
        other = config.for_process(Process(pixels=pixels)).build().eval()
        other.load_state_dict(network.state_dict())
        times = pixels // 64
        density = structure.repeat_interleave(times, -1).repeat_interleave(times, -2).requires_grad_()
        predictions.append(spectra := other(density))
        (gradient,) = torch.autograd.grad(spectra.square().sum(), density)
        predictions.append(gradient.reshape(2, 64, times, 64, times).sum((2, 4)))
    for ours, usual in ((0, 2), (4, 2), (1, 3), (5, 3)):
        torch.testing.assert_close(predictions[ours], predictions[usual], rtol=1e-4, atol=1e-6)


def test_each_improvement_changes_what_it_says() -> None:
    full, baseline = DiffractionNet(), DiffractionNet(DiffractionNetConfig.baseline())
    assert isinstance(full.memory_norm, torch.nn.LayerNorm)
    assert isinstance(baseline.memory_norm, torch.nn.Identity)
    assert (len(full.heads), len(baseline.heads)) == (4, 1)
    assert (len(full.positions), len(baseline.positions)) == (65, 17)
    queries, pooled = full.queries(), torch.randn(3, 256)
    gamma = full.film.out(full.film.hidden(pooled))[:, :256]
    assert (gamma == 0).all(), "the scale starts at identity"
    torch.testing.assert_close(full.film.eval()(queries, pooled) - queries, baseline_shift(full, pooled))
    assert not [m for m in full.decoder.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert [m.p for m in baseline.decoder.modules() if isinstance(m, torch.nn.Dropout)] == [0.03] * 8
    parameters = sum(p.numel() for p in full.parameters())
    assert parameters == pytest.approx(8.5e6, rel=0.01)


def test_the_scalar_wave_of_the_encoder_is_that_of_the_process(density: torch.Tensor) -> None:
    thick = Process(thickness_um=0.9)
    config = DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2, beam=True).for_process(thick)
    assert DiffractionNetConfig.from_dict(config.to_dict()) == config
    network = config.build().eval()
    thin = replace(config, process=Process()).build().eval()
    thin.load_state_dict(network.state_dict())
    assert (network(density) - thin(density)).abs().max() > 1e-5
    with pytest.raises(ValueError, match="different processes: thickness_um"):
        config.for_process(Process())


def baseline_shift(network: DiffractionNet, pooled: torch.Tensor) -> torch.Tensor:
    shift: torch.Tensor = network.film.out(network.film.hidden(pooled))[:, None, 256:].expand(-1, 301, -1)
    return shift


def test_detector_heads_share_nothing(density: torch.Tensor) -> None:
    network = DiffractionNet().eval()
    network(density)[:, 0, 1].sum().backward()
    touched = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in network.heads]
    assert touched == [False, True, False, False]


def test_circular_convolution_commutes_with_translation() -> None:
    conv, x = CircularConv(2, 3, 5), torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(conv(x.roll((3, -5), (2, 3))), conv(x).roll((3, -5), (2, 3)))


@pytest.mark.parametrize("size", [16, 7])
def test_fourier_mixing_is_the_fft(size: int) -> None:
    layer, x = FourierMixing(16, size), torch.randn(2, 16, size, size)
    weight = torch.view_as_complex(layer.weight.detach())
    reference = torch.fft.irfft2(weight * torch.fft.rfft2(x, norm="ortho"), s=(size, size), norm="ortho")
    torch.testing.assert_close(layer.mix(x).detach(), reference, atol=2e-6, rtol=0)


def test_propagation_is_the_solvers_own_far_field() -> None:
    """The fixed layer against metaspec_simulation.physics.farfield, on a random field at one of its wavelength nodes."""
    process, basis = Process(), 8
    layer = Propagation(process, basis, nodes=76).double()
    maps = torch.randn(1, 8 * basis, 16, 16, dtype=torch.float64)
    node = 40
    wavelength = np.linspace(400, 700, 76)[node]
    splines = maps.reshape(1, 2, 2, 2, basis, 16, 16)
    field = (splines * layer.splines[:, node, None, None]).sum(dim=4).numpy()[0]
    field = field[:, :, 0] + 1j * field[:, :, 1]
    k0, k = 2 * np.pi * 1000 / wavelength, np.pi * np.arange(-7, 8)
    position = (np.arange(16) * 8 + 0.5) / 128 * 2.0
    dft = np.exp(-1j * np.outer(k, position)) / 16
    orders = dft @ field @ dft.T
    index = process.substrate.index(np.array([wavelength]))[0]
    squared = (index * k0) ** 2 - k[:, None] ** 2 - k**2
    assert not ((squared > 0) & (squared < (0.1 * index * k0) ** 2)).any(), "no order near grazing at this node"
    kz = np.sqrt(np.maximum(squared, 1e-9))
    orders = orders * np.where(squared > 0, np.exp(1j * kz * process.distance_um), 0)
    ez = -(k * orders[:, 0] + k[:, None] * orders[:, 1]) / kz
    magnetic = np.stack([k[:, None] * ez - kz * orders[:, 1], kz * orders[:, 0] - k * ez], axis=1) / k0
    flux = flux_map(orders.astype(np.complex64), magnetic.astype(np.complex64)).mean(axis=0)
    expected = np.einsum("cyx,yx->c", quadrant_weights(7), flux)
    at_node = layer(maps)[0, :, 160].numpy()
    assert wavelength == 560
    np.testing.assert_allclose(at_node, expected, rtol=1e-4)
    np.testing.assert_allclose(at_node.sum(), expected.sum(), rtol=1e-4)


def test_positions_over_the_detectors_are_those_of_the_moved_structure(density: torch.Tensor) -> None:
    """Half a period swaps detectors exactly; translations by the stem's stride move all that the network sees with them."""
    network = DiffractionFieldNet(DiffractionFieldNetConfig(stem=8, width=32, blocks=1)).eval()
    shift = torch.tensor([[0.0, 0.0], [64.0, 0.0], [24.0, -40.0]]).expand(2, -1, -1)
    with torch.inference_mode():
        spectra = network.at(density, shift)
        still, moved = network(density), network(density.roll((24, -40), (2, 3)))
    assert spectra.shape == (2, 3, 2, 2, 301)
    # Only what lies above the thirteenth harmonic of the flux tells the two ways apart.
    torch.testing.assert_close(spectra[:, 0], still, atol=1e-4, rtol=0)
    torch.testing.assert_close(spectra[:, 1], still[:, [1, 0]], atol=1e-4, rtol=0)
    torch.testing.assert_close(spectra[:, 2], moved, atol=1e-4, rtol=0)
    assert (still - moved).abs().max() > 2e-3


def test_a_process_of_more_orders_than_the_field_can_hold_is_refused() -> None:
    assert len(Propagation(Process(period_um=2.1), basis=8, nodes=4).transform) == 15
    with pytest.raises(ValueError, match=r"orders up to 7; with period_um 2.5 .* orders up to 9 propagate"):
        Propagation(Process(period_um=2.5), basis=8, nodes=4)


def test_field_net_starts_transparent_and_round_trips(density: torch.Tensor) -> None:
    config = DiffractionFieldNetConfig(stem=8, width=32, blocks=1)
    spectra = DiffractionFieldNet(config).eval()(density)
    assert spectra.shape == (2, 2, 2, 301)
    assert 0.7 < spectra.sum(dim=(1, 2)).mean().item() < 1.1
    assert DiffractionFieldNetConfig.from_dict(config.to_dict()) == config


def test_field_net_gradient_reaches_every_pixel(density: torch.Tensor) -> None:
    density.requires_grad_(True)
    DiffractionFieldNet(DiffractionFieldNetConfig(stem=8, width=32, blocks=1)).eval()(density)[
        :, 0, 0, 150
    ].sum().backward()
    assert density.grad is not None
    assert (density.grad != 0).float().mean() > 0.99


def test_the_coarse_head_changes_low_fidelity_predictions_only(density: torch.Tensor) -> None:
    network = DiffractionFieldNet(DiffractionFieldNetConfig(stem=8, width=32, blocks=1, coarse_head=True)).eval()
    low_fidelity, shift = torch.tensor([False, True]), torch.zeros(2, 3, 2)
    with torch.inference_mode():
        served = network(density)
        torch.testing.assert_close(network(density, low_fidelity), served, atol=0, rtol=0)
        assert network.coarse_head is not None
        assert network.coarse_head.bias is not None
        network.coarse_head.bias.fill_(0.05)
        torch.testing.assert_close(network(density), served, atol=0, rtol=0)
        for prediction in (network(density, low_fidelity), network.at(density, shift, low_fidelity)[:, 0]):
            torch.testing.assert_close(prediction[0], served[0], atol=1e-4, rtol=0)
            assert (prediction[1] - served[1]).abs().max() > 1e-3


def test_the_splines_of_a_field_net_can_be_refined(density: torch.Tensor) -> None:
    """Exactly, where the new knots include the old ones: halved, 16 splines become 29."""
    before = DiffractionFieldNet(
        DiffractionFieldNetConfig(stem=8, width=32, blocks=1, spectral_basis=16, coarse_head=True)
    )
    assert before.coarse_head is not None
    torch.nn.init.normal_(before.coarse_head.weight, std=0.05)
    after = before.with_basis(29)
    low_fidelity = torch.tensor([False, True])
    with torch.no_grad():
        expected = before.propagation(before.maps(density, low_fidelity))
        torch.testing.assert_close(after.propagation(after.maps(density, low_fidelity)), expected, atol=1e-5, rtol=1e-4)
        back = after.with_basis(16)
        torch.testing.assert_close(back.propagation(back.maps(density, low_fidelity)), expected, atol=1e-5, rtol=1e-4)
    assert after.config.spectral_basis == 29
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 16}, "model.config.channels must be a multiple of 32, got 16"),
        ({"width": 33, "heads": 3}, "model.config.width must be even, and a multiple of heads, 3, got 33"),
        ({"heads": 3}, "model.config.width must be even, and a multiple of heads, 3, got 256"),
        ({"heads": 0}, "model.config.heads must be at least 1, got 0"),
        ({"blocks": 0}, "model.config.blocks must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffractionNetConfig(**settings)  # type: ignore[arg-type]


def test_a_field_net_takes_the_distance_for_each_row(density: torch.Tensor) -> None:
    """As a network of a process with that distance predicts from the same weights; it says so only where a range is set."""
    process = Process()
    config = DiffractionFieldNetConfig(
        stem=8, width=32, blocks=1, coarse_head=True, distance_range_um=(1.0, 3.0), process=process
    )
    network = DiffractionFieldNet(config).eval()
    assert [str(condition) for condition in network.conditions] == ["distance_um between 1 and 3 um, default 2.5"]
    assert DiffractionFieldNet(DiffractionFieldNetConfig(stem=8, width=32, blocks=1)).conditions == ()
    assert DiffractionFieldNetConfig.from_dict(config.to_dict()) == config
    nearer = replace(config, process=process.model_copy(update={"distance_um": 1.25}))
    other = DiffractionFieldNet(nearer).eval()
    other.load_state_dict(network.state_dict())
    low_fidelity, distance = torch.tensor([False, True]), torch.tensor([[2.5], [1.25]])
    with torch.inference_mode():
        found = network(density, low_fidelity, distance_um=distance)
        torch.testing.assert_close(found[0], network(density, low_fidelity)[0], atol=0, rtol=0)
        torch.testing.assert_close(found[1], other(density, low_fidelity)[1], atol=1e-6, rtol=0)
        moved = network.at(density, torch.zeros(2, 1, 2), low_fidelity, distance)[:, 0]
        torch.testing.assert_close(moved, found, atol=1e-3, rtol=0)
    assert (found - network(density, low_fidelity)).abs()[1].max() > 1e-3


@pytest.mark.parametrize("limits", [(3.0, 1.0), (0.0, 3.0), (1.0, 2.0), (2.6, 3.0)])
def test_ranges_of_the_distance_that_cannot_be(limits: tuple[float, float]) -> None:
    low, high = limits
    message = (
        rf"distance_range_um must ascend, above 0, and hold distance_um of the process, 2.5, got {low:g} and {high:g}$"
    )
    with pytest.raises(ValueError, match=message):
        DiffractionFieldNetConfig(distance_range_um=limits, process=Process())
    with pytest.raises(ValueError, match=message):
        DiffractionFieldNetConfig(distance_range_um=limits).for_process(Process())
