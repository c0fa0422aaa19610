"""The solver as a source of spectra, like a remote surrogate: every objective and optimiser of `metaspec` runs on it.

    with SolverSource(cells=64, cache="simulated") as source:
        spectra = source.predict(structures)
        value, gradient, spectra = source.predict_and_gradient(structures, objective)
        nearer = source.predict(structures, distance_um=1.25)

The entry point `solver` of the group `metaspec.sources` makes it known to `metaspec optimise --source solver`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from metaspec_contract.conditions import Condition, ConditionValue, check_conditions
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array, write_array
from metaspec_contract.process import Process
from metaspec_contract.source import (
    Evaluation,
    Gradients,
    ObjectiveFunction,
    Source,
    SourceInfo,
    check_cotangent,
    value_and_cotangent,
)
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import as_density, check_structures
from metaspec_simulation.physics.run import DECAY, LONGEST
from metaspec_simulation.physics.solver import Solver
from metaspec_simulation.workers import Job, Result, Workers, do

Array = NDArray[Any]

_DEFAULT = Process()

_SLOPE = np.array([-1.0])  # in the name of a file: the derivative by the distance

_FARTHEST_UM = 100.0  # of the detectors; phases stay exact far beyond


class SolverSource(Source):
    """Simulated spectra, and their gradients by the adjoint method. Threads may share one, which computes for one at a time.

    One structure is simulated in this process, several in worker processes, which stay until `close`. The distance of the
    detectors is a condition, `distance_um`: spectra of a structure at several distances come from one simulation.

    Args:
        process: process to simulate.
        cells: grid cells per period.
        workers: number of worker processes, one thread each; one per core by default.
        cache: folder where spectra and gradients are kept, and found again; created when needed. None: they are not kept.
        decay: share of the largest energy in the grid at which a simulation ends.
        longest: time at which it ends in any case, um / c.
        progress: whether long calls show a progress bar in a terminal.

    Raises:
        ValueError: an argument is out of range, or the grid is too coarse for the process.

    Example:
        >>> with SolverSource(cells=24) as source:
        ...     source.predict(np.zeros((128, 128))).values.shape
        (1, 4, 301)
    """

    def __init__(
        self,
        process: Process = _DEFAULT,
        *,
        cells: int = 64,
        workers: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        decay: float = DECAY,
        longest: float = LONGEST,
        progress: bool = True,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.process, self.cells, self.workers = process, cells, workers or _cores()
        self.cache = None if cache is None else Path(cache)
        self._decay, self._longest, self._progress = decay, longest, progress
        self._solver = Solver(process, cells, decay, longest, threads=min(2, self.workers))  # for one structure
        settings = {"process": process.model_dump(mode="json"), "cells": cells, "decay": decay, "longest": longest}
        self._pool = Workers(settings, self.workers)
        self._distance = Condition(
            name="distance_um",
            unit="um",
            low=0.0,
            high=max(_FARTHEST_UM, process.distance_um),
            default=process.distance_um,
        )
        self._recipe = "\n".join([version("metaspec-lab"), *map(repr, settings.values())]).encode()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<SolverSource: {self.cells} cells, {self.workers} workers>"

    def metadata(self) -> SourceInfo:
        """Description of the solver; the version states its grid."""
        settings = [f"{self.cells} cells"]
        settings += [f"decay {self._decay:g}"] if self._decay != DECAY else []
        settings += [f"longest {self._longest:g} um/c"] if self._longest != LONGEST else []
        return SourceInfo(
            name="solver",
            version=", ".join([*settings, f"metaspec-lab {version('metaspec-lab')}"]),
            process=self.process,
            wavelengths_nm=self.process.wavelengths_nm,
            channels=CHANNELS,
            merged_greens=False,
            simulated=True,
            conditions=(self._distance,),
        )

    def predict(self, structures: ArrayLike, **conditions: ConditionValue) -> Spectra:
        """Spectra of structures, by simulation; see `Source.predict`."""
        checked = check_structures(structures, self.process.structure_shape)
        distances = self._distances(conditions, len(checked))
        densities = [as_density(structure, np.float64) for structure in checked[:, 0]]
        equal: dict[bytes, list[int]] = {}  # one simulation for all distances of a structure
        for n, density in enumerate(densities):
            equal.setdefault(hashlib.sha256(density.tobytes()).digest(), []).append(n)
        rows, info = list(equal.values()), self.metadata()
        values = np.empty((len(checked), *info.spectra_shape), np.float32)
        for k, result in self._results([Job(densities[those[0]], distances[those], None) for those in rows]):
            values[rows[k]] = result.spectra
        return Spectra.of_model(values, info)

    def gradient(
        self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue
    ) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) by the adjoint method; see `Source.gradient`.

        K cotangents of a structure share its forward simulation.
        """
        return self.gradients(structures, cotangent, **conditions).structure

    def gradients(self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue) -> Gradients:
        """The gradient of sum(cotangent * spectra) with respect to the structure and to `distance_um`; see `Source`.

        The derivative by the distance is that of the angular spectrum, exact, and costs no simulation.
        """
        checked = check_structures(structures, self.process.structure_shape)
        distances = self._distances(conditions, len(checked))
        weights = check_cotangent(cotangent, len(checked), self.metadata().spectra_shape)
        values = np.empty((*weights.shape[:-2], *checked.shape[-2:]), np.float32)
        slopes = np.empty(weights.shape[:-2], np.float32)
        jobs = [
            Job(as_density(structure, np.float64), distances[n : n + 1], np.asarray(weights[n], np.float64))
            for n, structure in enumerate(checked[:, 0])
        ]
        for n, result in self._results(jobs):
            assert result.slope is not None
            values[n], slopes[n] = result.gradient, (weights[n] * result.slope).sum(axis=(-2, -1))
        return Gradients(values, {self._distance.name: slopes})

    def predict_and_gradient(
        self, structures: ArrayLike, objective: ObjectiveFunction, **conditions: ConditionValue
    ) -> Evaluation:
        """An objective of the spectra, and its gradient; see `Source.predict_and_gradient`.

        The objective is evaluated for one structure at a time, between its forward and its adjoint simulation: on N equal
        spectra, of whose values and derivatives the n-th are those of structure n.
        """
        checked, info = check_structures(structures, self.process.structure_shape), self.metadata()
        count = len(checked)
        distances = self._distances(conditions, count)
        values, gradients = (
            np.empty((count, *info.spectra_shape), np.float32),
            np.empty((count, *info.pixels), np.float32),
        )
        value, slopes = np.empty(count), np.empty(count, np.float32)
        weights = np.empty(values.shape)

        def cotangent_of(n: int, spectra: NDArray[np.float32]) -> Array:
            repeated = Spectra.of_model(np.repeat(spectra[None], count, axis=0), info)
            found, derivative = value_and_cotangent(objective, repeated)
            value[n] = np.asarray(found)[n]
            weights[n] = check_cotangent(derivative, count, info.spectra_shape)[n]
            return weights[n]

        jobs = [
            Job(as_density(structure, np.float64), distances[n : n + 1], partial(cotangent_of, n))
            for n, structure in enumerate(checked[:, 0])
        ]
        for n, result in self._results(jobs):
            assert result.slope is not None
            values[n], gradients[n] = result.spectra[0], result.gradient
            slopes[n] = (weights[n] * result.slope).sum()
        return Evaluation(value, gradients, Spectra.of_model(values, info), {self._distance.name: slopes})

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def _distances(self, given: Mapping[str, ConditionValue], count: int) -> NDArray[np.float64]:
        """Distances of the detectors, (count,): the process's own, in full precision, where they are the default."""
        (values,) = check_conditions([self._distance], given, count).values()
        default = self.process.distance_um
        return np.where(values[:, 0] == np.float32(default), default, values[:, 0].astype(np.float64))

    def _results(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Numbers and results of jobs, in the order in which they are found."""
        hidden = None if self._progress and len(jobs) > 1 else True
        with self._lock, tqdm(total=len(jobs), unit="structure", delay=2.0, leave=False, disable=hidden) as bar:
            todo: dict[int, Job] = {}
            for n, job in enumerate(jobs):
                kept = self._kept(job)
                if kept is None:
                    todo[n] = job
                else:
                    yield n, kept
                    bar.update()
            numbers, left = list(todo), list(todo.values())
            alone = len(left) == 1
            for k, result in enumerate(do(self._solver, job) for job in left) if alone else self._pool.compute(left):
                self._keep(left[k], result)
                yield numbers[k], result
                bar.update()

    def _kept(self, job: Job) -> Result | None:
        """The result of a job that has been done before, if it has been kept."""
        shape = self.metadata().spectra_shape
        found = [self._read(shape, job.density, *self._other(distance)) for distance in job.distances_um]
        kept = [spectra for spectra in found if spectra is not None]
        if len(kept) < len(found):
            return None
        if job.cotangent is None:
            return Result(np.stack(kept))
        other = self._other(job.distances_um[0])
        cotangent = job.cotangent(kept[0]) if callable(job.cotangent) else job.cotangent
        gradient = self._read((*cotangent.shape[:-2], *job.density.shape), job.density, cotangent, *other)
        slope = self._read(shape, job.density, _SLOPE, *other)
        return None if gradient is None or slope is None else Result(kept[0][None], gradient, slope)

    def _keep(self, job: Job, result: Result) -> None:
        if self.cache is None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        for distance, spectra in zip(job.distances_um, result.spectra, strict=True):
            write_array(self._file(self.cache, job.density, *self._other(distance)), spectra)
        if job.cotangent is not None and result.gradient is not None and result.slope is not None:
            other = self._other(job.distances_um[0])
            cotangent = job.cotangent(result.spectra[0]) if callable(job.cotangent) else job.cotangent
            write_array(self._file(self.cache, job.density, _SLOPE, *other), result.slope)
            write_array(self._file(self.cache, job.density, cotangent, *other), result.gradient)

    def _other(self, distance: float) -> tuple[Array, ...]:
        """What the name of a file holds for another distance than that of the process, which is in the recipe."""
        return () if distance == self.process.distance_um else (np.array([distance]),)

    def _read(self, shape: tuple[int, ...], *given: Array) -> Array | None:
        """The array that was kept for a density and whatever else it depends on; None if there is no whole one."""
        if self.cache is None:
            return None
        try:
            array = read_array(self._file(self.cache, *given))
        except ValueError:
            return None
        sound = array.shape == shape and array.dtype == np.float32 and np.isfinite(array).all()
        return array if sound else None

    def _file(self, folder: Path, *given: Array) -> Path:
        digest = hashlib.sha256(self._recipe)
        for array in given:
            digest.update(str(array.shape).encode() + array.tobytes())
        return folder / f"{digest.hexdigest()[:32]}.npy"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
