"""The methods of `design_bench.py`: each searches for good designs until its time is over, and counts what that takes."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from metaspec import Spectra, Surrogate, objectives, optimise
from metaspec.topology import Parameterisation, feature_size, random_latents
from metaspec_contract.source import Evaluation, ObjectiveFunction, Source, SourceInfo
from metaspec_contract.structures import pack, unpack
from metaspec_simulation.source import SolverSource

METHODS = {
    "gradient-surrogate": "gradient, surrogate",
    "gradient-solver": "gradient, solver",
    "polish": "surrogate, then polish",
    "cmaes-surrogate": "CMA-ES, surrogate",
    "cmaes-solver": "CMA-ES, solver",
}
"""Names of the methods in tables, by those on the command line."""

DECAY = 1e-3  # as `metaspec polish`: the gradient has a cosine of .9998 with the default's, at a third of the cost
SEARCH_CELLS, POLISH_CELLS = 48, 64
LEAST_STEPS, POLISH_STEPS = 8, 40  # of any run; of a polish, from which more designs are better than more steps
FIRST_BETA, POLISH_BETA = 4.0, 10.0  # of the first steps of `optimise.run` and `optimise.polish`
CHECK_EVERY = 4  # steps between evaluations of thresholded structures, about
SLACK = 1.15  # later steps take longer than the first: sharp edges hold light longer
JUDGED = 4  # structures of a run that are simulated at the end, and starts that are compared one by one
KEPT = 64  # best structures of a run that are remembered

Array = NDArray[Any]


class Counting(Source):
    """A source that counts what it is asked for.

    Attributes:
        evaluated: number of structures whose spectra were computed.
        gradients: number of gradients.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.evaluated = self.gradients = 0

    def metadata(self) -> SourceInfo:
        return self.source.metadata()

    def predict(self, structures: ArrayLike) -> Spectra:
        spectra = self.source.predict(structures)
        self.evaluated += len(spectra)
        return spectra

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        gradient = self.source.gradient(structures, cotangent)
        self.gradients += len(gradient)
        return gradient

    def predict_and_gradient(self, structures: ArrayLike, objective: ObjectiveFunction) -> Evaluation:
        found = self.source.predict_and_gradient(structures, objective)
        self.evaluated, self.gradients = self.evaluated + len(found.value), self.gradients + len(found.value)
        return found


@dataclass
class Search:
    """One run of a method: its settings, its clock, what it has found, and what that took.

    Attributes:
        arguments: settings of the command.
        minutes: wall time that it has.
        began: when its clock started.
        kept: best structures so far, packed, with the smallest colour efficiency by the method's own source.
        ends: where the first starts ended, by number: steps, and structure, packed.
        batches: number of starts, steps, and seconds of each batch.
        curve: seconds, and the best objective so far.
        top: the best objective so far.
        unpolished: the designs that were polished, before, packed.
        sources: sources that it used.
        seconds: wall time that it took.
    """

    arguments: argparse.Namespace
    minutes: float
    began: float = field(default_factory=time.monotonic)
    kept: dict[bytes, float] = field(default_factory=dict)
    ends: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    batches: list[tuple[int, int, float]] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)
    top: float = -math.inf
    unpolished: list[bytes] = field(default_factory=list)
    sources: list[Counting] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left; negative when the time is over."""
        return 60 * self.minutes - self.spent

    def problem(self, source: Source) -> optimise.Problem:
        """The problem that all methods solve, on a source."""
        rule = Parameterisation(self.arguments.radius_nm, min_feature_nm=self.arguments.min_feature_nm)
        return optimise.Problem(source, objectives.by_name(self.arguments.objective), rule)

    def counted(self, source: Source) -> optimise.Problem:
        """The same problem, with what is asked of the source counted."""
        self.sources.append(Counting(source))
        return self.problem(self.sources[-1])

    def keep(self, structures: Array, spectra: Spectra) -> None:
        """Remember the best of binary structures."""
        found = zip(map(packed, structures), spectra.min_efficiency().tolist(), strict=True)
        self.kept = dict(sorted({**self.kept, **dict(found)}.items(), key=lambda item: -item[1])[:KEPT])

    def best(self, number: int) -> list[bytes]:
        """The best structures so far, packed, best first."""
        return list(self.kept)[:number]

    def note(self, best: Array) -> None:
        """Continue the curve."""
        self.top = max(self.top, float(best.max()))
        self.curve.append((self.spent, self.top))


def packed(structure: Array) -> bytes:
    return pack(structure).tobytes()


def unpacked(structures: Iterable[bytes]) -> Array:
    return np.stack([unpack(np.frombuffer(bits, np.uint8)) for bits in structures])


def seconds_a_step(problem: optimise.Problem, latents: Array, beta: float) -> float:
    """Expected time of a step. A solver with a cache repeats nothing of it in the first step."""
    began = time.monotonic()
    problem.evaluate(latents, beta)
    between = time.monotonic()
    problem.score(latents)
    return SLACK * (between - began + (time.monotonic() - between) / CHECK_EVERY)


def ascend(search: Search, source: Source, at_once: int, batches: int | None = None) -> None:
    """Batches of random starts, one after another, as long as at least half of the steps of another one fit."""
    most, seed, pace = search.arguments.steps, search.arguments.seed, 0.0
    problem = search.counted(source)
    for batch in count() if batches is None else range(batches):
        began, first = time.monotonic(), batch * at_once
        latents = random_latents(first + at_once, seed)[first:]  # of one sequence, whatever the size of a batch
        pace = pace or seconds_a_step(search.problem(source), latents, FIRST_BETA)
        steps = min(most, int(search.left / pace))
        if batch and steps < most / 2:
            return
        steps = max(steps, min(LEAST_STEPS, most))
        result = optimise.run(problem, optimise.Adam(latents), steps, callback=lambda now: search.note(now.best))
        search.keep(result.structure, result.spectra)
        ends = zip((first + result.row).tolist(), map(packed, result.structure), strict=True)
        search.ends |= {start: (steps, end) for start, end in ends if start < JUDGED}
        search.batches.append((at_once, steps, time.monotonic() - began))
        pace = search.batches[-1][2] / steps


def polish(search: Search, solver: SolverSource) -> None:
    """Polish the best designs so far: as many as get enough steps in the time that is left, one if none does."""
    cores, most = solver.workers, max(JUDGED, solver.workers)
    one = seconds_a_step(search.problem(solver), unpacked(search.best(1)).astype(float), POLISH_BETA)

    def pace(designs: int) -> float:  # one runs on two threads, several on one thread each
        return one if designs == 1 else math.ceil(designs / cores) * min(2, cores) * one

    sizes = [size for size in range(cores, most + 1, cores) if POLISH_STEPS * pace(size) <= search.left]
    size = min(max(sizes, default=1), len(search.kept))
    steps = min(search.arguments.steps, int(search.left / pace(size)))
    if steps < min(LEAST_STEPS, search.arguments.steps):
        return
    designs, began = search.best(size), time.monotonic()
    # Values of the surrogate and of the solver are not compared.
    search.kept, search.ends, search.top = {}, {}, -math.inf
    search.unpolished = designs
    problem = search.counted(solver)
    result = optimise.polish(problem, unpacked(designs), steps, callback=lambda now: search.note(now.best))
    search.keep(result.structure, result.spectra)
    search.batches.append((size, steps, time.monotonic() - began))


def evolve(search: Search, source: Source) -> None:
    """CMA-ES, until the time is over."""
    problem = search.counted(source)
    optimiser = optimise.by_name("cmaes", search.arguments.starts, search.arguments.seed)
    with tqdm(total=round(60 * search.minutes), unit="s") as bar:
        while search.left > 0:
            structures = problem.parameterisation.binary(optimiser.ask())
            score = problem.score(optimiser.ask(), structure=structures)
            optimiser.tell(score.value)
            search.keep(structures, score.spectra)
            search.note(score.value)
            bar.update(round(search.spent) - bar.n)


def run(method: str, minutes: float, surrogate: Surrogate, arguments: argparse.Namespace) -> Search:
    """Run a method. Everything is loaded and compiled before its clock starts."""
    with ExitStack() as stack:
        goal = objectives.by_name(arguments.objective)
        cells = POLISH_CELLS if method == "polish" else SEARCH_CELLS
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        solver = stack.enter_context(SolverSource(cells=cells, decay=DECAY, cache=cache, progress=False))
        if method in ("gradient-solver", "polish", "cmaes-solver"):
            solver.predict_and_gradient(np.zeros((solver.workers, 128, 128)), goal)  # every worker
            solver.predict_and_gradient(np.ones((1, 128, 128)), goal)  # this process
        if method in ("gradient-surrogate", "polish", "cmaes-surrogate"):
            surrogate.predict_and_gradient(random_latents(arguments.starts, seed=1), goal)
        feature_size(random_latents(1)[0] > 0.5)
        search = Search(arguments, minutes)
        if method == "gradient-surrogate":
            ascend(search, surrogate, arguments.starts)
        elif method == "gradient-solver":
            ascend(search, solver, solver.workers)
        elif method == "polish":
            ascend(search, surrogate, arguments.starts, batches=1)
            polish(search, solver)
        else:
            evolve(search, surrogate if method == "cmaes-surrogate" else solver)
        search.seconds = search.spent
    return search
