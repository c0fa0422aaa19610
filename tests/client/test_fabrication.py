"""The fabrication model: edges, derivatives by four ways, random corners; and as part of a problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metaspec import Surrogate
from metaspec.fabrication import BlurAndBias, Corner, fabricate, pull_back
from metaspec.objectives import MinEfficiency
from metaspec.optimise import Adam, Problem, Progress, run
from metaspec.topology import PIXEL_NM, Parameterisation, random_latents
from metaspec_testing.small_models import Array

CORNERS = [Corner(20, 0), Corner(20, 7), Corner(12, -10), Corner(60, 5)]


def disc(radius_nm: float) -> Array:
    y, x = np.mgrid[:128, :128] - 63.5
    inside: Array = np.hypot(y, x) * PIXEL_NM < radius_nm
    return inside.astype(float)


# The model


@pytest.mark.parametrize("corner", CORNERS)
def test_numpy_torch_and_jax_agree_with_finite_differences(corner: Corner) -> None:
    rng = np.random.default_rng(0)
    density, direction, cotangent = rng.random((3, 2, 64, 48))
    value, gradient = fabricate(density, corner, 9.0), pull_back(density, cotangent, corner, 9.0)
    higher, lower = (fabricate(density + step * direction, corner, 9.0) for step in (1e-6, -1e-6))
    slope = (cotangent * (higher - lower)).sum(axis=(1, 2)) / 2e-6
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2)), slope, rtol=1e-6)

    tensor = torch.tensor(density, requires_grad=True)
    made = fabricate(tensor, corner, 9.0)
    (made * torch.tensor(cotangent)).sum().backward()
    np.testing.assert_allclose(made.detach(), value, atol=1e-12)
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, gradient, atol=1e-12)
    with jax.enable_x64(True):
        found, pull = jax.vjp(jax.jit(lambda d: fabricate(d, corner, 9.0)), jnp.asarray(density))
        np.testing.assert_allclose(found, value, atol=1e-12)
        np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], gradient, atol=1e-12)
    single = fabricate(density.astype(np.float32), corner, 9.0)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, value, atol=1e-5)


@pytest.mark.parametrize("bias", [-16.0, -4.0, 0.0, 9.0])
def test_the_bias_is_that_of_a_straight_edge(bias: float) -> None:
    """At the shifted edge, the blurred step equals the threshold: so says its closed form, and so do the pixels' centres."""
    corner = Corner(24.0, bias)
    density = np.zeros((128, 128))
    density[:, 32:96] = 1
    edge = 96 * PIXEL_NM
    centres = (np.arange(128) + 0.5) * PIXEL_NM
    blurred = np.array(
        [NormalDist(0, 24.0).cdf(edge - x) - NormalDist(0, 24.0).cdf(32 * PIXEL_NM - x) for x in centres]
    )
    eta = NormalDist().cdf(-bias / 24.0)
    assert NormalDist(0, 24.0).cdf(edge - (edge + bias)) == pytest.approx(eta)
    low, high = math.tanh(3 * eta), math.tanh(3 * (1 - eta))
    expected = (low + np.tanh(3 * (blurred - eta))) / (low + high)
    np.testing.assert_allclose(fabricate(density, corner, 3.0)[64], expected, atol=1e-9)


@pytest.mark.parametrize("bias", [-10.0, -5.0, 5.0, 10.0])
def test_discs_grow_and_shrink_by_the_bias(bias: float) -> None:
    """Thresholded on pixels of 15.6 nm; the blur alone moves a convex edge inwards by about blur^2 / (2 radius)."""
    discs = np.stack([disc(radius) for radius in np.linspace(400, 600, 40)])
    made = fabricate(discs, Corner(20, bias))
    assert set(np.unique(made)) == {0.0, 1.0}
    before, after = (np.sqrt(d.sum(axis=(1, 2)) / np.pi) * PIXEL_NM for d in (discs, made))
    assert (after - before).mean() == pytest.approx(bias - 20**2 / 1000, abs=1.6)  # a tenth of a pixel


def test_blur_removes_what_is_smaller() -> None:
    assert not fabricate(disc(12), Corner(20, 0)).any()
    assert fabricate(1 - disc(12), Corner(20, 0)).all()
    assert fabricate(disc(200), Corner(20, 0)).any()


def test_densities_stay_in_range_and_edges_keep_a_derivative() -> None:
    density = (np.random.default_rng(1).random((3, 128, 128)) > 0.5).astype(np.float32)
    for corner in CORNERS:
        made = fabricate(density, corner, 1000.0)
        assert 0 <= made.min() < made.max() <= 1
        gradient = pull_back(disc(500), np.ones((128, 128)), corner, 1000.0)
        assert (np.abs(gradient) > 0.05).sum() > 100  # the steepness is limited by the blur


# Corners


def test_corners_fill_the_ranges_and_follow_from_seed_and_step() -> None:
    process = BlurAndBias((10, 20), (-8, 8), corners=5, seed=3)
    drawn = [process.draw(step) for step in range(40)]
    for corners in (*drawn, process.draw()):
        blur, bias = np.array(corners).T
        np.testing.assert_array_equal(np.sort((blur - 10) // 2), np.arange(5))  # one in each fifth of the range
        np.testing.assert_array_equal(np.sort((bias + 8) // 3.2), np.arange(5))
    assert len(set(drawn) | {process.draw()}) == 41
    assert BlurAndBias((10, 20), (-8, 8), corners=5, seed=3).draw(7) == drawn[7]
    assert BlurAndBias((10, 20), (-8, 8), corners=5, seed=4).draw(7) != drawn[7]
    fixed = BlurAndBias((10, 20), (-8, 8), corners=5, seed=3, redraw=False)
    assert fixed.draw(0) == fixed.draw(7) == fixed.draw() == process.draw()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: BlurAndBias((20, 10)), r"blur_nm must be two lengths in nm, the smaller first, got \(20, 10\)"),
        (lambda: BlurAndBias((0, 10), (0, 0)), "blur_nm must be above 0 and finite, got 0"),
        (lambda: BlurAndBias((10, 20), (-16, 0)), "bias_nm must be at most 1.5 times the blur of 10 nm, got -16"),
        (lambda: BlurAndBias((10, 20), (0, math.inf)), "bias_nm must be two lengths in nm"),
        (lambda: BlurAndBias(corners=0), "corners must be at least 1 and seed at least 0, got 0 and 0"),
        (lambda: BlurAndBias(seed=-1), "corners must be at least 1 and seed at least 0, got 4 and -1"),
        (
            lambda: fabricate(disc(500), Corner(300, 0)),
            "blur_nm must be at most an eighth of the cell's 2000 nm, got 300",
        ),
        (lambda: fabricate(disc(500).astype(int), Corner(20, 0)), "density must be floating-point numbers"),
        (lambda: pull_back(disc(500), disc(500), Corner(20, 0), math.inf), "beta must be finite for a derivative"),
    ],
)
def test_bad_settings(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


# In a problem


PROCESS = BlurAndBias((10, 25), (-10, 10), corners=3, seed=1)


@pytest.mark.parametrize(
    "robust", [{}, {"robust": "mean"}, {"robust_delta": 0.1}, {"robust_delta": 0.1, "robust": "mean"}]
)
def test_the_gradient_is_that_of_the_value(surrogate: Surrogate, robust: dict[str, Any]) -> None:
    """Against finite differences along a random direction; the server computes in float32, so the step is large."""
    problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0), fabrication=PROCESS, **robust)
    latent = random_latents(3, seed=5)
    direction = random_latents(3, seed=6) - 0.5
    value, gradient, *_ = problem.evaluate(latent, 4.0)
    assert gradient is not None
    ahead, behind = (problem.score(latent + step * direction, 4.0).value for step in (0.002, -0.002))
    expected: Array = (ahead - behind) / 0.004
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2)), expected, rtol=0.03, atol=2e-4)
    np.testing.assert_allclose(value, problem.score(latent, 4.0).value)


def test_variants_are_the_nominal_structure_and_its_corners(surrogate: Surrogate) -> None:
    objective, parameterisation, latent = MinEfficiency(), Parameterisation(80.0), random_latents(4)
    structure = parameterisation.binary(latent)
    variants = [structure, *(fabricate(structure.astype(float), corner) for corner in PROCESS.draw())]
    values = np.array([objective(surrogate.predict(one.astype(np.uint8)))[0] for one in variants])
    for robust, expected in (("worst", values.min(axis=0)), ("mean", values.mean(axis=0))):
        problem = Problem(surrogate, objective, parameterisation, fabrication=PROCESS, robust=robust)
        found = problem.score(latent)
        np.testing.assert_allclose(found.value, expected, rtol=1e-6)
        np.testing.assert_array_equal(found.spectra.values, surrogate.predict(structure).values)
        assert problem.structures_evaluated == 4 * 4
    both = Problem(surrogate, objective, parameterisation, fabrication=PROCESS, robust_delta=0.1)
    np.testing.assert_array_equal(both.score(latent).spectra.values, surrogate.predict(structure).values)
    assert both.structures_evaluated == 4 * 6


def test_each_step_has_its_own_corners_and_the_ranking_has_not(surrogate: Surrogate) -> None:
    problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0), fabrication=PROCESS)
    latent = random_latents(2)
    first, again, second = (problem.evaluate(latent, 8.0, step).value for step in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()  # where the worst is a corner, not the structure itself
    np.testing.assert_array_equal(problem.score(latent).value, problem.score(latent).value)


class Stop(Exception):
    pass


def test_a_run_resumes_with_the_same_corners(surrogate: Surrogate, tmp_path: Path) -> None:
    def problem(seed: int = 1) -> Problem:
        process = BlurAndBias((10, 25), (-10, 10), corners=2, seed=seed)
        return Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0), fabrication=process)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Stop

    more: dict[str, Any] = {"steps": 6, "check_every": 2, "progress": False}
    whole = run(problem(), Adam(random_latents(2)), **more)
    with pytest.raises(Stop):
        run(problem(), Adam(random_latents(2)), **more, checkpoint=tmp_path / "run.npz", callback=stop)
    with pytest.raises(ValueError, match=r"another run: problem\.fabrication was BlurAndBias\(.*seed=1.*, is .*seed=2"):
        run(problem(2), Adam(random_latents(2)), **more, checkpoint=tmp_path / "run.npz")
    resumed = run(problem(), Adam(random_latents(2)), **more, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(whole.history.value, resumed.history.value)
    np.testing.assert_array_equal(whole.structure, resumed.structure)
    assert whole.history.value[-1].mean() > whole.history.value[0].mean()
    other = run(problem(2), Adam(random_latents(2)), **more)
    assert (other.history.value != whole.history.value).any()
