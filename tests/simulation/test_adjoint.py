"""The solver's gradient against central differences of the solver."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.physics import run as run_module
from metaspec_simulation.physics import solver as solver_module
from metaspec_simulation.physics.grid import fill_fractions, pull_back

Floats = NDArray[np.float64]

STEP = 2e-3
DURATION = 40.0
"""Every run takes as long, um / c: a run that ended by itself would end at other times for neighbouring densities."""


@pytest.fixture(autouse=True)
def without_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs are cut off, and the gradient is that of what has been recorded, without its continuation."""
    monkeypatch.setattr(solver_module, "tail", lambda series, step, wavelengths_nm: 0)


def solver(cells: int, threads: int = 1) -> Solver:
    return Solver(Process(), cells, decay=1e-12, longest=DURATION, threads=threads)


def densities(structure: Structure) -> dict[str, Floats]:
    """A sparse, a dense and a grey one."""
    y, x = np.mgrid[:128, :128] / 128
    grey = 0.5 + 0.4 * np.cos(2 * np.pi * (2 * x + y)) * np.sin(2 * np.pi * (x - 3 * y))
    return {"sparse": structure * (x < 0.5) * 1.0, "dense": 1.0 - structure * (y < 0.5), "grey": grey}


def cotangents() -> Floats:
    """One colour, one wavelength, and a mixture of signs, (3, 4, 301)."""
    red, one, mixed = np.zeros((3, 4, 301))
    red[0, 200:] = 1 / 101
    one[2, 150] = 1
    mixed[:] = np.array([1, -0.5, 0.3, -1])[:, None] * np.cos(np.arange(301) / 40)
    return np.stack([red, one, mixed])


def directions(count: int) -> Floats:
    """Smooth and rough changes of density, (count, 128, 128), between -1 and 1."""
    rng = np.random.default_rng(5)
    sizes = (32, 16, 8, 4)
    made = [np.kron(rng.uniform(-1, 1, (128 // size,) * 2), np.ones((size, size))) for size in sizes]
    return np.stack([made[n % len(made)] for n in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cells"), [("sparse", 24), ("dense", 24), ("grey", 24), ("grey", 32)])
def test_against_central_differences(structure: Structure, kind: str, cells: int) -> None:
    """Inside [0, 1], where both sides of the difference are densities: contrast is lowered a little first."""
    density = 0.01 + 0.98 * densities(structure)[kind]
    ours, weights = solver(cells), cotangents()
    _, gradients = ours.gradient(density, weights)
    changes = directions(4)
    predicted = np.einsum("kyx,dyx->kd", gradients, changes)
    up, down = (
        np.stack([ours.simulate(density + sign * STEP * change).spectra for change in changes]) for sign in (1, -1)
    )
    measured = np.einsum("kcw,dcw->kd", weights, (up - down).astype(float)) / (2 * STEP)
    for ours_, theirs in zip(predicted, measured, strict=True):
        cosine = ours_ @ theirs / np.linalg.norm(ours_) / np.linalg.norm(theirs)
        assert cosine > 0.999
        assert np.linalg.norm(ours_) / np.linalg.norm(theirs) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_cotangents_share_the_forward_runs(structure: Structure) -> None:
    ours, weights = solver(24), cotangents()
    simulation, together = ours.gradient(structure, weights[:2])
    _, alone = ours.gradient(structure, weights[1])
    np.testing.assert_array_equal(together[1], alone)
    np.testing.assert_array_equal(simulation.spectra, ours.simulate(structure).spectra)
    assert together.shape == (2, 128, 128)
    assert together.dtype == np.float32


@pytest.mark.slow
def test_the_gradient_is_linear_and_threads_change_nothing(structure: Structure) -> None:
    weights = cotangents()
    _, (red, one) = solver(24, threads=2).gradient(structure, weights[:2])
    _, both = solver(24).gradient(structure, 2 * weights[0] - weights[1])
    np.testing.assert_allclose(both, 2 * red - one, atol=1e-4 * np.abs(both).max())


def test_a_cotangent_may_depend_on_the_spectra(structure: Structure) -> None:
    ours = Solver(Process(), 24, longest=10.0)
    simulation, gradient = ours.gradient(structure, lambda spectra: np.stack([spectra, 1 - spectra]))
    spectra = simulation.spectra
    _, expected = ours.gradient(structure, np.stack([spectra, 1 - spectra]))
    np.testing.assert_array_equal(gradient, expected)
    with pytest.raises(ValueError, match=r"cotangent must be \(4, 301\) or \(C, 4, 301\), got \(4, 300\)"):
        ours.gradient(structure, lambda spectra: spectra[:, 1:])


def test_a_symmetric_structure_has_a_gradient_for_asymmetric_cotangents() -> None:
    """The simulation takes one run there; the gradient must not."""
    y, x = np.mgrid[:128, :128] / 128
    density = 0.5 + 0.3 * np.cos(2 * np.pi * x) * np.cos(2 * np.pi * y)
    weights = np.zeros((4, 301))
    weights[1] = 1 / 301
    ours, change = solver(24), directions(2)[1]
    _, gradient = ours.gradient(density, weights)
    up, down = ((ours.simulate(density + sign * STEP * change).spectra * weights).sum() for sign in (1, -1))
    assert (gradient * change).sum() == pytest.approx((up - down) / (2 * STEP), rel=0.01)


@pytest.mark.parametrize(("cells", "pixels"), [(24, 128), (48, 64), (80, 128), (80, 256)])
def test_pulling_back_is_the_transpose_of_filling(cells: int, pixels: int) -> None:
    rng = np.random.default_rng(0)
    density, weights = rng.uniform(size=(pixels, pixels)), rng.standard_normal((3, cells, cells))
    filled = sum(float((one * by).sum()) for one, by in zip(fill_fractions(density, cells), weights, strict=True))
    x, y, z = weights
    assert (pull_back((x, y, z), cells, pixels) * density).sum() == pytest.approx(filled, rel=1e-9)


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (np.zeros((4, 300)), r"cotangent must be \(4, 301\) or \(C, 4, 301\), got \(4, 300\)"),
        (np.zeros((1, 1, 4, 301)), r"got \(1, 1, 4, 301\)"),
        (np.full((4, 301), np.nan), "cotangent must be finite"),
    ],
)
def test_cotangents_that_are_none(cotangent: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver(24).gradient(np.zeros((128, 128)), cotangent)


def test_a_run_that_does_not_fit_into_memory_is_repeated(structure: Structure, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, ours = cotangents()[0], solver(24)
    _, kept = ours.gradient(structure, weights)
    monkeypatch.setattr(run_module, "_MOST_BYTES", 10 * 2**20)
    _, repeated = ours.gradient(structure, weights)
    np.testing.assert_array_equal(repeated, kept)
