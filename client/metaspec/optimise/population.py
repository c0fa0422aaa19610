"""Methods without gradients: CMA-ES, differential evolution and a genetic algorithm, on control points."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from metaspec.optimise.base import Array, Optimiser
from metaspec.optimise.control import ControlPoints


class Population(Optimiser):
    """An optimiser of control points whose library cannot save its state as plain arrays.

    Instead, the values it was told are saved, and told again to a new one with the same seed: libraries that draw all
    their random numbers from that seed then stand exactly where they were.
    """

    needs_gradient = False

    def __init__(self, name: str, candidates: int, seed: int, points: int, shape: tuple[int, int], **more: Any) -> None:
        self.settings = {"name": name, "candidates": candidates, "seed": seed, "points": points, **more}
        self.candidates, self.seed, self.control = candidates, seed, ControlPoints(points, shape)
        self._begin()

    def _begin(self) -> None:
        self._told: list[Array] = []
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Make a new optimiser of the library."""

    @abstractmethod
    def _candidates(self) -> Array:
        """The library's next candidates, (M, K * K) in [0, 1]."""

    @abstractmethod
    def _select(self, cost: Array) -> None:
        """Tell the library what they cost, (M,): smaller is better."""

    def _propose(self) -> Array:
        return self.control.latent(self._candidates())

    def _learn(self, value: Array, gradient: Array | None) -> None:
        self._select(-value)
        self._told.append(value)

    def state(self) -> dict[str, Array]:
        """The values told so far."""
        return {"told": np.array(self._told).reshape(-1, self.candidates)}

    def restore(self, state: dict[str, Array]) -> None:
        """Tell them again to a new optimiser with the same seed."""
        self._begin()
        for value in state["told"]:
            self._candidates()
            self._learn(value, None)
        self._asked = None


class CMAES(Population):
    """CMA-ES (Hansen, arXiv:1604.00772) by the package cma. When it has converged, it starts again elsewhere.

    Args:
        candidates: of one generation.
        seed: of all random numbers.
        points: control points along each side: points ** 2 variables.
        sigma: initial standard deviation, in units of the range of a variable.
        shape: pixels (y, x).
    """

    def __init__(
        self,
        candidates: int = 16,
        seed: int = 0,
        points: int = 10,
        sigma: float = 0.25,
        shape: tuple[int, int] = (128, 128),
    ) -> None:
        self.sigma = sigma
        super().__init__("cmaes", candidates, seed, points, shape, sigma=sigma)

    def _start(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._restart()

    def _restart(self) -> None:
        import cma

        options = {
            "bounds": [0, 1],
            "popsize": self.candidates,
            "randn": lambda *shape: self._random.standard_normal(shape),  # not numpy's global generator
            "seed": np.nan,
            "verbose": -9,
        }
        start = self._random.uniform(0.3, 0.7, self.control.count**2)
        self._strategy = cma.CMAEvolutionStrategy(start, self.sigma, options)

    def _candidates(self) -> Array:
        if self._strategy.stop():
            self._restart()
        self._generation = self._strategy.ask()
        return np.array(self._generation)

    def _select(self, cost: Array) -> None:
        self._strategy.tell(self._generation, cost.tolist())


class Pymoo(Population):
    """A single-objective algorithm of pymoo that has `pop_size` and `n_offsprings`: "de" or "ga".

    Args:
        algorithm: "de", differential evolution (Storn and Price, J. Global Optim. 11, 341 (1997)), or "ga", a genetic
            algorithm with simulated binary crossover and polynomial mutation.
        candidates: of one generation.
        seed: of all random numbers.
        points: control points along each side: points ** 2 variables.
        shape: pixels (y, x).
        **settings: of pymoo's algorithm.
    """

    def __init__(
        self,
        algorithm: str,
        candidates: int = 16,
        seed: int = 0,
        points: int = 10,
        shape: tuple[int, int] = (128, 128),
        **settings: Any,
    ) -> None:
        self._algorithm_settings = settings
        super().__init__(algorithm, candidates, seed, points, shape, **settings)

    def _start(self) -> None:
        from pymoo.algorithms.soo.nonconvex.de import DE
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination

        variables = self.control.count**2
        kind = {"de": DE, "ga": GA}[self.settings["name"]]
        self._algorithm = kind(pop_size=self.candidates, n_offsprings=self.candidates, **self._algorithm_settings)
        self._problem = Problem(n_var=variables, n_obj=1, xl=np.zeros(variables), xu=np.ones(variables))
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=self.seed, verbose=False)

    def _candidates(self) -> Array:
        self._offspring = self._algorithm.ask()
        points: Array = self._offspring.get("X").astype(float)
        return points

    def _select(self, cost: Array) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        Evaluator().eval(StaticProblem(self._problem, F=cost[:, None]), self._offspring)
        self._algorithm.tell(infills=self._offspring)
