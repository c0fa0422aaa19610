"""The network over symmetric images: what its mean and its spread are, and that their gradient is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metaspec_contract.structures import symmetries
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.symmetric import GROUPS, SymmetricNetwork
from metaspec_training.report.evaluation import predict

STRUCTURES = np.random.default_rng(0).integers(0, 2, (3, 128, 128), np.uint8)


@pytest.fixture(scope="module")
def network() -> DiffractionFieldNet:
    torch.manual_seed(0)
    return DiffractionFieldNetConfig(stem=8, width=32, blocks=1, wavelength_nodes=20).build().eval()


@pytest.mark.parametrize("images", GROUPS)
def test_mean_and_spread_are_those_of_the_predictions_by_way_of_the_images(
    network: DiffractionFieldNet, images: int
) -> None:
    by_image = []
    for symmetry in GROUPS[images]:
        moved = np.ascontiguousarray(symmetry.apply(STRUCTURES))
        by_image.append(predict(network, moved)[:, np.argsort(symmetry.channels)])
    mean = np.mean(by_image, axis=0)
    spread = np.sqrt(np.mean((by_image - mean) ** 2, axis=(0, 2)))
    assert spread.mean() > 1e-4
    got = predict(SymmetricNetwork(network, images), STRUCTURES)
    assert got.shape == (3, 5, 301)
    np.testing.assert_allclose(got[:, :4], mean, atol=1e-6)
    np.testing.assert_allclose(got[:, 4], np.hypot(spread, 1e-5), rtol=5e-3)


@pytest.mark.parametrize("images", GROUPS)
def test_the_images_are_a_group_and_the_answer_keeps_to_it(network: DiffractionFieldNet, images: int) -> None:
    symmetric = SymmetricNetwork(network, images)
    before = predict(symmetric, STRUCTURES[:1])
    for symmetry in GROUPS[images]:
        after = predict(symmetric, np.ascontiguousarray(symmetry.apply(STRUCTURES[:1])))
        np.testing.assert_allclose(after[:, :4], before[:, symmetry.channels], atol=1e-6)
        np.testing.assert_allclose(after[:, 4], before[:, 4], atol=1e-6)


def test_half_period_shifts_say_nothing(network: DiffractionFieldNet) -> None:
    before = predict(network, STRUCTURES[:1])
    for symmetry in list(symmetries())[::8]:
        after = predict(network, np.ascontiguousarray(symmetry.apply(STRUCTURES[:1])))
        np.testing.assert_allclose(after, before[:, symmetry.channels], atol=1e-6)


def test_uniform_cells_have_no_spread_and_a_finite_gradient(network: DiffractionFieldNet) -> None:
    symmetric = SymmetricNetwork(network, 8)
    density = torch.stack([torch.zeros(1, 128, 128), torch.ones(1, 128, 128)]).requires_grad_()
    spread = symmetric(density)[:, 4]
    assert 0 < float(spread.detach().max()) < 2e-5  # the floor
    spread.sum().backward()
    assert density.grad is not None
    assert torch.isfinite(density.grad).all()


def test_the_gradient_of_the_spread_is_that_of_finite_differences(network: DiffractionFieldNet) -> None:
    symmetric = SymmetricNetwork(network, 4).double()
    try:
        density = torch.from_numpy(np.random.default_rng(1).random((1, 1, 128, 128))).requires_grad_()
        (gradient,) = torch.autograd.grad(symmetric(density)[:, 4].mean(), density)
        for row, column in ((0, 0), (64, 3), (127, 127)):
            step = torch.zeros_like(density)
            step[0, 0, row, column] = 1e-4
            with torch.inference_mode():
                up, down = (float(symmetric(density + sign * step)[:, 4].mean()) for sign in (1, -1))
            assert (up - down) / 2e-4 == pytest.approx(float(gradient[0, 0, row, column]), rel=1e-4)
    finally:
        network.float()


def test_other_numbers_of_images_are_refused(network: DiffractionFieldNet) -> None:
    with pytest.raises(ValueError, match="images must be one of 2, 4, 8, got 3"):
        SymmetricNetwork(network, 3)
