"""Filter, projection, symmetry and feature sizes: against definitions, other libraries' derivatives and known patterns."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import imageruler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metaspec._design.features import narrow_features
from metaspec.topology import (
    PIXEL_NM,
    Parameterisation,
    beta_schedule,
    conic_filter,
    feature_size,
    random_latents,
    robust_etas,
    symmetrise,
    tanh_projection,
    without_small_features,
)
from metaspec_contract.structures import check_structures
from metaspec_testing.small_models import Array

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "conic_filter": lambda x: conic_filter(x, 60.0),
    "tanh_projection": lambda x: tanh_projection(x, 8.0, 0.4),
    "symmetrise": lambda x: symmetrise(x, "diagonal"),
    "density": lambda x: Parameterisation(60.0, "diagonal").density(x, 8.0, 0.6),
}


@pytest.fixture
def latent() -> Array:
    return np.random.default_rng(0).random((2, 24, 24))


@pytest.fixture
def cotangent() -> Array:
    return np.random.default_rng(1).normal(size=(2, 24, 24))


def torch_gradient(function: Callable[[Any], Any], latent: Array, cotangent: Array) -> Array:
    tensor = torch.tensor(latent, requires_grad=True)
    function(tensor).backward(torch.tensor(cotangent))
    assert tensor.grad is not None
    return tensor.grad.numpy()


def jax_gradient(function: Callable[[Any], Any], latent: Array, cotangent: Array) -> Array:
    gradient = jax.jit(jax.grad(lambda x: (function(x) * cotangent).sum()))(jnp.asarray(latent))
    return np.asarray(gradient)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_numpy_torch_and_jax_agree(function: Callable[[Any], Any], latent: Array) -> None:
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 1e-5)):
        expected = function(latent)
        array = latent.astype(dtype)
        tensor = function(torch.tensor(array))
        with jax.enable_x64(dtype is np.float64):
            jitted = jax.jit(function)(array)
            mapped = jax.vmap(function)(array)
        assert (tensor.numpy().dtype, jitted.dtype, function(array).dtype) == (dtype, dtype, dtype)
        for result in (function(array), tensor, jitted, mapped):
            np.testing.assert_allclose(result, expected, atol=tolerance)


@pytest.mark.parametrize("symmetry", [None, "diagonal"])
@pytest.mark.parametrize(("beta", "eta"), [(0.5, 0.5), (8.0, 0.35), (100.0, 0.6)])
def test_pulling_back_is_what_torch_jax_and_finite_differences_say(
    latent: Array, cotangent: Array, symmetry: str | None, beta: float, eta: float
) -> None:
    parameterisation = Parameterisation(60.0, symmetry)
    gradient = parameterisation.pull_back(latent, cotangent, beta, eta)

    def density(x: Any) -> Any:
        return parameterisation.density(x, beta, eta)

    with jax.enable_x64(True):
        for other in (torch_gradient, jax_gradient):
            np.testing.assert_allclose(other(density, latent, cotangent), gradient, atol=1e-12)
    direction, step = np.random.default_rng(2).normal(size=latent.shape), 1e-6
    slope = ((density(latent + step * direction) - density(latent - step * direction)) * cotangent).sum() / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)


def test_derivatives_at_the_ends_of_the_range(cotangent: Array) -> None:
    """Solid and void latents, where rounding leads out of [0, 1]: clipping that takes nothing from the derivative."""
    latent = np.zeros((2, 24, 24))
    latent[:, :, 12:] = 1
    parameterisation = Parameterisation(60.0)
    with jax.enable_x64(True):
        for other in (torch_gradient, jax_gradient):
            gradient = other(lambda x: parameterisation.density(x, 4.0), latent, cotangent)
            np.testing.assert_allclose(gradient, parameterisation.pull_back(latent, cotangent, 4.0), atol=1e-12)


def test_beta_and_eta_may_be_traced(latent: Array) -> None:
    """One compilation for a whole schedule."""
    parameterisation = Parameterisation(60.0)
    density = jax.jit(parameterisation.density)
    for beta, eta in ((2.0, 0.5), (50.0, 0.4)):
        np.testing.assert_allclose(density(latent, beta, eta), parameterisation.density(latent, beta, eta), atol=1e-5)
    assert density._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(24, 24), (15, 20), (8, 33)])
@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5, 3.2, 4.0])
def test_the_filter_is_the_periodic_sum_of_its_definition(shape: tuple[int, int], radius: float) -> None:
    density = np.random.default_rng(3).random(shape)
    expected, total = np.zeros(shape), 0.0
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            weight = max(0.0, 1 - math.hypot(dy, dx) / radius)
            expected += weight * np.roll(density, (dy, dx), axis=(0, 1))
            total += weight
    np.testing.assert_allclose(conic_filter(density, 20 * radius, pixel_nm=20.0), expected / total, atol=1e-14)


def test_the_filter_takes_a_radius_of_up_to_half_the_cell() -> None:
    wide = conic_filter(np.eye(16), 8 * PIXEL_NM)
    np.testing.assert_allclose(wide.sum(), 16)
    np.testing.assert_allclose(wide, np.roll(wide, (1, 1), axis=(0, 1)))
    with pytest.raises(ValueError, match="radius_nm must be above 0 and at most half of the cell's 250 nm, got 126"):
        conic_filter(np.eye(16), 126)


densities = arrays(np.float64, (2, 8, 8), elements=st.floats(0, 1))


@settings(deadline=None)
@given(densities, densities, st.floats(1, 60), st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_the_filter_is_self_adjoint_and_commutes_with_shifts(
    a: Array, b: Array, radius: float, shift: tuple[int, int]
) -> None:
    assert (conic_filter(a, radius) * b).sum() == pytest.approx((a * conic_filter(b, radius)).sum(), abs=1e-10)
    np.testing.assert_allclose(conic_filter(a, radius).sum(axis=(1, 2)), a.sum(axis=(1, 2)), atol=1e-12)
    shifted = conic_filter(np.roll(a, shift, axis=(1, 2)), radius)
    np.testing.assert_allclose(shifted, np.roll(conic_filter(a, radius), shift, axis=(1, 2)), atol=1e-14)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([np.float32, np.float64]),
    arrays(np.float64, (8, 8), elements=st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1)),
    st.floats(1, 60),
    st.floats(1e-3, 1e6) | st.just(math.inf),
    st.floats(0.01, 0.99),
    st.sampled_from([None, "diagonal"]),
)
def test_densities_never_leave_0_to_1(
    dtype: type, latent: Array, radius: float, beta: float, eta: float, symmetry: str | None
) -> None:
    """Not even by rounding."""
    parameterisation = Parameterisation(radius, symmetry)
    array: Array = latent.astype(dtype)
    for density in (
        parameterisation.density(array, beta, eta),
        parameterisation.density(torch.tensor(array), beta, eta),
    ):
        result = np.asarray(density)
        assert result.dtype == dtype
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize("of", [np.asarray, torch.tensor, jnp.asarray])
def test_what_the_filter_returns_is_a_structure(of: Callable[[Array], Any]) -> None:
    """Its rounding in float32 is within what sources accept."""
    rng = np.random.default_rng(3)
    structures = [(rng.random((6, 128, 128)) < share).astype(np.float32) for share in (0.02, 0.5, 0.98)]
    for structure in [*structures, np.ones((1, 128, 128), np.float32)]:
        for radius_nm in (20.0, 80.0, 400.0):
            wanted = conic_filter(structure.astype(np.float64), radius_nm)
            filtered = conic_filter(of(structure), radius_nm)
            assert np.asarray(filtered).dtype == np.float32
            np.testing.assert_allclose(check_structures(np.asarray(filtered))[:, 0], wanted, atol=1e-6)


def test_the_filter_takes_numbers_of_half_the_width() -> None:
    structure = np.random.default_rng(3).integers(0, 2, (2, 128, 128)).astype(np.float32)
    wanted = conic_filter(structure, 80.0)
    for half in (torch.bfloat16, torch.float16):
        filtered = conic_filter(torch.tensor(structure).to(half), 80.0)
        assert filtered.dtype == half
        np.testing.assert_allclose(check_structures(filtered.float())[:, 0], wanted, rtol=2**-7)
    for narrow in (jnp.bfloat16, jnp.float16):
        found = conic_filter(jnp.asarray(structure, narrow), 80.0)
        assert found.dtype == narrow
        np.testing.assert_allclose(check_structures(found.astype(jnp.float32))[:, 0], wanted, rtol=2**-7)


def test_full_and_empty_cells_stay_so() -> None:
    for beta in (1.0, 16.0, math.inf):
        for value in (0.0, 1.0):
            density = Parameterisation().density(np.full((128, 128), value, np.float32), beta)
            np.testing.assert_allclose(density, value, atol=1e-6)


@given(st.floats(0, 1), st.floats(0.01, 200), st.floats(0.05, 0.95))
def test_the_projection_is_that_of_the_paper(density: float, beta: float, eta: float) -> None:
    """Wang, Lazarov and Sigmund (2011), equation 9."""
    top = math.tanh(beta * eta) + math.tanh(beta * (density - eta))
    expected = top / (math.tanh(beta * eta) + math.tanh(beta * (1 - eta)))
    assert tanh_projection(np.array([density]), beta, eta)[0] == pytest.approx(expected, abs=1e-12)


def test_an_infinite_beta_is_the_threshold() -> None:
    density = np.array([0.0, 0.3, 0.5, 0.50001, 1.0])
    np.testing.assert_array_equal(tanh_projection(density, math.inf), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(tanh_projection(density, np.float64(math.inf), 0.2), [0, 1, 1, 1, 1])
    np.testing.assert_allclose(tanh_projection(density, 1e5), [0, 0, 0.5, 0.88, 1], atol=0.01)


def test_symmetrise(latent: Array) -> None:
    symmetric = symmetrise(latent, "diagonal")
    np.testing.assert_array_equal(symmetric, symmetric.transpose(0, 2, 1))
    np.testing.assert_array_equal(symmetrise(symmetric, "diagonal"), symmetric)
    np.testing.assert_array_equal(symmetrise(latent, None), latent)
    with pytest.raises(ValueError, match=r"the diagonal symmetry needs a square cell, got 4 x 6"):
        symmetrise(np.zeros((4, 6)), "diagonal")


def test_binary_structures_are_exactly_symmetric() -> None:
    """Latents that are nearly 1/2 everywhere, where the rounding of the filter decides."""
    latent = (0.5 + 1e-6 * np.random.default_rng(4).normal(size=(3, 128, 128))).astype(np.float32)
    structure = Parameterisation(symmetry="diagonal").binary(latent)
    assert structure.dtype == np.uint8
    assert 0.1 < structure.mean() < 0.9
    np.testing.assert_array_equal(structure, structure.transpose(0, 2, 1))


def test_robust_structures_are_nested() -> None:
    eroded, nominal, dilated = (Parameterisation().binary(random_latents(4), eta) for eta in robust_etas(0.1))
    assert (eroded <= nominal).all()
    assert (nominal <= dilated).all()
    assert eroded.sum() < nominal.sum() < dilated.sum()


def test_beta_schedule() -> None:
    np.testing.assert_allclose(beta_schedule(4, 1, 8), [1, 2, 4, 8])
    assert beta_schedule(1, 2.0).tolist() == [2.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Parameterisation(radius_nm=0), "radius_nm must be above 0 and finite, got 0"),
        (lambda: Parameterisation(pixel_nm=math.inf), "pixel_nm must be above 0 and finite, got inf"),
        (lambda: Parameterisation(min_feature_nm=0), "min_feature_nm must be above 0 and finite, got 0"),
        (
            lambda: Parameterisation(20, min_feature_nm=40).binary(np.zeros((8, 8))),
            "at most a quarter of the cell, 31.25",
        ),
        (lambda: Parameterisation(symmetry="d4"), "symmetry must be None or \"diagonal\", got 'd4'"),
        (lambda: Parameterisation(20).density(np.zeros((8, 8)), 0.0), "beta must be above 0, got 0"),
        (lambda: Parameterisation(20).density(np.zeros((8, 8)), 1.0, 1.0), "eta must lie between 0 and 1, got 1"),
        (
            lambda: Parameterisation(20).density(np.zeros((8, 8), np.uint8), 1.0),
            "density must be floating-point.* got uint8",
        ),
        (lambda: Parameterisation(20).pull_back(np.zeros((8, 8)), np.zeros((8, 8)), math.inf), "beta must be finite"),
        (lambda: Parameterisation(20).pull_back(np.zeros((8, 8)), np.zeros((8, 8)), math.nan), "beta must be above 0"),
        (lambda: tanh_projection(np.zeros(3), math.nan), "beta must be above 0, got nan"),
        (lambda: beta_schedule(3, 0.0), "first must be above 0 and finite, got 0"),
        (lambda: robust_etas(0.5), "delta must lie between 0 and 0.5, got 0.5"),
        (lambda: random_latents(1, correlation_nm=(300, 100)), "the smaller first, got"),
        (lambda: feature_size(np.zeros((2, 8, 8))), r"structure must be one structure \(y, x\), got shape \(2, 8, 8\)"),
        (lambda: feature_size(np.full((8, 8), 0.5)), "structure must be binary, .* got 0.5 at"),
        (lambda: without_small_features(np.zeros((8, 8)), 40.0), "at most a quarter of the cell, 31.25, got 40"),
    ],
)
def test_bad_arguments(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_random_latents_are_smooth_varied_and_periodic() -> None:
    latents = random_latents(12, seed=3)
    np.testing.assert_array_equal(latents[:5], random_latents(5, seed=3))
    np.testing.assert_array_equal(latents, random_latents(12, np.random.default_rng(3)))
    assert not np.isclose(latents, random_latents(12, seed=4)).all()
    assert latents.min() > 0
    assert latents.max() < 1
    filled = Parameterisation().binary(latents).mean(axis=(1, 2))
    assert 0.05 < filled.min() < 0.3
    assert 0.7 < filled.max() < 0.95
    steps = np.abs(np.diff(latents, axis=2)).mean(axis=(1, 2))  # from pixel to pixel
    assert steps.max() < 0.1
    assert steps.max() > 2 * steps.min()
    across = np.abs(latents[:, :, 0] - latents[:, :, -1]).mean(axis=1)
    np.testing.assert_array_less(across, 3 * steps)
    assert random_latents(0).shape == (0, 128, 128)
    assert random_latents(2, shape=(20, 30), pixel_nm=100.0).shape == (2, 20, 30)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
@pytest.mark.parametrize("offset", [0, -1, 30])
def test_the_width_of_a_stripe_wherever_it_lies(width: int, offset: int) -> None:
    """Also across the edge of the cell, where half of it lies on either side."""
    stripe = np.zeros((48, 48), np.uint8)
    stripe[:, :width] = 1
    shifted = np.roll(stripe, offset - (width // 2 if offset == 0 else 0), axis=1)
    assert feature_size(shifted, 10.0) == (10.0 * width, 10.0 * (48 - width))
    assert feature_size(1 - shifted.T, 10.0) == (10.0 * (48 - width), 10.0 * width)


@pytest.mark.parametrize("diameter", [3, 8, 21])
def test_the_diameter_of_a_disc_wherever_it_lies(diameter: int) -> None:
    axis = np.arange(48) - 24 + (0.5 if diameter % 2 == 0 else 0)
    disc = np.hypot(axis[:, None], axis) < diameter / 2
    for shift in ((0, 0), (24, 24), (24, 5), (20, 22)):
        assert feature_size(np.roll(disc, shift, axis=(0, 1)))[0] == diameter * PIXEL_NM
        assert feature_size(~np.roll(disc, shift, axis=(0, 1)))[1] == diameter * PIXEL_NM


def test_full_and_empty_cells_have_features_of_their_size() -> None:
    assert feature_size(np.zeros((32, 32))) == feature_size(np.ones((32, 32))) == (500.0, 500.0)


@pytest.mark.parametrize("seed", range(4))
def test_mended_structures_have_no_small_features(seed: int) -> None:
    structure = Parameterisation(50.0).binary(random_latents(1, seed, correlation_nm=(60.0, 200.0))[0])
    assert min(feature_size(structure)) < 78
    mended = without_small_features(structure, 78.0)
    assert mended.dtype == np.uint8
    assert min(feature_size(mended)) >= 78
    assert (mended != structure).mean() < 0.03  # the rest is as it was
    np.testing.assert_array_equal(without_small_features(mended, 78.0), mended)


def test_mending_keeps_the_symmetry_and_the_period() -> None:
    latent = random_latents(1, 5, correlation_nm=(60.0, 100.0))[0]
    structure = Parameterisation(50.0, "diagonal").binary(latent)
    mended = without_small_features(structure, 110.0)
    assert min(feature_size(mended)) >= 110
    assert (mended != structure).any()
    np.testing.assert_array_equal(mended, mended.T)
    shifted = without_small_features(np.roll(structure, (50, 30), axis=(0, 1)), 110.0)
    np.testing.assert_array_equal(shifted, np.roll(mended, (50, 30), axis=(0, 1)))


def test_mending_keeps_the_symmetry_where_smoothing_is_undecided() -> None:
    """Blocks, around whose corners as much is solid as is void: there rounding must not choose."""
    blocks = np.random.default_rng(4).integers(0, 2, (12, 12))
    structure = np.kron(np.triu(blocks) | np.triu(blocks).T, np.ones((4, 4), int))
    mended = without_small_features(structure, 78.0)
    assert (mended != structure).any()
    np.testing.assert_array_equal(mended, mended.T)


@pytest.mark.parametrize("seed", range(3))
def test_narrow_features_are_those_of_imageruler(seed: int) -> None:
    """Noise, with every kind of corner and crossing, and a smooth structure; discs of odd and even diameters."""
    rough = np.random.default_rng(seed).random((64, 64)) > 0.5
    smooth = Parameterisation(40.0).binary(random_latents(1, seed, (64, 64), correlation_nm=(40.0, 100.0))[0]) > 0
    for structure in (rough, ~rough, smooth, ~smooth):
        for width in (1, 2, 3, 5, 8, 12):
            expected = imageruler.length_scale_violations_solid(structure, width, (True, True))
            np.testing.assert_array_equal(narrow_features(structure, width), expected)


def test_binary_structures_keep_the_minimum_feature_size() -> None:
    latents = random_latents(3, 2, correlation_nm=(60.0, 100.0))
    free, bound = (Parameterisation(50.0, "diagonal", min_feature_nm=width) for width in (None, 100.0))
    assert min(feature_size(free.binary(latents)[0])) < 100
    structures = bound.binary(latents)
    for structure, before in zip(structures, free.binary(latents), strict=True):
        assert min(feature_size(structure)) >= 100
        np.testing.assert_array_equal(structure, without_small_features(before, 100.0))
        np.testing.assert_array_equal(structure, structure.T)
    np.testing.assert_array_equal(bound.binary(latents[0]), structures[0])


@pytest.mark.parametrize("symmetry", [None, "diagonal"])
@pytest.mark.parametrize("beta", [4.0, 30.0])
@pytest.mark.parametrize("width", [50.0, 100.0, 300.0])
def test_the_derivative_of_the_violation(latent: Array, symmetry: str | None, beta: float, width: float) -> None:
    parameterisation = Parameterisation(80.0, symmetry, min_feature_nm=width)
    value, gradient = parameterisation.violation(latent, beta)
    assert value.shape == (2,)
    direction, step = np.random.default_rng(2).normal(size=latent.shape), 1e-6
    ahead, behind = (parameterisation.violation(latent + sign * step * direction, beta)[0] for sign in (1, -1))
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2)), (ahead - behind) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("solid", [True, False])
def test_only_narrow_features_violate(solid: bool) -> None:
    """Stripes of solid or void from 2 to 20 pixels; the minimum is 6."""
    parameterisation = Parameterisation(6 * PIXEL_NM, min_feature_nm=6 * PIXEL_NM)
    violation = []
    for width in (2, 4, 10, 20):
        stripe = np.full((64, 64), float(not solid))
        stripe[:, :width] = solid
        violation.append(parameterisation.violation(stripe, 32.0)[0])
    assert violation[0] > 10 * violation[2]
    assert violation[1] > 10 * violation[2]
    assert violation[3] < 1e-6


def test_mending_noise_ends() -> None:
    """The hardest case: every pixel a feature of its own."""
    noise = np.random.default_rng(6).integers(0, 2, (64, 64))
    assert min(feature_size(without_small_features(noise, 125.0))) >= 125


def test_imageruler_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageruler", None)
    with pytest.raises(ImportError, match=r'feature sizes need imageruler: pip install "metaspec\[optimise\]"'):
        feature_size(np.zeros((8, 8)))
