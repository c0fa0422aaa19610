"""The solver as a source of spectra, like a remote surrogate: every objective and optimiser of `metaspec` runs on it.

    with SolverSource(cells=64, cache="simulated") as source:
        spectra = source.predict(structures)
        value, gradient, spectra = source.predict_and_gradient(structures, objective)

The entry point `solver` of the group `metaspec.sources` makes it known to `metaspec optimise --source solver`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array, write_array
from metaspec_contract.process import Process
from metaspec_contract.source import (
    Evaluation,
    ObjectiveFunction,
    Source,
    SourceInfo,
    check_cotangent,
    value_and_cotangent,
)
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import as_density, check_structures
from metaspec_simulation.physics.solver import DECAY, LONGEST, Solver
from metaspec_simulation.workers import Cotangent, Job, Result, Workers, do

Array = NDArray[Any]

_DEFAULT = Process()


class SolverSource(Source):
    """Simulated spectra, and their gradients by the adjoint method. Threads may share one, which computes for one at a time.

    One structure is simulated in this process, several in worker processes, which stay until `close`.

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
        )

    def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures, by simulation; see `Source.predict`."""
        checked = check_structures(structures, self.process.structure_shape)
        info = self.metadata()
        values = np.empty((len(checked), *info.spectra_shape), np.float32)
        for n, result in self._results(checked, [None] * len(checked)):
            values[n] = result.spectra
        return Spectra.of_model(values, info)

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) by the adjoint method; see `Source.gradient`.

        K cotangents of a structure share its forward simulation.
        """
        checked = check_structures(structures, self.process.structure_shape)
        weights = check_cotangent(cotangent, len(checked), self.metadata().spectra_shape)
        values = np.empty((*weights.shape[:-2], *checked.shape[-2:]), np.float32)
        for n, result in self._results(checked, [np.asarray(one, np.float64) for one in weights]):
            values[n] = result.gradient
        return values

    def predict_and_gradient(self, structures: ArrayLike, objective: ObjectiveFunction) -> Evaluation:
        """An objective of the spectra, and its gradient; see `Source.predict_and_gradient`.

        The objective is evaluated for one structure at a time, between its forward and its adjoint simulation: on N equal
        spectra, of whose values and derivatives the n-th are those of structure n.
        """
        checked, info = check_structures(structures, self.process.structure_shape), self.metadata()
        count = len(checked)
        values, gradients = (
            np.empty((count, *info.spectra_shape), np.float32),
            np.empty((count, *info.pixels), np.float32),
        )
        value = np.empty(count)

        def cotangent_of(n: int, spectra: NDArray[np.float32]) -> Array:
            repeated = Spectra.of_model(np.repeat(spectra[None], count, axis=0), info)
            found, derivative = value_and_cotangent(objective, repeated)
            value[n] = np.asarray(found)[n]
            return np.asarray(check_cotangent(derivative, count, info.spectra_shape)[n], np.float64)

        for n, result in self._results(checked, [partial(cotangent_of, n) for n in range(count)]):
            values[n], gradients[n] = result.spectra, result.gradient
        return Evaluation(value, gradients, Spectra.of_model(values, info))

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def _results(self, checked: Array, cotangents: Sequence[Cotangent | None]) -> Iterator[tuple[int, Result]]:
        """Results for checked structures (N, 1, y, x), in the order in which they are found."""
        hidden = None if self._progress and len(checked) > 1 else True
        with self._lock, tqdm(total=len(checked), unit="structure", delay=2.0, leave=False, disable=hidden) as bar:
            todo: dict[int, Job] = {}
            for n, (structure, cotangent) in enumerate(zip(checked[:, 0], cotangents, strict=True)):
                job = Job(as_density(structure, np.float64), cotangent)
                kept = self._kept(job)
                if kept is None:
                    todo[n] = job
                else:
                    yield n, kept
                    bar.update()
            numbers, jobs = list(todo), list(todo.values())
            alone = len(jobs) == 1
            for k, result in enumerate(do(self._solver, job) for job in jobs) if alone else self._pool.compute(jobs):
                self._keep(jobs[k], result)
                yield numbers[k], result
                bar.update()

    def _kept(self, job: Job) -> Result | None:
        """The result of a job that has been done before, if it has been kept."""
        spectra = self._read(self.metadata().spectra_shape, job.density)
        if spectra is None or job.cotangent is None:
            return None if spectra is None else Result(spectra, None)
        cotangent = job.cotangent(spectra) if callable(job.cotangent) else job.cotangent
        gradient = self._read((*cotangent.shape[:-2], *job.density.shape), job.density, cotangent)
        return None if gradient is None else Result(spectra, gradient)

    def _keep(self, job: Job, result: Result) -> None:
        if self.cache is None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        write_array(self._file(self.cache, job.density), result.spectra)
        if job.cotangent is not None and result.gradient is not None:
            cotangent = job.cotangent(result.spectra) if callable(job.cotangent) else job.cotangent
            write_array(self._file(self.cache, job.density, cotangent), result.gradient)

    def _read(self, shape: tuple[int, ...], *given: Array) -> Array | None:
        """The array that was kept for a density, or for a density and a cotangent; None if there is no whole one."""
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
