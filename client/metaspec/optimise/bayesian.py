"""Bayesian optimisation with BoTorch, for dozens of variables and hundreds of evaluations. Needs botorch."""

from __future__ import annotations

import math

import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim.optimize import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch.quasirandom import SobolEngine

from metaspec.optimise.base import Array, Optimiser


class Bayesian(Optimiser):
    """A Gaussian process and batches of largest log expected improvement (Ament et al., arXiv:2310.20708).

    Every batch is a function of the points and values so far and the seed, so these are its whole state.

    Args:
        candidates: number of candidates per batch.
        seed: seed of the random number generators.
        shape: control points (y, x) of a candidate.
        initial: number of quasi-random batches before the first Gaussian process.
    """

    needs_gradient = False

    def __init__(self, candidates: int = 8, seed: int = 0, shape: tuple[int, int] = (6, 6), initial: int = 4) -> None:
        if candidates < 1:
            raise ValueError(f'candidates must be at least 1 for "botorch", got {candidates}')
        self.candidates, self.seed, self.shape, self.initial = candidates, seed, shape, initial
        self.settings = {"name": "botorch", "candidates": candidates, "seed": seed} | {
            "shape": list(shape),
            "initial": initial,
        }
        self._points = torch.empty(0, math.prod(shape), dtype=torch.float64)
        self._values = torch.empty(0, 1, dtype=torch.float64)

    def _propose(self) -> Array:
        told, variables = self._points.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + told)
            if told < self.initial * self.candidates:
                sobol = SobolEngine(variables, scramble=True, seed=self.seed)  # type: ignore[no-untyped-call]
                self._batch = sobol.draw(told + self.candidates, dtype=torch.float64)[told:]
            else:
                self._batch = self._improve()
        points: Array = self._batch.numpy().reshape(-1, *self.shape)
        return points

    def _improve(self) -> torch.Tensor:
        model = SingleTaskGP(self._points, self._values)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        sampler = SobolQMCNormalSampler(torch.Size([128]), seed=self.seed)
        improvement = qLogExpectedImprovement(model, self._values.max(), sampler)
        box = torch.stack([torch.zeros(math.prod(self.shape)), torch.ones(math.prod(self.shape))]).double()
        batch, _ = optimize_acqf(
            improvement, box, self.candidates, num_restarts=2, raw_samples=64, options={"maxiter": 50}
        )
        return batch.detach()

    def _learn(self, value: Array, gradient: Array) -> None:
        self._points = torch.cat([self._points, self._batch])
        self._values = torch.cat([self._values, torch.from_numpy(value)[:, None]])

    def state(self) -> dict[str, Array]:
        """The points and values so far."""
        return {"points": self._points.numpy(), "values": self._values.numpy()}

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state returned by `state`."""
        self._points, self._values = torch.from_numpy(state["points"]), torch.from_numpy(state["values"])
        self._asked = None
