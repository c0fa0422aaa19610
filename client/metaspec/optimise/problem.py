"""The optimisation problem: an objective of the spectra that a surrogate predicts for the structures of latents."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._spectra import Spectra
from metaspec._surrogate.base import ObjectiveFunction
from metaspec._surrogate.client import Surrogate
from metaspec.optimise.base import Array
from metaspec.topology import Parameterisation, robust_etas


class Score(NamedTuple):
    """An objective and its gradient at N latents.

    Attributes:
        value: values of the objective, float64 (N,); with variants, that of the worst or their mean.
        gradient: gradient with respect to the latents, float64 (N, y, x); None if not requested.
        spectra: predicted spectra of the nominal structures.
    """

    value: Array
    gradient: Array | None
    spectra: Spectra


class Problem:
    """An objective of a batch of latents, through a surrogate.

    With `robust_delta`, each latent has three variants, eroded, nominal and dilated, thresholded at 1/2 + delta, 1/2 and
    1/2 - delta of the filtered latent, and its value is that of the worst (Wang, Lazarov and Sigmund, Struct. Multidisc.
    Optim. 43, 767 (2011)) or their mean. All variants are predicted in one batch.

    Args:
        surrogate: remote model.
        objective: function from `Spectra` of N structures to N values, larger is better, and N derivatives with respect
            to the spectra.
        parameterisation: map from latents to densities.
        robust_delta: shift of the threshold, in [0, 1/2); 0 for the nominal structure only.
        robust: "worst" or "mean" of the variants.

    Attributes:
        structures_evaluated: number of structures predicted for this problem; gradients do not count.
        server_calls: number of calls of `predict` and `gradient`.

    Raises:
        ValueError: `robust_delta` or `robust` is out of range.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        objective: ObjectiveFunction,
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
        """The objective of latents and its gradient: two server calls.

        Args:
            latent: latents (N, y, x) in [0, 1].
            beta: steepness of the projection, finite.

        Raises:
            ValueError: `beta` is not positive and finite, or the parameterisation has pixels of another device.
            MetaSpecError: a server call failed.
        """
        latent = np.asarray(latent)
        if not 0 < beta < np.inf:
            raise ValueError(f"beta must be positive and finite for a gradient, got {beta}")
        densities = self._densities(latent, beta)
        values, weights, cotangent, spectra = self._predict(densities)
        wanted = weights > 0  # only the worst variant has a gradient: the others are not computed
        gradients = self.surrogate.gradient(densities[wanted], cotangent[wanted] * weights[wanted][:, None, None])
        self.server_calls += 1
        gradient = np.zeros(latent.shape)
        pulled = iter(np.split(gradients, np.cumsum(wanted.sum(axis=1))[:-1]))
        for eta, rows in zip(self._etas, wanted, strict=True):
            gradient[rows] += self.parameterisation.pull_back(latent[rows], next(pulled), beta, eta)
        return Score((weights * values).sum(axis=0), gradient, spectra)

    def score(self, latent: ArrayLike, beta: float = np.inf) -> Score:
        """The objective of latents without its gradient: one server call.

        Args:
            latent: latents (N, y, x) in [0, 1].
            beta: steepness of the projection; infinite for binary structures.
        """
        values, weights, _, spectra = self._predict(self._densities(np.asarray(latent), beta))
        return Score((weights * values).sum(axis=0), None, spectra)

    def _densities(self, latent: Array, beta: float) -> Array:
        """Densities of all variants, (variants, N, y, x)."""
        densities = np.stack([self.parameterisation.density(latent, beta, eta) for eta in self._etas])
        return densities if beta < np.inf else densities.astype(np.uint8)

    def _check_pixels(self) -> None:
        """Raise ValueError if lengths of the parameterisation refer to pixels of another device than the model's."""
        ours, theirs = self.parameterisation.pixel_nm, self.surrogate.metadata().process.pixel_nm
        if not math.isclose(ours, theirs, rel_tol=1e-6):
            raise ValueError(
                f"pixel_nm of the parameterisation is {ours:g}, but that of the model's process is {theirs:g}: use "
                "Parameterisation(pixel_nm=surrogate.metadata().process.pixel_nm)"
            )

    def _predict(self, densities: Array) -> tuple[Array, Array, Array, Spectra]:
        """Values (variants, N), their weights in the objective, cotangents, and the nominal spectra."""
        self._check_pixels()
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
        """Configuration fingerprint as JSON, compared when a checkpoint is resumed.

        Args:
            count: number of latents in a batch.
        """
        info = self.surrogate.metadata()
        noise = np.random.default_rng(0).random((count, *info.spectra_shape), np.float32)
        value, _ = self.objective(Spectra.of_model(noise, info))
        mean = float(np.mean(np.asarray(value, np.float64)))
        return {
            "model": info.name,
            "objective": re.sub(" at 0x[0-9a-f]+", "", repr(self.objective)),
            "objective_of_noise": float(f"{mean:.9g}"),  # distinguishes functions of the same name
            "parameterisation": repr(self.parameterisation),
            "robust_delta": self.robust_delta,
            "robust": self.robust,
        }
