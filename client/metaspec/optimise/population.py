"""Gradient-free methods: CMA-ES, differential evolution and a genetic algorithm, for up to hundreds of variables."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import cma
import numpy as np
from pymoo.algorithms.soo.nonconvex import de as pymoo_de
from pymoo.algorithms.soo.nonconvex import ga as pymoo_ga
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from metaspec.optimise.base import Array, Optimiser


class Population(Optimiser):
    """An optimiser whose library cannot save its state as plain arrays.

    The state is the values told so far; `restore` replays them on a new optimiser with the same seed, which is exact for
    libraries that draw all random numbers from that seed.

    Attributes:
        fewest: smallest number of candidates per generation that the method can learn from.

    Raises:
        ValueError: fewer candidates than that.
    """

    needs_gradient = False
    fewest: ClassVar[int] = 2

    def __init__(self, name: str, candidates: int, seed: int, shape: tuple[int, int], **more: Any) -> None:
        if candidates < self.fewest:
            raise ValueError(f'candidates must be at least {self.fewest} for "{name}", got {candidates}')
        self.settings = {"name": name, "candidates": candidates, "seed": seed, "shape": list(shape), **more}
        self.candidates, self.seed, self.shape = candidates, seed, shape
        self._begin()

    def _begin(self) -> None:
        self._told: list[Array] = []
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Create the library's optimiser."""

    @abstractmethod
    def _candidates(self) -> Array:
        """The library's next candidates, (M, variables) in [0, 1]."""

    @abstractmethod
    def _select(self, cost: Array) -> None:
        """Tell the library their costs, (M,); smaller is better."""

    def _propose(self) -> Array:
        return self._candidates().reshape(-1, *self.shape)

    def _learn(self, value: Array, gradient: Array) -> None:
        self._select(-value)
        self._told.append(value)

    def state(self) -> dict[str, Array]:
        """The values told so far."""
        return {"told": np.array(self._told).reshape(-1, self.candidates)}

    def restore(self, state: dict[str, Array]) -> None:
        """Replay them on a new optimiser with the same seed."""
        self._begin()
        for value in state["told"]:
            self._candidates()
            self._learn(value, np.empty(0))
        self._asked = None


class CMAES(Population):
    """CMA-ES (Hansen, arXiv:1604.00772) from the package cma. After convergence it restarts at a random point.

    Args:
        candidates: number of candidates per generation.
        seed: seed of the random number generator.
        shape: control points (y, x) of a candidate.
        sigma: initial standard deviation, relative to the range of a variable.
    """

    def __init__(
        self,
        candidates: int = 16,
        seed: int = 0,
        shape: tuple[int, int] = (10, 10),
        sigma: float = 0.25,
    ) -> None:
        self.sigma = sigma
        super().__init__("cmaes", candidates, seed, shape, sigma=sigma)

    def _start(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._restart()

    def _restart(self) -> None:
        options = {
            "bounds": [0, 1],
            "popsize": self.candidates,
            "tolx": 1e-3,  # smaller changes of a latent do not change the structure
            "randn": lambda *shape: self._random.standard_normal(shape),  # not numpy's global generator
            "seed": np.nan,
            "verbose": -9,
        }
        start = self._random.uniform(0.3, 0.7, math.prod(self.shape))
        self._strategy = cma.CMAEvolutionStrategy(start, self.sigma, options)

    def _candidates(self) -> Array:
        if self._strategy.stop():
            self._restart()
        self._generation = self._strategy.ask()
        return np.array(self._generation)

    def _select(self, cost: Array) -> None:
        self._strategy.tell(self._generation, cost.tolist())


class Pymoo(Population):
    """A single-objective algorithm from pymoo with a population of constant size.

    Args:
        candidates: number of candidates per generation.
        seed: seed of the random number generator.
        shape: control points (y, x) of a candidate.
        **settings: arguments of pymoo's algorithm.
    """

    name: ClassVar[str]
    algorithm: ClassVar[type]

    def __init__(self, candidates: int = 16, seed: int = 0, shape: tuple[int, int] = (10, 10), **settings: Any) -> None:
        self._algorithm_settings = settings
        super().__init__(self.name, candidates, seed, shape, **settings)

    def _start(self) -> None:
        variables = math.prod(self.shape)
        settings = {"pop_size": self.candidates, "n_offsprings": self.candidates, **self._algorithm_settings}
        self._algorithm = self.algorithm(**settings)
        self._problem = Problem(n_var=variables, n_obj=1, xl=np.zeros(variables), xu=np.ones(variables))
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=self.seed, verbose=False)

    def _candidates(self) -> Array:
        self._offspring = self._algorithm.ask()
        points: Array = self._offspring.get("X").astype(float)
        return points

    def _select(self, cost: Array) -> None:
        Evaluator().eval(StaticProblem(self._problem, F=cost[:, None]), self._offspring)
        self._algorithm.tell(infills=self._offspring)


class DE(Pymoo):
    """Differential evolution (Storn and Price, J. Global Optim. 11, 341 (1997)) from pymoo."""

    name, algorithm = "de", pymoo_de.DE
    fewest = 4  # each candidate is compared with a sum of three others


class GA(Pymoo):
    """A genetic algorithm with simulated binary crossover and polynomial mutation from pymoo."""

    name, algorithm = "ga", pymoo_ga.GA
