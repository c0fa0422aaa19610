"""What is optimised: an objective of the spectra that a surrogate predicts for the structure that a latent makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._spectra import Spectra
from metaspec._surrogate.client import Surrogate
from metaspec.optimise.base import Array
from metaspec.topology import Parameterisation, robust_etas


class Score(NamedTuple):
    """An objective and its gradient at N latents.

    Attributes:
        value: of the objective, float64 (N,); of the worst variant, where there are several.
        gradient: of the value by the latents, float64 (N, y, x); None if nobody asked for it.
        spectra: of the nominal structures.
    """

    value: Array
    gradient: Array | None
    spectra: Spectra


class Problem:
    """An objective of latents, for many of them at once, through a surrogate.

    With `robust_delta`, each latent stands for three structures, eroded, nominal and dilated, which are thresholded at
    1/2 + delta, 1/2 and 1/2 - delta of the filtered latent, and its value is that of the worst (Wang, Lazarov and Sigmund,
    Struct. Multidisc. Optim. 43, 767 (2011)) or their mean. All go to the server in one batch.

    Args:
        surrogate: to ask.
        objective: from `Spectra` of N structures to N values, larger is better, and N derivatives by the spectra.
        parameterisation: from latents to densities.
        robust_delta: shift of the threshold, in [0, 1/2); 0 for the nominal structure alone.
        robust: "worst" or "mean" of the variants.

    Attributes:
        structures_evaluated: structures that the server has predicted for this problem, gradients not counted again.
        server_calls: calls of `predict` and `gradient`.

    Raises:
        ValueError: `robust_delta` or `robust` out of range.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        objective: Callable[[Spectra], tuple[ArrayLike, ArrayLike]],
        parameterisation: Parameterisation,
        *,
        robust_delta: float = 0.0,
        robust: str = "worst",
    ) -> None:
        if not 0 <= robust_delta < 0.5:
            raise ValueError(f"robust_delta must be at least 0 and below 0.5, got {robust_delta}")
        if robust not in ("worst", "mean"):
            raise ValueError(f"robust must be 'worst' or 'mean', got {robust!r}")
        self.surrogate, self.objective, self.parameterisation = surrogate, objective, parameterisation
        self.robust_delta, self.robust = robust_delta, robust
        self.structures_evaluated = self.server_calls = 0
        self._etas = robust_etas(robust_delta) if robust_delta else (0.5,)

    def evaluate(self, latent: ArrayLike, beta: float) -> Score:
        """The objective of latents and its gradient: two calls of the server.

        Args:
            latent: (N, y, x) in [0, 1].
            beta: of the projection, finite.

        Raises:
            ValueError: `beta` is not positive and finite.
            MetaSpecError: the server cannot be asked.
        """
        latent = np.asarray(latent)
        if not 0 < beta < np.inf:
            raise ValueError(f"beta must be positive and finite where a gradient is wanted, got {beta}")
        densities = self._densities(latent, beta)
        values, weights, cotangent, spectra = self._predict(densities)
        wanted = weights > 0  # the worst variant alone pulls on the latent: nobody computes the others' gradients
        gradients = self.surrogate.gradient(densities[wanted], cotangent[wanted] * weights[wanted][:, None, None])
        self.server_calls += 1
        gradient = np.zeros(latent.shape)
        pulled = iter(np.split(gradients, np.cumsum(wanted.sum(axis=1))[:-1]))
        for eta, rows in zip(self._etas, wanted, strict=True):
            gradient[rows] += self.parameterisation.pull_back(latent[rows], next(pulled), beta, eta)
        return Score((weights * values).sum(axis=0), gradient, spectra)

    def score(self, latent: ArrayLike, beta: float = np.inf) -> Score:
        """The objective of latents without its gradient: one call of the server.

        Args:
            latent: (N, y, x) in [0, 1].
            beta: of the projection; infinite for binary structures, which is what will be made.
        """
        values, weights, _, spectra = self._predict(self._densities(np.asarray(latent), beta))
        return Score((weights * values).sum(axis=0), None, spectra)

    def _densities(self, latent: Array, beta: float) -> Array:
        """Densities of all variants, (variants, N, y, x)."""
        densities = np.stack([self.parameterisation.density(latent, beta, eta) for eta in self._etas])
        return densities if beta < np.inf else densities.astype(np.uint8)

    def _predict(self, densities: Array) -> tuple[Array, Array, Array, Spectra]:
        """Values (variants, N), their weights in the objective, cotangents, and the nominal spectra."""
        variants, count = densities.shape[:2]
        spectra = self.surrogate.predict(densities.reshape(-1, *densities.shape[2:]))
        self.server_calls += 1
        self.structures_evaluated += variants * count
        scored = [self.objective(spectra[n * count : (n + 1) * count]) for n in range(variants)]
        values = np.array([value for value, _ in scored], np.float64)
        cotangent = np.array([derivative for _, derivative in scored])
        if self.robust == "mean":
            weights = np.full(values.shape, 1 / variants)
        else:
            weights = (np.arange(variants)[:, None] == values.argmin(axis=0)).astype(np.float64)
        nominal = variants // 2 * count
        return values, weights, cotangent, spectra[nominal : nominal + count]

    def settings(self, count: int) -> dict[str, Any]:
        """What makes this problem another one, as JSON.

        Args:
            count: of latents that are evaluated at a time.
        """
        info = self.surrogate.metadata()
        noise = np.random.default_rng(0).random((count, *info.spectra_shape), np.float32)
        value, _ = self.objective(Spectra(noise, info.wavelengths_nm, info.channels))
        mean = float(np.mean(np.asarray(value, np.float64)))
        return {
            "model": info.name,
            "objective": re.sub(" at 0x[0-9a-f]+", "", repr(self.objective)),
            "objective_of_noise": float(f"{mean:.9g}"),  # tells apart functions of one name
            "parameterisation": repr(self.parameterisation),
            "robust_delta": self.robust_delta,
            "robust": self.robust,
        }
