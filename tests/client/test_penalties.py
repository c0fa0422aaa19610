"""Penalties of the density: values, and derivatives by four ways that must agree; and as part of a problem."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metaspec import Surrogate
from metaspec.objectives import MinEfficiency
from metaspec.optimise import Adam, Problem, run
from metaspec.penalties import Asymmetry, FillFactor, Penalty
from metaspec.topology import Parameterisation, random_latents
from metaspec_testing.small_models import Array

SYMMETRIES = ("diagonal", "antidiagonal", "x", "y", "rotation")
PENALTIES = [
    FillFactor(0.6, 0.8),
    FillFactor(maximum=0.2, weight=3.0),
    FillFactor(0.3, 0.7),
    *[Asymmetry(name, weight=2.0) for name in SYMMETRIES],
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_numpy_torch_and_jax_agree_with_finite_differences(penalty: Penalty) -> None:
    rng = np.random.default_rng(0)
    density, direction = rng.random((2, 3, 12, 12)), rng.normal(size=(2, 3, 12, 12))
    value, cotangent = penalty.score(density), penalty.cotangent(density)
    assert (value.shape, cotangent.shape) == ((2, 3), density.shape)
    higher, lower = (penalty.score(density + step * direction) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(
        (cotangent * direction).sum(axis=(-2, -1)), (higher - lower) / 2e-6, rtol=1e-6, atol=1e-9
    )

    tensor = torch.tensor(density, requires_grad=True)
    scored = penalty.score(tensor)
    scored.sum().backward()
    np.testing.assert_allclose(scored.detach(), value, rtol=1e-12)
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, cotangent, rtol=1e-9, atol=1e-15)
    with jax.enable_x64(True):
        found, pull_back = jax.vjp(jax.jit(penalty.score), jnp.asarray(density))
        np.testing.assert_allclose(found, value, rtol=1e-12)
        np.testing.assert_allclose(pull_back(jnp.ones_like(found))[0], cotangent, rtol=1e-9, atol=1e-15)
    assert penalty.score(density.astype(np.float32)).dtype == np.float32


def test_fill_factor_by_hand() -> None:
    density = np.zeros((10, 10))
    density[:2] = 1
    assert FillFactor(0.1, 0.3).score(density) == 0
    assert not FillFactor(0.1, 0.3).cotangent(density).any()
    assert FillFactor(0.3, 1.0, weight=10).score(density) == pytest.approx(10 * 0.1**2)
    assert FillFactor(maximum=0.15, weight=10).score(density) == pytest.approx(10 * 0.05**2)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_symmetric_structures_are_not_penalised(name: str) -> None:
    image: Callable[[Array], Array] = {
        "diagonal": lambda d: d.T,
        "antidiagonal": lambda d: d[::-1, ::-1].T,
        "x": lambda d: d[:, ::-1],
        "y": lambda d: d[::-1],
        "rotation": lambda d: d[::-1, ::-1],
    }[name]
    density = np.random.default_rng(1).random((16, 16))
    assert Asymmetry(name).score((density + image(density)) / 2) == pytest.approx(0, abs=1e-30)
    assert Asymmetry(name).score(density) == pytest.approx(((density - image(density)) ** 2).mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: FillFactor(0.6, 0.3), "minimum and maximum must be shares, the smaller first, got 0.6 and 0.3"),
        (lambda: FillFactor(maximum=1.2), "must be shares"),
        (lambda: FillFactor(weight=0), "weight must be above 0 and finite, got 0"),
        (lambda: Asymmetry("left"), "symmetry must be one of diagonal, antidiagonal, x, y, rotation, got 'left'"),
        (lambda: Asymmetry("x", weight=float("inf")), "weight must be above 0 and finite, got inf"),
        (lambda: Asymmetry().score(np.zeros((8, 16))), "the diagonal symmetry needs a square cell, got 8 x 16"),
        (lambda: FillFactor().score(np.zeros((8, 8), int)), "density must be floating-point numbers, got int64"),
    ],
)
def test_bad_penalties(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_problem_subtracts_its_penalties(surrogate: Surrogate) -> None:
    parameterisation, latent = Parameterisation(80.0), random_latents(2)
    penalties = (FillFactor(maximum=0.3), Asymmetry("y"))
    plain = Problem(surrogate, MinEfficiency(0.05), parameterisation)
    problem = Problem(surrogate, MinEfficiency(0.05), parameterisation, penalties=penalties)
    for beta in (4.0, np.inf):
        density = parameterisation.density(latent, beta)
        expected = plain.score(latent, beta).value - sum(penalty.score(density) for penalty in penalties)
        np.testing.assert_allclose(problem.score(latent, beta).value, expected, rtol=1e-6)
    # The penalty's part of the gradient, with respect to the latents, by finite differences.
    value, gradient, *_ = problem.evaluate(latent, 4.0)
    bare_value, bare_gradient, *_ = plain.evaluate(latent, 4.0)
    assert gradient is not None
    assert bare_gradient is not None
    direction = np.random.default_rng(2).normal(size=latent.shape)

    def penalty_of(step: float) -> Array:
        density = parameterisation.density(latent + step * direction, 4.0)
        total: Array = np.sum([penalty.score(density) for penalty in penalties], axis=0)
        return total

    np.testing.assert_allclose(bare_value - value, penalty_of(0), rtol=1e-9)
    slope = ((bare_gradient - gradient) * direction).sum(axis=(1, 2))
    np.testing.assert_allclose(slope, (penalty_of(1e-6) - penalty_of(-1e-6)) / 2e-6, rtol=1e-5)
    assert problem.settings(2)["penalties"] == repr(penalties)
    assert "penalties" not in plain.settings(2)  # checkpoints of earlier versions resume


def test_what_is_no_penalty(surrogate: Surrogate) -> None:
    for wrong in (FillFactor(), [MinEfficiency()], [0.5]):
        with pytest.raises(TypeError, match=r"penalties must be a list of objects of metaspec\.penalties, got"):
            Problem(surrogate, MinEfficiency(), Parameterisation(80.0), penalties=wrong)  # type: ignore[arg-type]


def test_a_run_keeps_the_fill_factor(surrogate: Surrogate) -> None:
    """The same starts end outside the range without the penalty."""

    def fill(*penalties: Penalty) -> Array:
        problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0), penalties=penalties)
        result = run(problem, Adam(random_latents(2), 0.1), 10, betas=[8.0] * 10, check_every=10, progress=False)
        share: Array = result.trajectory[-2:].mean(axis=(1, 2))
        return share

    free = fill()
    low = float(free.max()) + 0.1
    np.testing.assert_array_less(low - 0.04, fill(FillFactor(low, 1.0, weight=200.0)))
