"""The solver against exact formulas, against an independent method, and against the symmetries of the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import InvalidStructure, Structure, symmetries
from metaspec_simulation import Simulation, Solver
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_simulation.physics.grid import make_grid, pulse
from metaspec_simulation.physics.run import Run
from metaspec_testing.hard_structures import hard_structures

PROCESS = Process()

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def coarse() -> Solver:
    return Solver(PROCESS, cells=32)


@pytest.fixture(scope="module")
def solved(coarse: Solver, structure: Structure) -> Simulation:
    return coarse.simulate(structure)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "seed"), [("random_field", 1), ("pillars", 2)])
def test_against_rigorous_coupled_wave_analysis(family: str, seed: int) -> None:
    """Both methods have an error of about .005 here: FDTD from its grid, FMMAX from its number of terms."""
    from metaspec_testing.fmmax_reference import efficiencies  # JAX: slow to import

    structure = random_structure(np.random.default_rng(seed), family)
    solution = Solver(PROCESS, cells=64, decay=1e-3).simulate(structure)
    wavelengths = (450.0, 620.0)
    reference = np.stack([efficiencies(structure, PROCESS, w, terms=221) for w in wavelengths], axis=1)
    ours = solution.spectra[:, [int(w) - 400 for w in wavelengths]]
    assert np.sqrt(np.mean((ours - reference) ** 2)) < 0.01


@pytest.mark.slow
def test_the_reference_has_the_detectors_in_the_same_places(structure: Structure) -> None:
    """A structure that equals its mirror image transmits the same through both halves."""
    from metaspec_testing.fmmax_reference import efficiencies  # JAX: slow to import

    mirrored = np.concatenate([structure[:, :64], structure[:, 63::-1]], axis=1)
    red, green_1, green_2, blue = efficiencies(mirrored, PROCESS, 530.0, terms=221)  # compiled for the test above
    assert abs(red - green_2) > 1e-3
    np.testing.assert_allclose([red, green_2], [green_1, blue], atol=1e-8)


def film_transmission(index_film: Floats, index_substrate: Floats, thickness_um: float) -> Floats:
    """Airy's formula for a film between vacuum and a substrate at normal incidence."""
    k0 = 2 * np.pi * 1000 / PROCESS.wavelengths_nm
    r1, r2 = (1 - index_film) / (1 + index_film), (index_film - index_substrate) / (index_film + index_substrate)
    t1, t2 = 2 / (1 + index_film), 2 * index_film / (index_film + index_substrate)
    phase = np.exp(1j * k0 * index_film * thickness_um)
    transmission: Floats = index_substrate * np.abs(t1 * t2 * phase / (1 + r1 * r2 * phase**2)) ** 2
    return transmission


@pytest.mark.parametrize(("value", "finest"), [(0, 0.004), (1, 0.025)])
def test_uniform_layers_converge_to_thin_films_at_second_order(value: int, finest: float) -> None:
    """A full film is the hardest case: its Fabry-Perot resonances show every error of phase and impedance."""
    substrate = PROCESS.substrate.index(PROCESS.wavelengths_nm)
    film = PROCESS.solid.index(PROCESS.wavelengths_nm) if value else np.ones_like(substrate)
    exact = film_transmission(film, substrate, PROCESS.thickness_um)
    rms = []
    for cells in (40, 64):
        solution = Solver(PROCESS, cells).simulate(np.full((128, 128), value))
        rms.append(np.sqrt(np.mean((solution.spectra.sum(axis=0) - exact) ** 2)))
        assert np.sqrt(np.mean((solution.reflection - 1 + exact) ** 2)) < 1.5 * rms[-1] + 1e-3
        np.testing.assert_allclose(solution.spectra, np.tile(solution.spectra[:1], (4, 1)), atol=1e-5)
    assert rms[1] < finest
    assert rms[0] / rms[1] > (64 / 40) ** 1.5


def test_a_uniform_density_is_a_film_of_the_mixed_permittivity() -> None:
    """Linear mixing, at every wavelength: eps = 1 + density (eps_solid - 1)."""
    density = 0.4
    mixed = np.sqrt(1 + density * (PROCESS.solid.permittivity(PROCESS.wavelengths_nm) - 1))
    exact = film_transmission(mixed, PROCESS.substrate.index(PROCESS.wavelengths_nm), PROCESS.thickness_um)
    transmission = Solver(PROCESS, 48).simulate(np.full((128, 128), density)).spectra.sum(axis=0)
    np.testing.assert_allclose(transmission, exact, atol=0.01)


@pytest.mark.slow
def test_a_run_ends_when_the_field_has_decayed(structure: Structure) -> None:
    """Later for less of it, much later in a dense structure, and in any case at the longest time, which is stated."""
    loose, tight = (Solver(PROCESS, cells=32, decay=decay) for decay in (1e-2, 1e-4))
    sparse, dense = np.zeros((128, 128)), np.kron((np.arange(256).reshape(16, 16) % 17 > 2), np.ones((8, 8)))
    empty, early, late, held = (
        loose.simulate(sparse),
        loose.simulate(structure),
        tight.simulate(structure),
        tight.simulate(dense),
    )
    assert empty.duration < early.duration < late.duration < held.duration
    assert late.remaining <= 1e-4 < early.remaining <= 1e-2
    error = [float(np.sqrt(np.mean(one.energy_error**2))) for one in (early, late)]
    assert error[1] < error[0]
    cut = Solver(PROCESS, cells=32, decay=1e-4, longest=20).simulate(dense)
    assert cut.duration == pytest.approx(20, abs=1)
    assert cut.remaining > 1e-4


@pytest.mark.slow
def test_the_reference_solves_the_part_that_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half the terms in half the cell, only orders that the light does not reach are left out."""
    from metaspec_testing import fmmax_reference  # JAX: slow to import

    half = random_structure(np.random.default_rng(3), "pillars")[:64]
    structure = np.concatenate([half, half])
    assert fmmax_reference.repeating_cell(structure).shape == half.shape
    part = fmmax_reference.efficiencies(structure, PROCESS, 550.0, terms=40)
    monkeypatch.setattr(fmmax_reference, "repeating_cell", lambda whole: whole)
    np.testing.assert_allclose(part, fmmax_reference.efficiencies(structure, PROCESS, 550.0, terms=80), atol=1e-5)
    assert part[0] != pytest.approx(part[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("film", 48),
        ("chequerboard, 4 pixels", 48),
        ("chequerboard, 16 pixels", 64),
        ("chequerboard, 64 pixels", 48),
        ("lines of 62 nm", 48),
        ("bayer-600nm, sample 551", 48),
    ],
)
def test_dense_and_regular_structures_lose_no_light(name: str, cells: int) -> None:
    simulation = Solver(PROCESS, cells, threads=2).simulate(hard_structures()[name])
    assert np.sqrt(np.mean(simulation.energy_error**2)) <= 0.002


@pytest.mark.slow
def test_symmetries(structure: Structure) -> None:
    """The five generators, and all of them at once; that the other 26 are products of these is in their definition."""
    brief = Solver(PROCESS, cells=24, longest=20)  # holds at any time
    spectra, elements = brief.simulate(structure).spectra, list(symmetries())
    for number in (1, 2, 4, 8, 16, 31):
        symmetry = elements[number]
        image = symmetry.apply(structure)
        assert not np.array_equal(image, structure)
        np.testing.assert_allclose(brief.simulate(image).spectra, spectra[list(symmetry.channels)], atol=2e-4)
    assert len({symmetry.apply(structure).tobytes() for symmetry in elements}) == 32


def test_translations_follow_from_the_harmonics(coarse: Solver, structure: Structure, solved: Simulation) -> None:
    """For whole grid cells, of 4 pixels here, but for harmonics above the seventh; in between, the grid itself changes."""
    for rows, columns, tolerance in ((-20, 52, 3e-3), (7, 33, 2e-2)):
        moved = coarse.simulate(np.roll(structure, (rows, columns), axis=(0, 1)))
        predicted = shifted_basis(np.array([rows]), np.array([columns]))[0] @ solved.harmonics
        np.testing.assert_allclose(predicted, moved.spectra, atol=tolerance)


@pytest.mark.parametrize("cells", [27, 32])
def test_the_grid_is_periodic(cells: int) -> None:
    """A structure moved by whole cells, across both edges of the unit cell, moves the field and changes nothing else."""
    grid = make_grid(PROCESS, cells)
    wave = pulse(grid, PROCESS)
    fractions = np.random.default_rng(cells).random((3, cells, cells))

    def field(shares: Floats, shift: tuple[int, int]) -> NDArray[np.float32]:
        run = Run(grid, tuple(np.roll(shares, shift, axis=(1, 2))))
        for interval in range(60):
            recorded = run.send(wave, 0, interval, record=True)
        return recorded[:, -1]

    moved = field(fractions, (5, -9))
    scale = np.abs(moved).max()
    assert scale > 1e-3
    np.testing.assert_allclose(moved, np.roll(field(fractions, (0, 0)), (5, -9), axis=(-2, -1)), atol=2e-5 * scale)


@pytest.mark.slow
def test_spectra_follow_from_the_orders_of_the_field(structure: Structure) -> None:
    """Propagated as plane waves of the continuum, they carry the power that `simulate` reports."""
    solver = Solver(PROCESS, cells=64, decay=1e-2)
    orders, solved = solver.orders(structure), solver.simulate(structure)
    assert orders.shape == (2, 2, 301, 15, 15)
    orders, wavelengths_nm = orders[:, :, ::20], PROCESS.wavelengths_nm[::20]
    k0 = (2 * np.pi * 1000 / wavelengths_nm)[:, None, None]
    kx, ky = np.meshgrid(*2 * [np.arange(-7, 8) * 2 * np.pi / PROCESS.period_um])
    squared = (PROCESS.substrate.index(wavelengths_nm)[:, None, None] * k0) ** 2 - kx**2 - ky**2
    kz = np.sqrt(squared + 0j)
    e = orders * np.exp(1j * kz * PROCESS.distance_um)
    ez = -(kx * e[:, 0] + ky * e[:, 1]) / kz
    h = np.stack([(ky * ez - kz * e[:, 1]) / k0, (kz * e[:, 0] - kx * ez) / k0], axis=1)
    wave = np.exp(2j * np.pi * np.outer(np.arange(-7, 8), np.arange(128) + 0.5) / 128)
    e, h = (wave.T @ one @ wave for one in (e, h))
    flux = (e[:, 0] * h[:, 1].conj() - e[:, 1] * h[:, 0].conj()).real.mean(axis=0)
    quadrants = flux.reshape(-1, 2, 64, 2, 64).mean(axis=(2, 4)).reshape(-1, 4).T / 4
    # Near their cut-off, orders have the grid's kz in the solver, not the continuum's: several nm around it on coarse grids.
    assert np.sqrt(np.mean((quadrants - solved.spectra[:, ::20]) ** 2)) < 4e-3


def test_orders_have_the_phase_of_the_incident_light(coarse: Solver) -> None:
    """Through an empty structure: Fresnel's amplitude, and the phase of vacuum between the faces."""
    orders = coarse.orders(np.zeros((128, 128)))
    index = PROCESS.substrate.index(PROCESS.wavelengths_nm)
    phase = 2 * np.pi * 1000 / PROCESS.wavelengths_nm * PROCESS.thickness_um
    expected = 2 / (1 + index) * np.exp(1j * phase)
    for polarisation in (0, 1):
        np.testing.assert_allclose(orders[polarisation, polarisation, :, 7, 7], expected, atol=0.05)
    orders[(0, 1), (0, 1), :, 7, 7] = 0
    assert np.abs(orders).max() < 1e-3


def test_efficiencies_are_efficiencies(solved: Simulation) -> None:
    assert solved.spectra.dtype == np.float32
    assert solved.spectra.shape == (4, 301)
    assert (solved.spectra > -0.01).all()
    assert (solved.spectra.sum(axis=0) < 1.02).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((64, 64)), r"structure must be \(128, 128\), .*got \(64, 64\)"),
        (np.zeros((2, 128, 128)), "structure must be a single one, got 2"),
        (np.full((128, 128), 255), "structure must lie between 0 .*got 255 .*divide 8-bit images by 255"),
        (np.full((128, 128), np.nan), "structure must lie between 0 .*got nan"),
    ],
)
def test_arrays_that_are_no_structure(coarsest: Solver, array: NDArray[Any], message: str) -> None:
    cotangent = np.ones((4, 301))
    for method in (coarsest.simulate, coarsest.orders, lambda array: coarsest.gradient(array, cotangent)):
        with pytest.raises(InvalidStructure, match=message):
            method(array)


def test_a_grid_that_is_too_coarse() -> None:
    with pytest.raises(ValueError, match="cells must be at least 24, got 16"):
        Solver(PROCESS, cells=16)
    with pytest.raises(ValueError, match=r"too coarse: no stable material model .* cells of 0\.124 um; use more cells"):
        Solver(Process(period_um=3), cells=24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.0}, "decay must lie between 0 and 1, got 0.0"),
        ({"longest": np.inf}, "longest must be above 0 um/c and finite, got inf"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Solver(PROCESS, cells=24, **settings)


@pytest.mark.parametrize("pixels", [64, 256])
def test_other_pixels(pixels: int) -> None:
    """A structure of larger pixels is one of smaller pixels, and each gradient is that of its own pixels."""
    structure = np.random.default_rng(0).uniform(size=(64, 64))
    other = Solver(PROCESS.model_copy(update={"pixels": pixels}), cells=32, longest=20.0)
    usual = Solver(PROCESS, cells=32, longest=20.0)
    cotangent = np.random.default_rng(1).standard_normal((4, len(PROCESS.wavelengths_nm)))

    def of(solver: Solver) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        times = solver.process.pixels // 64
        simulation, gradient = solver.gradient(structure.repeat(times, axis=0).repeat(times, axis=1), cotangent)
        return simulation.spectra, gradient.reshape(64, times, 64, times).sum(axis=(1, 3))

    for ours, theirs in zip(of(other), of(usual), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    with pytest.raises(InvalidStructure, match=rf"structure must be \({pixels}, {pixels}\), .*, got \(128, 128\)"):
        other.simulate(np.zeros((128, 128)))
