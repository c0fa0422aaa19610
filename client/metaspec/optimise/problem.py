"""The optimisation problem: an objective of the spectra that a source computes for the structures of latents."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._source import check_source, evaluate_at, gradients_at, predict_at
from metaspec.conditions import FixedConditions
from metaspec.fabrication import BlurAndBias
from metaspec.optimise.base import Array
from metaspec.optimise.free_conditions import Bounds, check_bounds
from metaspec.optimise.variants import Etched, Fabricated, Nominal, Variant
from metaspec.penalties import Penalty
from metaspec.topology import Parameterisation, robust_etas
from metaspec_contract.source import ObjectiveFunction, Source, value_and_cotangent
from metaspec_contract.spectra import Spectra

RULE_FROM = 20.0  # beta from which the minimum feature size counts: earlier, it keeps densities from good shapes
_RULE = 0.004  # its weight, times beta cubed, for objectives of the size of an efficiency


class Score(NamedTuple):
    """An objective and its gradient at N latents.

    Attributes:
        value: values of the objective, float64 (N,); with variants, that of the worst or their mean; less the penalties.
        gradient: gradient with respect to the latents, float64 (N, y, x); None if not requested.
        spectra: spectra of the nominal structures.
        objective: values without the penalty on features below the minimum feature size, float64 (N,): what progress and
            history show.
        conditions: gradient with respect to each free condition of the problem, float64 (N,) by name; empty if not requested.
    """

    value: Array
    gradient: Array | None
    spectra: Spectra
    objective: Array
    conditions: dict[str, Array]


class Problem:
    """An objective of a batch of latents, through a source of spectra.

    With `robust_delta`, each latent has three variants, eroded, nominal and dilated, thresholded at 1/2 + delta, 1/2 and
    1/2 - delta of the filtered latent, and its value is that of the worst (Wang, Lazarov and Sigmund, Struct. Multidisc.
    Optim. 43, 767 (2011)) or their mean. With `fabrication`, each has in addition one variant for each corner of a process,
    other corners in every step. All variants are computed in one batch.

    Args:
        source: source of spectra and gradients: a `Surrogate`, the solver, or another one; with
            `metaspec.conditions.FixedConditions`, at other values of its conditions than the defaults.
        objective: function from `Spectra` of N structures to N values, larger is better, and N derivatives with respect
            to the spectra.
        parameterisation: map from latents to densities.
        robust_delta: shift of the threshold, in [0, 1/2); 0 for the nominal structure only.
        robust: "worst" or "mean" of the variants, the nominal structure among them.
        fabrication: blur and bias of a process; None for none.
        penalties: functions of the nominal density that are subtracted from the objective.
        free: bounds of conditions that are design variables, each with its own value in each row, such as
            `{"distance_um": (1.0, 3.0)}`. Variants of a row share its values.

    Attributes:
        structures_evaluated: number of structures whose spectra were computed for this problem; gradients do not count.
        server_calls: number of calls of the source's `predict` and `gradient`; `predict_and_gradient` counts as both.

    Raises:
        ValueError: `robust_delta` or `robust` is out of range.
        InvalidCondition: a free condition is unknown or a vector, or has no bounds within its range.
        SourceError: some conditions are free, and the source's description could not be requested.
        TypeError: the source is not a source, such as an `AsyncSurrogate`, or a penalty is not one.
    """

    def __init__(
        self,
        source: Source,
        objective: ObjectiveFunction,
        parameterisation: Parameterisation,
        *,
        robust_delta: float = 0.0,
        robust: str = "worst",
        fabrication: BlurAndBias | None = None,
        penalties: Sequence[Penalty] = (),
        free: Bounds | None = None,
    ) -> None:
        check_source(source)
        if not 0 <= robust_delta < 0.5:
            raise ValueError(f"robust_delta must be at least 0 and below 0.5, got {robust_delta}")
        if robust not in ("worst", "mean"):
            raise ValueError(f"robust must be 'worst' or 'mean', got {robust!r}")
        if isinstance(penalties, Penalty) or not all(isinstance(one, Penalty) for one in penalties):
            raise TypeError(f"penalties must be a list of objects of metaspec.penalties, got {penalties!r}")
        self.source, self.objective, self.parameterisation = source, objective, parameterisation
        self.robust_delta, self.robust = robust_delta, robust
        self.fabrication, self.penalties = fabrication, tuple(penalties)
        self.free = check_bounds(source.metadata().conditions, free) if free else {}
        self.structures_evaluated = self.server_calls = 0

    def __repr__(self) -> str:
        return f"<Problem: {_named(self.objective)} of {self.parameterisation!r}, by {self.source!r}>"

    @property
    def refinable(self) -> bool:
        """Whether the objective of a binary structure is that of its spectra alone, which `refine` improves."""
        return not (self.robust_delta or self.fabrication or self.penalties)

    def evaluate(
        self,
        latent: ArrayLike,
        beta: float,
        step: int | None = None,
        conditions: Mapping[str, ArrayLike] | None = None,
    ) -> Score:
        """The objective of latents and its gradient: two calls of the source.

        Where the parameterisation has a minimum feature size, `Parameterisation.violation` is subtracted at a beta of 20 or
        more, with a weight that grows with beta cubed: first densities find their shape, then they keep the feature size.

        Args:
            latent: latents (N, y, x) in [0, 1].
            beta: steepness of the projection, finite.
            step: number of the step, which draws its own corners of the fabrication; None for those of `score`.
            conditions: values of conditions by name, (N,); defaults of the source for the others.

        Raises:
            ValueError: `beta` is not positive and finite, or the parameterisation has pixels of another device.
            SourceError: the source failed.
        """
        latent = np.asarray(latent)
        if not 0 < beta < np.inf:
            raise ValueError(f"beta must be positive and finite for a gradient, got {beta}")
        nominal = self.parameterisation.density(latent, beta)
        at = _rows(conditions, len(latent))
        value, gradient, spectra, by_condition = self._evaluate(latent, nominal, beta, self._variants(step), at)
        if self.penalties:
            value = value - self._penalty(nominal)
            by_density = np.sum([penalty.cotangent(nominal) for penalty in self.penalties], axis=0)
            gradient = gradient - self.parameterisation.pull_back(latent, by_density, beta)
        objective = value
        if self.parameterisation.min_feature_nm is not None and beta >= RULE_FROM:
            violation, by_latent = self.parameterisation.violation(latent, beta)
            weight = _RULE * beta**3
            value, gradient = value - weight * violation, gradient - weight * by_latent
        return Score(value, gradient, spectra, objective, by_condition)

    def _variants(self, step: int | None = None) -> list[Variant]:
        """All variants, the nominal one in between or first."""
        variants: list[Variant] = [Nominal(self.parameterisation)]
        if self.robust_delta:
            eroded, _, dilated = robust_etas(self.robust_delta)
            variants = [Etched(self.parameterisation, eroded), *variants, Etched(self.parameterisation, dilated)]
        if self.fabrication is not None:
            variants += [Fabricated(self.parameterisation, corner) for corner in self.fabrication.draw(step)]
        return variants

    def _evaluate(
        self, latent: Array, nominal: Array, beta: float, variants: list[Variant], at: dict[str, Array]
    ) -> tuple[Array, Array, Spectra, dict[str, Array]]:
        """The objective of latents, its gradient, the nominal spectra, and the gradient with respect to free conditions."""
        if len(variants) == 1:
            self._check_pixels()
            found = evaluate_at(self.source, nominal, self.objective, at)
            self.server_calls += 2
            self.structures_evaluated += len(latent)
            pulled = self.parameterisation.pull_back(latent, found.gradient, beta).astype(np.float64)
            by_condition = {name: np.asarray(found.conditions[name], np.float64) for name in self.free}
            return _checked_values(found.value, len(latent)), pulled, found.spectra, by_condition
        densities = np.stack([variant.density(latent, nominal, beta) for variant in variants])
        values, weights, cotangent, spectra = self._predict(densities, at)
        wanted = weights > 0  # only the worst variant has a gradient: the others are not computed
        there = {name: np.broadcast_to(one, wanted.shape)[wanted] for name, one in at.items()}
        weighted = cotangent[wanted] * weights[wanted][:, None, None]
        gradients = gradients_at(self.source, densities[wanted], weighted, there)
        self.server_calls += 1
        gradient = np.zeros(latent.shape)
        parts = iter(np.split(gradients.structure, np.cumsum(wanted.sum(axis=1))[:-1]))
        for variant, rows in zip(variants, wanted, strict=True):
            gradient[rows] += variant.pull_back(latent[rows], nominal[rows], next(parts), beta)
        by_condition = {name: np.zeros(wanted.shape) for name in self.free}
        for name, each in by_condition.items():
            each[wanted] = gradients.conditions[name]
        totals = {name: each.sum(axis=0) for name, each in by_condition.items()}
        return (weights * values).sum(axis=0), gradient, spectra, totals

    def score(
        self,
        latent: ArrayLike,
        beta: float = np.inf,
        structure: ArrayLike | None = None,
        conditions: Mapping[str, ArrayLike] | None = None,
    ) -> Score:
        """The objective of latents without its gradient: one call of the source.

        Args:
            latent: latents (N, y, x) in [0, 1].
            beta: steepness of the projection; infinite for binary structures.
            structure: `parameterisation.binary(latent)` if already known; used at infinite beta only.
            conditions: values of conditions by name, (N,); defaults of the source for the others.
        """
        latent = np.asarray(latent)
        if beta < np.inf:
            nominal = self.parameterisation.density(latent, beta)
        else:
            nominal = self.parameterisation.binary(latent) if structure is None else np.asarray(structure)
        densities = np.stack([variant.density(latent, nominal, beta) for variant in self._variants()])
        densities = densities.astype(np.uint8) if beta == np.inf else densities
        values, weights, _, spectra = self._predict(densities, _rows(conditions, len(latent)))
        value = (weights * values).sum(axis=0) - self._penalty(nominal.astype(np.float64))
        return Score(value, None, spectra, value, {})

    def _penalty(self, nominal: Array) -> Array:
        """Sum of the penalties of nominal densities, (N,)."""
        total: Array = sum((penalty.score(nominal) for penalty in self.penalties), np.zeros(len(nominal)))
        return total

    def _check_pixels(self) -> None:
        """Raise ValueError if lengths of the parameterisation refer to pixels of another device than the source's."""
        ours, theirs = self.parameterisation.pixel_nm, self.source.metadata().process.pixel_nm
        if not math.isclose(ours, theirs, rel_tol=1e-6):
            raise ValueError(
                f"pixel_nm of the parameterisation is {ours:g}, but that of the source's process is {theirs:g}: use "
                "Parameterisation(pixel_nm=source.metadata().process.pixel_nm)"
            )

    def _predict(self, densities: Array, at: dict[str, Array]) -> tuple[Array, Array, Array, Spectra]:
        """Values (variants, N), their weights in the objective, cotangents, and the nominal spectra."""
        self._check_pixels()
        variants, count = densities.shape[:2]
        for_all = {name: np.tile(one, variants) for name, one in at.items()}
        spectra = predict_at(self.source, densities.reshape(-1, *densities.shape[2:]), for_all)
        self.server_calls += 1
        self.structures_evaluated += variants * count
        parts = (spectra[n * count : (n + 1) * count] for n in range(variants))
        scored = [value_and_cotangent(self.objective, part) for part in parts]
        values = np.stack([_checked_values(value, count) for value, _ in scored])
        cotangent = np.array([derivative for _, derivative in scored])
        if self.robust == "mean":
            weights = np.full(values.shape, 1 / variants)
        else:
            weights = (np.arange(variants)[:, None] == values.argmin(axis=0)).astype(np.float64)
        nominal = count if self.robust_delta else 0  # after the eroded ones
        return values, weights, cotangent, spectra[nominal : nominal + count]

    def settings(self, count: int) -> dict[str, Any]:
        """Configuration fingerprint as JSON, compared when a checkpoint is resumed.

        Args:
            count: number of latents in a batch.
        """
        info = self.source.metadata()
        noise = np.random.default_rng(0).random((count, *info.spectra_shape), np.float32)
        value, _ = value_and_cotangent(self.objective, Spectra.of_model(noise, info))
        mean = float(np.mean(_checked_values(value, count)))
        # A server's newer version takes over within a run; another grid or process of a solver is another run.
        solver = {"version": info.version, "process": info.process.model_dump(mode="json")} if info.simulated else {}
        fixed = {"conditions": self.source.fixed} if isinstance(self.source, FixedConditions) else {}
        return {
            "model": info.name,
            **solver,
            **fixed,
            "objective": _named(self.objective),
            "objective_of_noise": float(f"{mean:.9g}"),  # distinguishes functions of the same name
            "parameterisation": repr(self.parameterisation),
            "robust_delta": self.robust_delta,
            "robust": self.robust,
            **({"fabrication": _named(self.fabrication)} if self.fabrication else {}),
            **({"penalties": _named(self.penalties)} if self.penalties else {}),
            **({"free": {name: list(bounds) for name, bounds in self.free.items()}} if self.free else {}),
        }


def _checked_values(value: ArrayLike, count: int) -> Array:
    """Values of an objective as float64 (N,); ValueError unless there is one for each structure."""
    values = np.asarray(value, np.float64)
    if values.shape != (count,):
        raise ValueError(f"an objective must return one value for each of {count} structures, got shape {values.shape}")
    return values


def _rows(conditions: Mapping[str, ArrayLike] | None, count: int) -> dict[str, Array]:
    """Values of conditions, (count,) by name."""
    return {name: np.broadcast_to(np.asarray(one), count) for name, one in (conditions or {}).items()}


def _named(thing: object) -> str:
    """The repr of an object without its address, which differs between processes."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(thing))
