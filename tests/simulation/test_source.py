"""The solver as a source of spectra: what it returns, keeps, and leaves running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from metaspec.objectives import MinEfficiency, TargetSpectra
from metaspec.torch import spectra_of
from metaspec_contract.conditions import InvalidCondition
from metaspec_contract.process import Process
from metaspec_contract.source import InvalidCotangent, Source, SourceError, find_source
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import InvalidStructure, Structure
from metaspec_simulation import Solver
from metaspec_simulation.source import SolverSource

Floats = NDArray[np.floating[Any]]

LONGEST = 10.0
"""Every simulation ends here, um / c: what is compared need not be right."""


def make(**settings: Any) -> SolverSource:
    return SolverSource(**{"cells": 24, "longest": LONGEST, "workers": 2, "progress": False, **settings})


@pytest.fixture(scope="module")
def source() -> Iterator[SolverSource]:
    with make() as source:
        yield source


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver(Process(), 24, longest=LONGEST)


@pytest.fixture(scope="session")
def three(structure: Structure) -> Structure:
    return np.stack([structure, np.roll(structure, 9, axis=0), structure.T])


def children() -> list[int]:
    """Worker processes of this one."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "metaspec_simulation.workers" in line]


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process that may not be a child still runs."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_it_is_found_and_describes_itself(source: SolverSource) -> None:
    assert find_source("solver") is SolverSource
    info = source.metadata()
    assert info.simulated
    assert [str(condition) for condition in info.conditions] == ["distance_um between 0 and 100 um, default 2.5"]
    assert info.label.startswith("solver (24 cells, longest 10 um/c, metaspec-lab ")
    assert info.process == Process()
    assert info.spectra_shape == (4, 301)
    assert repr(source) == "<SolverSource: 24 cells, 2 workers>"


def test_one_and_several_structures(source: SolverSource, solver: Solver, three: Structure) -> None:
    """One in this process, several in workers: the same numbers as the solver's, in the callers' order."""
    expected = np.stack([solver.simulate(one).spectra for one in three])
    np.testing.assert_array_equal(source.predict(three).values, expected)
    np.testing.assert_array_equal(source.predict(three[1:2, None]).values, expected[1:2])
    assert source.predict(three[:0]).values.shape == (0, 4, 301)


def test_gradients(source: SolverSource, solver: Solver, three: Structure) -> None:
    density = 0.1 + 0.8 * three[:2]
    weights = np.random.default_rng(0).standard_normal((2, 2, 4, 301))
    expected = np.stack([solver.gradient(one, by)[1] for one, by in zip(density, weights, strict=True)])
    rounding = 1e-6 * np.abs(expected).max()  # a worker may have another number of threads for matrix products
    np.testing.assert_allclose(source.gradient(density, weights), expected, atol=rounding)
    np.testing.assert_allclose(source.gradient(density[0], weights[0, :1]), expected[0, :1], atol=rounding)


def test_an_objective_costs_one_forward_simulation(
    source: SolverSource, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectra = source.predict(structure)
    value, cotangent = MinEfficiency(0.05)(spectra)
    expected = source.gradient(structure, cotangent)
    forward, calls = Solver._forward, []

    def counted(self: Solver, *arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return forward(self, *arguments, **more)

    monkeypatch.setattr(Solver, "_forward", counted)
    evaluation = source.predict_and_gradient(structure, MinEfficiency(0.05))
    assert len(calls) == 1
    np.testing.assert_array_equal(evaluation.spectra.values, spectra.values)
    np.testing.assert_array_equal(evaluation.value, value)
    np.testing.assert_array_equal(evaluation.gradient, expected)


def test_an_objective_may_differ_from_row_to_row(source: SolverSource, three: Structure) -> None:
    """Also: it stays in this process, so that it may be anything that can be called."""
    targets = TargetSpectra(np.random.default_rng(0).random((2, 4, 301)))
    seen = []

    def objective(spectra: Spectra) -> tuple[ArrayLike, ArrayLike]:
        seen.append(os.getpid())
        return targets(spectra)

    value, gradient, spectra = source.predict_and_gradient(three[:2], objective)
    expected, cotangent = targets(spectra)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, source.gradient(three[:2], cotangent))
    assert set(seen) == {os.getpid()}


def test_the_torch_bridge(source: SolverSource, structure: Structure) -> None:
    density = torch.tensor(structure * 0.5, requires_grad=True)
    spectra = spectra_of(density, source)
    spectra[3, :100].mean().backward()  # type: ignore[no-untyped-call]
    cotangent = np.zeros((4, 301))
    cotangent[3, :100] = 1 / 100
    assert density.grad is not None
    np.testing.assert_allclose(
        density.grad.numpy(), source.gradient(structure * 0.5, cotangent)[0], rtol=1e-4, atol=1e-9
    )


def test_what_is_refused(source: SolverSource, structure: Structure) -> None:
    with pytest.raises(InvalidStructure, match="structures must lie between 0"):
        source.predict(structure * 2.0)
    with pytest.raises(InvalidCotangent, match=r"got \(4, 300\)"):
        source.gradient(structure, np.zeros((4, 300)))
    with pytest.raises(InvalidCotangent, match="must be finite"):
        source.predict_and_gradient(structure, lambda spectra: (np.zeros(1), np.full((1, 4, 301), np.nan)))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        make(workers=0)
    with pytest.raises(ValueError, match="longest must be above 0"):
        make(longest=-1)
    with pytest.raises(ValueError, match="cells"):
        make(cells=2)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_what_is_kept_is_not_computed_again(
    structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    with make(cache=tmp_path / "kept") as source:
        first = source.predict_and_gradient(structure, MinEfficiency(0.05))
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 3  # spectra, their derivative by the distance, and a gradient
    content = files[damaged].read_bytes()
    files[damaged].write_bytes(content[:100])
    with make(cache=tmp_path / "kept") as source:
        again = source.predict_and_gradient(structure, MinEfficiency(0.05))
    assert files[damaged].read_bytes() == content
    monkeypatch.setattr(Solver, "_forward", refuse)
    with make(cache=tmp_path / "kept", workers=1) as source:
        kept = source.predict_and_gradient(structure, MinEfficiency(0.05))
        np.testing.assert_array_equal(source.predict(structure).values, first.spectra.values)
        with pytest.raises(AssertionError, match="computed again"):
            source.predict(1 - structure)
        with pytest.raises(AssertionError, match="computed again"):
            source.gradient(structure, np.ones((4, 301)))
    for one in (again, kept):
        np.testing.assert_array_equal(one.value, first.value)
        np.testing.assert_array_equal(one.gradient, first.gradient)
        np.testing.assert_array_equal(one.conditions["distance_um"], first.conditions["distance_um"])
    for changes in ({"longest": 9.0}, {"cells": 26}, {"process": Process(thickness_um=0.5)}):
        with make(cache=tmp_path / "kept", **changes) as other, pytest.raises(AssertionError, match="computed again"):
            other.predict(structure)


def test_spectra_at_several_distances_come_from_one_simulation(
    source: SolverSource, structure: Structure, three: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is what a solver of a process with that distance finds; the default is the process's."""
    distances = [1.25, 2.5, 3.0]
    expected = np.stack(
        [Solver(Process(distance_um=one), 24, longest=LONGEST).simulate(structure).spectra for one in distances]
    )
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    forward, calls = Solver._forward, []

    def counted(self: Solver, *arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return forward(self, *arguments, **more)

    monkeypatch.setattr(Solver, "_forward", counted)
    found = source.predict(np.stack([structure] * 3), distance_um=distances).values
    assert len(calls) == 1
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found[1:2], source.predict(structure).values)
    mixed = source.predict(np.concatenate([three, three]), distance_um=[1.25, 2.5, 2.5, 3.0, 1.25, 2.5]).values
    np.testing.assert_allclose(mixed[[0, 3]], expected[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(mixed[1:3], source.predict(three[1:]).values, atol=1e-6)
    np.testing.assert_allclose(mixed[4], source.predict(three[1], distance_um=1.25).values[0], atol=1e-6)


def test_gradients_at_other_distances(source: SolverSource, structure: Structure, three: Structure) -> None:
    """With respect to the structure as of a process with that distance, to the distance as of central differences."""
    density, weights = 0.1 + 0.8 * three[:2], np.random.default_rng(0).standard_normal((2, 2, 4, 301))
    distances, step = np.array([1.25, 2.0]), 1e-3
    found = source.gradients(density, weights, distance_um=distances)
    other = Solver(Process(distance_um=1.25), 24, longest=LONGEST).gradient(density[0], weights[0])[1]
    np.testing.assert_allclose(found.structure[0], other, atol=1e-6 * np.abs(other).max())
    np.testing.assert_array_equal(source.gradient(density, weights, distance_um=distances), found.structure)
    up, down = (source.predict(density, distance_um=distances + sign * step).values.astype(float) for sign in (1, -1))
    expected = np.einsum("nkcw,ncw->nk", weights, up - down) / (2 * step)
    assert np.abs(expected).min() > 0.1
    assert found.conditions["distance_um"].shape == (2, 2)
    np.testing.assert_allclose(found.conditions["distance_um"], expected, rtol=2e-3, atol=2e-3)
    evaluation = source.predict_and_gradient(density[:1], MinEfficiency(0.05), distance_um=1.25)
    _, cotangent = MinEfficiency(0.05)(evaluation.spectra)
    again = source.gradients(density[:1], cotangent, distance_um=1.25)
    np.testing.assert_array_equal(evaluation.gradient, again.structure)
    np.testing.assert_allclose(evaluation.conditions["distance_um"], again.conditions["distance_um"], rtol=1e-6)
    np.testing.assert_allclose(
        evaluation.spectra.values, source.predict(density[0], distance_um=1.25).values, atol=1e-6
    )


def test_distances_that_are_refused(source: SolverSource, three: Structure) -> None:
    for given, message in (
        ({"distance_um": -1}, "distance_um must lie between 0 and 100 um, got -1"),
        (
            {"distance_um": [1, 2]},
            r"distance_um must be a number, or \(3,\): one for each structure, got an array \(2,\)",
        ),
        ({"distance": 1}, "distance is no condition of this model, which takes distance_um between 0 and 100 um, def"),
    ):
        with pytest.raises(InvalidCondition, match=message):
            source.predict(three, **given)
        with pytest.raises(InvalidCondition, match=message):
            source.gradients(three, np.zeros((4, 301)), **given)
        with pytest.raises(InvalidCondition, match=message):
            source.predict_and_gradient(three, MinEfficiency(0.05), **given)


def test_what_is_kept_is_kept_for_its_distance(
    structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(cache=tmp_path) as source:
        first = source.predict_and_gradient(structure, MinEfficiency(0.05), distance_um=1.25)
        two = source.predict(np.stack([structure] * 2), distance_um=[2.0, 2.5])
    monkeypatch.setattr(Solver, "_forward", refuse)
    with make(cache=tmp_path) as source:
        again = source.predict_and_gradient(structure, MinEfficiency(0.05), distance_um=1.25)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(first.conditions["distance_um"], again.conditions["distance_um"])
        kept = source.predict(np.stack([structure] * 3), distance_um=[1.25, 2.5, 2.0]).values
        np.testing.assert_array_equal(kept, [first.spectra.values[0], two.values[1], two.values[0]])
        with pytest.raises(AssertionError, match="computed again"):
            source.predict(structure, distance_um=1.3)
        with pytest.raises(AssertionError, match="computed again"):
            source.predict_and_gradient(structure, MinEfficiency(0.05), distance_um=2.0)


def refuse(*args: object, **more: object) -> None:
    raise AssertionError("computed again")


def kill_workers(source: Source, structures: Structure, times: int) -> Floats:
    """Gradients of structures, whose workers are killed between forward and adjoint simulation, so many times."""
    killed: list[list[int]] = []

    def objective(spectra: Spectra) -> tuple[ArrayLike, ArrayLike]:
        if len(killed) < times:
            killed.append(children())
            for pid in killed[-1]:
                os.kill(pid, signal.SIGKILL)
        return np.zeros(len(spectra)), np.ones_like(spectra.values)

    return source.predict_and_gradient(structures, objective).gradient


@pytest.mark.slow
def test_a_structure_whose_worker_was_killed_is_simulated_again(source: SolverSource, three: Structure) -> None:
    gradient = kill_workers(source, three[:2], 1)
    np.testing.assert_array_equal(gradient, source.gradient(three[:2], np.ones((4, 301))))


@pytest.mark.slow
def test_workers_that_are_killed_again_are_an_error(three: Structure) -> None:
    before = set(children())
    message = (
        r"^a worker process of the solver was killed by signal 9, twice at the same structure: is there enough memory"
    )
    with make(workers=1) as source:
        with pytest.raises(SourceError, match=message):
            kill_workers(source, three[:2], 2)
        assert set(children()) <= before


@pytest.mark.slow
def test_an_objective_that_fails_ends_the_work(source: SolverSource, three: Structure) -> None:
    def objective(spectra: Spectra) -> tuple[ArrayLike, ArrayLike]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        source.predict_and_gradient(three[:2], objective)
    assert not children()
    assert len(source.predict(three[:1])) == 1


# Predicts structures with a cache, given as arguments: file of structures, cache.
PREDICT = f"""
import sys, numpy
from metaspec_simulation.source import SolverSource
with SolverSource(cells=24, longest={LONGEST}, workers=2, cache=sys.argv[2]) as source:
    source.predict(numpy.load(sys.argv[1]))
"""


@pytest.mark.slow
def test_nothing_runs_on_after_a_kill_and_what_was_done_is_kept(
    structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = np.stack([np.roll(structure, shift, axis=0) for shift in range(12)])
    np.save(tmp_path / "structures.npy", structures)
    command = [sys.executable, "-c", PREDICT, str(tmp_path / "structures.npy"), str(tmp_path / "kept")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list(tmp_path.glob("kept/[!.]*.npy")) or process.poll() is not None)
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        workers = [int(pid) for pid in listed.stdout.split()]
    finally:
        process.kill()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")
    assert len(workers) == 2
    wait_until(lambda: not any(map(runs, workers)))
    kept = list(tmp_path.glob("kept/[!.]*.npy"))
    assert kept
    monkeypatch.setattr(Solver, "_forward", refuse)
    missing = 0
    with make(cache=tmp_path / "kept") as source:
        for one in structures:
            try:
                source.predict(one)
            except AssertionError:
                missing += 1
    assert missing == len(structures) - len(kept) > 0
