"""Objectives: values, and derivatives by four ways that must agree."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaspec import Spectra, Surrogate
from metaspec.colour import ILLUMINANTS, colour_matching_functions, illuminant
from metaspec.objectives import (
    NAMES,
    BandEfficiency,
    ColourEfficiency,
    ColourMatrixError,
    Crosstalk,
    DetectorCrosstalk,
    InformationPerPixel,
    MinEfficiency,
    Objective,
    Spread,
    TargetSpectra,
    by_name,
    crosstalk_matrix,
    filter_array,
)
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

CHANNELS = ("R", "G1", "G2", "B", "spread")
WAVELENGTHS = np.linspace(400, 700, 61)
RNG = np.random.default_rng(0)

OBJECTIVES = [
    ColourEfficiency("R"),
    ColourEfficiency("G"),
    Crosstalk("G"),
    BandEfficiency((450, 520), ("B", "G1")),
    DetectorCrosstalk(),
    DetectorCrosstalk(tuple(map(tuple, RNG.normal(size=(4, 3))))),
    InformationPerPixel(),
    InformationPerPixel("A", photons=(30, 3000), contrast=0.3, correlation_nm=80, read_noise=1),
    MinEfficiency(),
    MinEfficiency(0.02),
    MinEfficiency(1e-4),
    TargetSpectra(RNG.random((4, 61))),
    TargetSpectra(RNG.random((3, 2, 61)), channels=("B", "G1"), weight=RNG.random(61)),
    ColourMatrixError("D65"),
    Spread(),
    MinEfficiency(0.05) - 2.0 * Spread() + 0.3 * TargetSpectra(np.zeros((4, 61))) - ColourMatrixError("A") / 7,
]


@pytest.fixture
def values() -> Array:
    """Realistic spectra: a quarter of the light in each detector, with smooth deviations; and a small spread."""
    steps = np.random.default_rng(1).normal(0, 0.01, (3, 5, 61)).cumsum(axis=-1)
    spectra: Array = np.clip(np.array([0.25, 0.25, 0.25, 0.25, 0.05])[:, None] + steps, 0.001, 1)
    return spectra


@pytest.fixture
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def torch_gradient(objective: Objective, values: Array) -> tuple[Array, Array]:
    tensor = torch.tensor(values, requires_grad=True)
    score = objective.score(tensor, WAVELENGTHS, CHANNELS)
    score.sum().backward()
    assert tensor.grad is not None
    assert score.dtype == tensor.dtype
    gradient: Array = tensor.grad.numpy()
    value: Array = score.detach().numpy()
    return value, gradient


def jax_gradient(objective: Objective, values: Array) -> tuple[Array, Array]:
    @jax.jit
    def function(array: jax.Array) -> tuple[jax.Array, jax.Array]:
        score, pull_back = jax.vjp(lambda x: objective.score(x, WAVELENGTHS, CHANNELS), array)
        assert score.dtype == array.dtype
        return score, pull_back(jnp.ones_like(score))[0]

    score, gradient = function(jnp.asarray(values))
    return np.asarray(score), np.asarray(gradient)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_numpy_torch_and_jax_agree_on_values_and_derivatives(
    objective: Objective, values: Array, double_precision: None
) -> None:
    value, cotangent = objective(Spectra(values, WAVELENGTHS, CHANNELS))
    assert (value.shape, cotangent.shape) == ((3,), values.shape)
    for score, gradient in (torch_gradient(objective, values), jax_gradient(objective, values)):
        np.testing.assert_allclose(score, value, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gradient, cotangent, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_derivatives_are_those_of_finite_differences(objective: Objective, values: Array) -> None:
    cotangent = objective.cotangent(values, WAVELENGTHS, CHANNELS)
    direction, step = np.random.default_rng(2).normal(size=values.shape), 1e-6
    higher, lower = (objective.score(values + s * direction, WAVELENGTHS, CHANNELS) for s in (step, -step))
    slope = (cotangent * direction).sum(axis=(1, 2))
    np.testing.assert_allclose(slope, (higher - lower) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_single_precision_is_enough(objective: Objective, values: Array) -> None:
    """Servers answer in float32. The gradients are compared by their largest entry."""
    value, cotangent = objective(Spectra(values, WAVELENGTHS, CHANNELS))
    for score, gradient in (f(objective, values.astype(np.float32)) for f in (torch_gradient, jax_gradient)):
        assert score.dtype == gradient.dtype == np.float32
        np.testing.assert_allclose(score, value, atol=2e-5)
        np.testing.assert_allclose(gradient, cotangent, atol=2e-3 * np.abs(cotangent).max())


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if "3, 2, 61" not in repr(o)], ids=repr)
def test_any_leading_axes(objective: Objective, values: Array) -> None:
    expected = objective.score(values, WAVELENGTHS, CHANNELS)
    assert objective.score(values[0], WAVELENGTHS, CHANNELS).shape == ()
    np.testing.assert_allclose(objective.score(values[1], WAVELENGTHS, CHANNELS), expected[1], rtol=1e-12)
    stacked = np.stack([values, values])
    np.testing.assert_allclose(objective.score(stacked, WAVELENGTHS, CHANNELS), [expected, expected], rtol=1e-12)
    assert objective.cotangent(stacked, WAVELENGTHS, CHANNELS).shape == stacked.shape
    mapped = jax.vmap(lambda x: objective.score(x, WAVELENGTHS, CHANNELS))(jnp.asarray(values))
    np.testing.assert_allclose(mapped, expected, atol=2e-5)
    assert objective.score(values[:0], WAVELENGTHS, CHANNELS).shape == (0,)
    assert objective.cotangent(values[:0], WAVELENGTHS, CHANNELS).shape == (0, 5, 61)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if "Spread" not in repr(o)], ids=repr)
def test_channels_go_by_name_and_others_do_not_count(objective: Objective, values: Array) -> None:
    expected, cotangent = objective(Spectra(values, WAVELENGTHS, CHANNELS))
    assert not cotangent[:, 4].any()
    order = [3, 0, 2, 1]
    value, permuted = objective(Spectra(values[:, order], WAVELENGTHS, tuple(CHANNELS[i] for i in order)))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(permuted, cotangent[:, order], atol=1e-15)


def test_they_are_the_figures_of_merit_of_spectra(values: Array) -> None:
    spectra = Spectra(values, WAVELENGTHS, CHANNELS)
    for index, colour in enumerate("RGB"):
        np.testing.assert_allclose(
            ColourEfficiency(colour)(spectra)[0], spectra.colour_efficiency()[:, index], rtol=1e-6
        )
        np.testing.assert_allclose(Crosstalk(colour)(spectra)[0], spectra.crosstalk()[:, index], rtol=1e-6)
    np.testing.assert_allclose(MinEfficiency()(spectra)[0], spectra.min_efficiency(), rtol=1e-6)


def test_bands_and_green_by_hand() -> None:
    """The lower edge of a band belongs to it, the upper one does not; green is G1 + G2."""
    wavelengths = np.array([400.0, 499, 500, 599, 600, 699, 700])
    values = np.arange(28.0).reshape(1, 4, 7)
    red, green, blue = (ColourEfficiency(colour).score(values, wavelengths, CHANNELS[:4]) for colour in "RGB")
    assert (red, green, blue) == ((4 + 5) / 2, (9 + 10) / 2 + (16 + 17) / 2, (21 + 22) / 2)
    assert Crosstalk("B").score(values, wavelengths, CHANNELS[:4]) == (23 + 24 + 25 + 26) / 4


efficiency = st.floats(0, 1)


@given(st.tuples(efficiency, efficiency, efficiency), st.floats(1e-4, 1))
def test_the_soft_minimum_stays_near_the_hard_one(efficiencies: tuple[float, float, float], softness: float) -> None:
    red, green, blue = efficiencies
    values = np.zeros((4, 3))
    values[0, 2], values[1, 1], values[3, 0] = red, green, blue
    soft = MinEfficiency(softness).score(values, [450, 550, 650], CHANNELS[:4])
    assert min(efficiencies) - 1e-12 <= soft <= min(efficiencies) + softness * np.log(3) + 1e-12
    assert soft <= np.mean(efficiencies) + 1e-12  # Jensen's inequality: it never flatters


def test_ties_of_the_hard_minimum_share_the_derivative(double_precision: None) -> None:
    values = np.zeros((1, 5, 61))
    values[:, [0, 3]], values[:, [1, 2]] = 0.25, 0.125
    cotangent = MinEfficiency().cotangent(values, WAVELENGTHS, CHANNELS)
    np.testing.assert_allclose(cotangent.sum(axis=-1), [[1 / 3, 1 / 3, 1 / 3, 1 / 3, 0]])
    for gradient in (torch_gradient(MinEfficiency(), values)[1], jax_gradient(MinEfficiency(), values)[1]):
        np.testing.assert_allclose(gradient, cotangent, atol=1e-15)


def test_target_spectra(values: Array) -> None:
    goal = TargetSpectra(values[0, :4])
    score = goal.score(values, WAVELENGTHS, CHANNELS)
    assert score[0] == 0
    np.testing.assert_allclose(score[1], -((values[1, :4] - values[0, :4]) ** 2).mean())
    weight = WAVELENGTHS < 500
    blue = TargetSpectra(values[0, 3:4], channels=("B",), weight=weight).score(values, WAVELENGTHS, CHANNELS)
    np.testing.assert_allclose(blue[2], -((values[2, 3, weight] - values[0, 3, weight]) ** 2).mean())
    assert repr(goal) != repr(TargetSpectra(values[1, :4]))


def test_target_spectra_do_not_follow_later_changes(values: Array) -> None:
    target = values[0, :4].copy()
    goal = TargetSpectra(target)
    target[:] = 0
    assert goal.score(values, WAVELENGTHS, CHANNELS)[0] == 0


def test_spread(values: Array) -> None:
    value, cotangent = Spread()(Spectra(values, WAVELENGTHS, CHANNELS))
    np.testing.assert_allclose(value, values[:, 4].mean(axis=1))
    assert not cotangent[:, :4].any()
    with pytest.raises(ValueError, match=r'the model has no channel "spread", only R, G1, G2, B: leave out Spread\(\)'):
        (MinEfficiency() - Spread())(Spectra(values[:, :4], WAVELENGTHS))


weights = st.floats(-10, 10)


@settings(deadline=None)
@given(weights, weights, weights)
def test_sums_are_linear(a: float, b: float, c: float) -> None:
    values = np.random.default_rng(3).random((2, 5, 61))
    first, second, third = MinEfficiency(0.1), Crosstalk("B"), Spread()
    total = a * (first - b * second) + third * c - (-first)
    for method in ("score", "cotangent"):
        x, y, z = (getattr(o, method)(values, WAVELENGTHS, CHANNELS) for o in (first, second, third))
        expected = (a + 1) * x - a * b * y + c * z
        np.testing.assert_allclose(getattr(total, method)(values, WAVELENGTHS, CHANNELS), expected, atol=1e-10)


def test_sums_read_as_they_were_written() -> None:
    assert repr(MinEfficiency(0.02) - 2.0 * Spread()) == "MinEfficiency(softness=0.02) - 2 * Spread()"
    assert repr(-ColourMatrixError("D65")) == "-ColourMatrixError(illuminant='D65')"
    assert repr(-(0.5 * Spread() - MinEfficiency())) == "-0.5 * Spread() + MinEfficiency(softness=None)"
    assert (
        repr(sum([Crosstalk("R"), Crosstalk("B")]) / 2) == "0.5 * Crosstalk(colour='R') + 0.5 * Crosstalk(colour='B')"
    )
    assert repr(np.float64(0.5) * Spread()) == repr(Spread() * np.float32(0.5)) == "0.5 * Spread()"
    assert MinEfficiency(0.02) - Spread() == MinEfficiency(0.02) - Spread()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Spread() + 1,  # type: ignore[operator]
        lambda: 1 - Spread(),  # type: ignore[operator]
        lambda: Spread() * Spread(),  # type: ignore[operator]
        lambda: Spread() / Spread(),  # type: ignore[operator]
        lambda: np.ones(3) * Spread(),  # type: ignore[operator]
    ],
)
def test_sums_of_other_things(wrong: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        wrong()


def test_by_name(values: Array) -> None:
    spectra = Spectra(values, WAVELENGTHS, CHANNELS)
    efficiencies = spectra.colour_efficiency()
    for index, name in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(by_name(name)(spectra)[0], efficiencies[:, index], rtol=1e-6)
    np.testing.assert_allclose(by_name("min")(spectra)[0], efficiencies.min(axis=1), rtol=1e-6)
    assert repr(by_name("bayer")) == "MinEfficiency(softness=0.02)"
    np.testing.assert_allclose(by_name("colour-matrix")(spectra)[0], -ColourMatrixError("D65")(spectra)[0])
    np.testing.assert_allclose(by_name("crosstalk")(spectra)[0], -DetectorCrosstalk()(spectra)[0])
    np.testing.assert_allclose(by_name("information")(spectra)[0], InformationPerPixel()(spectra)[0])
    names = "bayer, balanced, min, red, green, blue, colour-matrix, crosstalk, information"
    assert ", ".join(NAMES) == names
    with pytest.raises(ValueError, match=f"objective must be one of {names}, got 'x'"):
        by_name("x")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ColourEfficiency("green"), "colour must be one of R, G, B, got 'green'"),
        (lambda: Crosstalk("G1"), "colour must be one of R, G, B, got 'G1'"),
        (lambda: BandEfficiency((500, 450), ("B",)), r"band_nm must be two wavelengths in nm, the smaller first, got"),
        (lambda: BandEfficiency((450, float("inf")), ("B",)), "band_nm must be two wavelengths"),
        (lambda: BandEfficiency((450, 500), "G1"), r"channels must be a tuple of different names.*, got 'G1'"),
        (lambda: BandEfficiency((450, 500), ("B", "B")), "channels must be a tuple of different names"),
        (lambda: BandEfficiency((450, 500), ()), "channels must be a tuple of different names"),
        (lambda: DetectorCrosstalk(((1, 2, 3),)), "weights must be 4 x 3 finite numbers"),
        (lambda: InformationPerPixel("F2"), "illuminant must be one of D65, A, E, got 'F2'"),
        (lambda: InformationPerPixel(photons=()), r"photons must be numbers above 0, got \(\)"),
        (lambda: InformationPerPixel(photons=(10, -1)), "photons must be numbers above 0"),
        (lambda: InformationPerPixel(contrast=0), "contrast must be above 0 and finite, got 0"),
        (lambda: InformationPerPixel(read_noise=float("nan")), "read_noise must be above 0 and finite, got nan"),
        (lambda: MinEfficiency(0), "softness must be above 0, or None for the hard minimum, got 0"),
        (lambda: MinEfficiency(float("nan")), "softness must be above 0"),
        (lambda: ColourMatrixError("F2"), "illuminant must be one of D65, A, E, got 'F2'"),
        (
            lambda: TargetSpectra(np.zeros((3, 61))),
            r"\(4, wavelengths\) or \(N, 4, wavelengths\).* got shape \(3, 61\)",
        ),
        (lambda: TargetSpectra(np.full((4, 61), np.nan)), "target must be finite numbers"),
        (lambda: TargetSpectra(np.zeros((4, 61)), weight=-1), "weight must be finite and at least 0"),
        (lambda: TargetSpectra(np.zeros((4, 61)), weight=0), "above 0 somewhere"),
    ],
)
def test_bad_settings(wrong: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_bad_spectra(values: Array) -> None:
    objective = MinEfficiency()
    with pytest.raises(ValueError, match=r"spectra must be \(\.\.\., 4 channels, 61 wavelengths\), got \(3, 5, 61\)"):
        objective.score(values, WAVELENGTHS, CHANNELS[:4])
    with pytest.raises(ValueError, match="spectra must be floating-point numbers, got uint8"):
        objective.score(values.astype(np.uint8), WAVELENGTHS, CHANNELS)
    with pytest.raises(ValueError, match="channel must be one of R, G1, B, got 'G2'"):
        objective(Spectra(values[:, :3], WAVELENGTHS, ("R", "G1", "B")))
    with pytest.raises(ValueError, match="no wavelength lies in the band of red"):
        objective.score(values, np.linspace(400, 590, 61), CHANNELS)
    with pytest.raises(ValueError, match=r"spectra \(3, 5, 61\) do not fit a target of shape \(4, 60\)"):
        TargetSpectra(np.zeros((4, 60))).score(values, WAVELENGTHS, CHANNELS)
    with pytest.raises(ValueError, match=r"spectra \(3, 5, 61\) do not fit a target of shape \(2, 4, 61\)"):
        TargetSpectra(np.zeros((2, 4, 61))).score(values, WAVELENGTHS, CHANNELS)


@pytest.mark.parametrize(
    ("objective", "wavelengths", "message"),
    [
        (
            BandEfficiency((650, 750), ("R",)),
            (400, 700),
            "must reach across the band of 650 to 750 nm, got 400 to 700 nm",
        ),
        (BandEfficiency((380, 450), ("B",)), (400, 700), "must reach across the band of 380 to 450 nm"),
        (BandEfficiency((800, 850), ("B",)), (400, 700), "must reach across the band of 800 to 850 nm"),
        (DetectorCrosstalk(), (400, 590), "no wavelength lies in the band of red"),
        (InformationPerPixel(), (510, 700), "information about colour needs wavelengths in the band of blue"),
        (InformationPerPixel(), (900, 1000), "needs wavelengths in the band of red and green and blue"),
    ],
)
def test_bands_that_the_wavelengths_do_not_reach(
    objective: Objective, wavelengths: tuple[float, float], message: str, values: Array
) -> None:
    for method in (objective.score, objective.cotangent):
        with pytest.raises(ValueError, match=message):
            method(values, np.linspace(*wavelengths, 61), CHANNELS)


def test_bands_of_colours_are_bands(values: Array) -> None:
    for objective, colour in (
        (BandEfficiency((500, 600), ("G1", "G2")), "G"),
        (BandEfficiency((600, 700), ("R",)), "R"),
    ):
        expected = ColourEfficiency(colour).score(values, WAVELENGTHS, CHANNELS)
        np.testing.assert_allclose(objective.score(values, WAVELENGTHS, CHANNELS), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="channel must be one of R, G1, G2, B, spread, got 'Y'"):
        BandEfficiency((500, 600), ("Y",)).score(values, WAVELENGTHS, CHANNELS)


def router(*, lost: float = 0.0, astray: float = 0.0) -> Array:
    """A router (4, 61) that loses a share of the light and sends a share of the rest to all detectors alike."""
    band = np.stack([WAVELENGTHS >= 600, (WAVELENGTHS >= 500) & (WAVELENGTHS < 600), WAVELENGTHS < 500]).astype(float)
    sorted_light = np.stack([band[0], band[1] / 2, band[1] / 2, band[2]])
    light: Array = (1 - lost) * ((1 - astray) * sorted_light + astray / 4)
    return light


def test_the_crosstalk_matrix_by_hand(values: Array) -> None:
    matrix = crosstalk_matrix(router(lost=0.5, astray=0.2), WAVELENGTHS, CHANNELS[:4])
    expected = np.array([[0.85, 0.05, 0.05], [0.05, 0.45, 0.05], [0.05, 0.45, 0.05], [0.05, 0.05, 0.85]])
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    incident = crosstalk_matrix(router(lost=0.5, astray=0.2), WAVELENGTHS, CHANNELS[:4], normalise=False)
    np.testing.assert_allclose(incident, 0.5 * expected, atol=1e-12)
    mean = DetectorCrosstalk().score(router(lost=0.5, astray=0.2), WAVELENGTHS, CHANNELS[:4])
    assert mean == pytest.approx((0.15 + 0.1 + 0.15) / 3)
    tensor = crosstalk_matrix(torch.tensor(values), WAVELENGTHS, CHANNELS)
    np.testing.assert_allclose(tensor.sum(dim=-2), 1, rtol=1e-12)
    np.testing.assert_allclose(tensor, crosstalk_matrix(values, WAVELENGTHS, CHANNELS), rtol=1e-12)
    into_green = DetectorCrosstalk(((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0))).score(values, WAVELENGTHS, CHANNELS)
    np.testing.assert_allclose(into_green, np.asarray(tensor)[:, 1:3, 2].sum(axis=1), rtol=1e-12)
    assert repr(DetectorCrosstalk()) == "DetectorCrosstalk()"


def test_crosstalk_of_no_light_is_none() -> None:
    dark = np.zeros((1, 4, 61))
    assert DetectorCrosstalk().score(dark, WAVELENGTHS, CHANNELS[:4]) == 0
    assert np.isfinite(DetectorCrosstalk().cotangent(dark, WAVELENGTHS, CHANNELS[:4])).all()


@pytest.mark.parametrize("photons", [20.0, 1000.0])
def test_information_is_that_of_the_joint_covariance(values: Array, photons: float) -> None:
    """Against I(Y; Z) = 1/2 log2(det Cov(Y) det Cov(Z) / det Cov(Y, Z)), with every covariance of the scene written out."""
    goal = InformationPerPixel(photons=(photons,))
    found = goal.score(values, WAVELENGTHS, CHANNELS)
    power = illuminant("D65", WAVELENGTHS) * np.gradient(WAVELENGTHS)
    light = power * WAVELENGTHS / (power * WAVELENGTHS).sum()
    scene = 0.25 * np.exp(-np.abs(WAVELENGTHS[:, None] - WAVELENGTHS) / 500)
    eye = colour_matching_functions(WAVELENGTHS) * power
    eye /= np.sqrt(np.diag(eye @ scene @ eye.T))[:, None]
    for spectra, bits in zip(values[:, :4], found, strict=True):
        counts = 4 * photons * spectra * light  # electrons of each detector at each wavelength, of the mean scene
        both = np.concatenate([counts, eye])
        joint = both @ scene @ both.T
        joint[:4, :4] += np.diag(counts.sum(axis=1) + 2.0**2)
        log2 = [np.linalg.slogdet(part)[1] / np.log(2) for part in (joint[:4, :4], joint[4:, 4:], joint)]
        assert bits == pytest.approx((log2[0] + log2[1] - log2[2]) / 2 / 4, rel=1e-8)


def test_information_of_known_sensors() -> None:
    goal = InformationPerPixel()
    names = CHANNELS[:4]

    def bits(sensor: Array, goal: InformationPerPixel = goal) -> float:
        return float(goal.score(sensor, WAVELENGTHS, names))

    ideal, array, grey = bits(router()), bits(filter_array(WAVELENGTHS)), bits(np.full((4, 61), 0.25))
    assert bits(np.zeros((4, 61))) == 0
    assert 0 < grey < array < ideal  # a grey sensor sees brightness only; the array absorbs two thirds of the light
    assert bits(router(lost=0.3)) < ideal
    assert bits(router(astray=0.5)) < ideal
    assert (
        bits(router(), InformationPerPixel(read_noise=10))
        < ideal
        < bits(router(), InformationPerPixel(photons=(5000,)))
    )
    exposures = [bits(router(), InformationPerPixel(photons=(level,))) for level in goal.photons]
    assert exposures == sorted(exposures)
    assert np.mean(exposures) == pytest.approx(ideal)


def test_the_bits_of_the_docs_are_these() -> None:
    fine, names = np.arange(400.0, 701), CHANNELS[:4]
    blue, green, red = fine < 500, (fine >= 500) & (fine < 600), fine >= 600
    routed = np.stack([red, green / 2, green / 2, blue]).astype(float)
    sensors = [np.full((4, 301), 0.25), filter_array(fine), (routed > 0) / 4, routed]
    bits = [float(InformationPerPixel().score(sensor, fine, names)) for sensor in sensors]
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    table = text[text.index("| bits per raw pixel |") :]
    assert re.findall(r"\| (\d\.\d\d) \|", table)[:4] == [f"{value:.2f}" for value in bits]


def test_the_filter_array_keeps_what_its_filters_pass() -> None:
    spectra = filter_array(WAVELENGTHS)
    assert spectra.shape == (4, 61)
    np.testing.assert_array_equal(spectra[1], spectra[2])
    assert spectra.max() == pytest.approx(0.9 / 4)
    assert [WAVELENGTHS[peak] for peak in spectra.argmax(axis=1)] == [610, 540, 540, 460]
    np.testing.assert_allclose(spectra[3, [2, 22]], 0.45 / 4)  # half a width from the centre, at 410 and 510 nm


def test_colour_matching_functions_are_near_the_tables() -> None:
    """CIE 15:2004, table T.4. The largest error of the fit is 0.02 (Wyman, Sloan and Shirley, 2013)."""
    table = {
        420: (0.13438, 0.0040, 0.6456),
        450: (0.3362, 0.038, 1.77211),
        500: (0.0049, 0.323, 0.2720),
        550: (0.43345, 0.99495, 0.00875),
        600: (1.0622, 0.631, 0.0008),
        650: (0.2835, 0.107, 0.0),
        700: (0.011359, 0.004102, 0.0),
    }
    np.testing.assert_allclose(colour_matching_functions(list(table)).T, list(table.values()), atol=0.03)


@pytest.mark.parametrize(
    ("name", "table", "white"),
    [
        # ISO/CIE 11664-2 and CIE 15:2004, tables T.1 and T.3.
        ("A", {400: 14.708, 450: 33.0859, 500: 59.8611, 600: 129.043, 700: 198.261}, (0.44758, 0.40745)),
        ("D65", {400: 82.7549, 450: 117.008, 500: 109.354, 600: 90.0062, 700: 71.6091}, (0.31272, 0.32903)),
        ("E", {400: 100, 700: 100}, (1 / 3, 1 / 3)),
    ],
)
def test_illuminants_are_those_of_the_standard(name: str, table: dict[int, float], white: tuple[float, float]) -> None:
    np.testing.assert_allclose(illuminant(name, list(table)), list(table.values()), atol=0.08)
    assert illuminant(name, [560.0]) == pytest.approx(100)
    wavelengths = np.arange(380.0, 781)
    x, y, z = colour_matching_functions(wavelengths) @ illuminant(name, wavelengths)
    np.testing.assert_allclose((x / (x + y + z), y / (x + y + z)), white, atol=0.003)


def test_illuminants_out_of_range() -> None:
    with pytest.raises(ValueError, match="D65 is tabulated from 380 to 780 nm, got 350 to 700 nm"):
        illuminant("D65", [350.0, 700.0])
    with pytest.raises(ValueError, match="illuminant must be one of D65, A, E, got 'd65'"):
        illuminant("d65", [500.0])


def sensor(rgb: Array) -> Array:
    """Red, green, blue (..., 3, wavelengths) as the four channels of a cell."""
    red, green, blue = np.moveaxis(rgb, -2, 0)
    return np.stack([red, 0.3 * green, 0.7 * green, blue], axis=-2)


@pytest.mark.parametrize("name", ILLUMINANTS)
def test_a_colorimetric_sensor_has_no_error(name: str) -> None:
    rng = np.random.default_rng(4)
    rgb = 0.2 * rng.random((5, 3, 3)) @ colour_matching_functions(WAVELENGTHS)
    error = ColourMatrixError(name).score(sensor(rgb), WAVELENGTHS, CHANNELS[:4])
    np.testing.assert_allclose(error, 0, atol=1e-5)


@pytest.mark.parametrize("name", ILLUMINANTS)
def test_the_error_is_the_residual_of_the_best_matrix(values: Array, name: str) -> None:
    """Against a least-squares solver, for an orthonormal basis of the targets."""
    light = illuminant(name, WAVELENGTHS)
    target = np.linalg.qr((colour_matching_functions(WAVELENGTHS) * light).T)[0]
    error = ColourMatrixError(name).score(values, WAVELENGTHS, CHANNELS)
    for spectra, found in zip(values, error, strict=True):
        rgb = np.stack([spectra[0], spectra[1] + spectra[2], spectra[3]]) * light
        residual = np.linalg.lstsq(rgb.T, target)[1].sum() / 3
        assert 0 < found < 1
        assert found == pytest.approx(residual, abs=1e-6)


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(0, 0.5))
def test_the_error_knows_neither_brightness_nor_primaries(brightness: float, mixed: float) -> None:
    rgb = np.random.default_rng(5).random((3, 61))
    error = ColourMatrixError()
    plain = error.score(sensor(rgb), WAVELENGTHS, CHANNELS[:4])
    mixture = (np.eye(3) + mixed * np.ones((3, 3))) @ rgb
    np.testing.assert_allclose(error.score(sensor(brightness * rgb), WAVELENGTHS, CHANNELS[:4]), plain, rtol=1e-9)
    np.testing.assert_allclose(error.score(sensor(mixture), WAVELENGTHS, CHANNELS[:4]), plain, rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sensor_that_sees_no_colour(power: float, dtype: type) -> None:
    """The empty cell sends a quarter of the light to each detector."""
    values: Array = np.full((1, 5, 61), power, dtype)
    objective = ColourMatrixError("E")
    grey = np.linalg.qr(colour_matching_functions(WAVELENGTHS).T)[0].sum(axis=0)
    expected = 1 - (power > 0) * (grey @ grey) / 61 / 3
    np.testing.assert_allclose(objective.score(values, WAVELENGTHS, CHANNELS), expected, atol=1e-5)
    assert np.isfinite(objective.cotangent(values, WAVELENGTHS, CHANNELS)).all()
    with jax.enable_x64(dtype is np.float64):
        for _, gradient in (torch_gradient(objective, values), jax_gradient(objective, values)):
            assert np.isfinite(gradient).all()


def test_the_gradient_through_a_server(server: RunningServer) -> None:
    """The small model is linear before its sigmoid, so a step along the gradient must pay as much as it promises."""
    density = np.random.default_rng(6).uniform(0.3, 0.7, (2, 128, 128))
    objective = MinEfficiency(0.05) - 0.5 * Crosstalk("R") - ColourMatrixError()
    with Surrogate(server.url) as surrogate:
        value, gradient, spectra = surrogate.predict_and_gradient(density, objective)
        np.testing.assert_allclose(
            value, objective.score(spectra.values, spectra.wavelengths_nm, spectra.channels), atol=1e-5
        )
        step = 0.02 / np.abs(gradient).max(axis=(1, 2), keepdims=True) * gradient
        higher, lower = (objective(surrogate.predict(density + s * step))[0] for s in (1, -1))
    promised = 2 * (gradient * step).sum(axis=(1, 2))
    np.testing.assert_allclose(higher - lower, promised, rtol=0.02)


def test_importing_objectives_and_topology_is_light() -> None:
    heavy = {"torch", "jax", "scipy", "imageruler", "cv2", "pandas", "matplotlib"}
    code = f"import sys, metaspec.objectives, metaspec.topology; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_examples_of_the_docs(server: RunningServer) -> None:
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec("\n".join(blocks).replace("http://127.0.0.1:8000", server.url), names)
    # numpy, torch and jax took the same step, at the same latent and steepness.
    density = names["parameterisation"].density(names["latent"], 8.0)
    value, gradient, _ = names["surrogate"].predict_and_gradient(density, names["objective"])
    expected = names["parameterisation"].pull_back(names["latent"], gradient, 8.0)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(names["value"], value.sum(), rtol=1e-5)
    for found in (names["tensor"].grad.numpy(), names["gradient"]):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert names["structures"].dtype == np.uint8
    names["surrogate"].close()
