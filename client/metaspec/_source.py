"""Callers' sources of spectra: a check, and the gradient for stacks of structures and cotangents of any shape."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.conditions import ConditionValue
from metaspec_contract.source import Evaluation, Gradients, ObjectiveFunction, Source
from metaspec_contract.spectra import Spectra

FIRST_DERIVATIVES_ONLY = (
    "a source has first derivatives in reverse mode only: no second derivatives, and no forward mode (jvp, jacfwd)"
)
"""Why a derivative of another kind is refused."""


def check_source(source: object) -> None:
    """Raise TypeError unless an argument is a source whose methods return their results, unlike those of `AsyncSurrogate`."""
    predict = getattr(source, "predict", None)
    if inspect.iscoroutinefunction(predict):
        raise TypeError(f"source must be a Surrogate or another Source, got {source!r}, whose methods must be awaited")
    if isinstance(source, type) or not callable(predict):
        raise TypeError(f"source must be a Surrogate or another Source, got {source!r}")


def predict_at(source: Source, structures: ArrayLike, conditions: Mapping[str, ConditionValue]) -> Spectra:
    """Spectra of structures at conditions, which only sources with conditions take."""
    takes: Any = source  # keyword arguments; see `Source`
    spectra: Spectra = takes.predict(structures, **conditions)
    return spectra


def evaluate_at(
    source: Source, structures: ArrayLike, objective: ObjectiveFunction, conditions: Mapping[str, ConditionValue]
) -> Evaluation:
    """An objective of structures at conditions, which only sources with conditions take, and its gradient."""
    takes: Any = source  # keyword arguments; see `Source`
    evaluation: Evaluation = takes.predict_and_gradient(structures, objective, **conditions)
    return evaluation


def gradients_at(
    source: Source, structures: ArrayLike, cotangent: ArrayLike, conditions: Mapping[str, ConditionValue]
) -> Gradients:
    """Gradients with respect to structures, and to conditions where some are given."""
    if not conditions:
        return Gradients(source.gradient(structures, cotangent), {})
    takes: Any = source  # sources with conditions have this method; see `Source`
    gradients: Gradients = takes.gradients(structures, cotangent, **conditions)
    return gradients


def predict_stack(source: Source, density: NDArray[Any], conditions: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Spectra (..., channels, wavelengths) of densities (..., y, x) at conditions (..., size), in one batch.

    An axis of length 1 of one array is repeated for the others.
    """
    lead = _lead(density, conditions)
    at = {name: _rows(values, lead, 1) for name, values in conditions.items()}
    spectra = predict_at(source, _rows(density, lead, 2), at).values
    return spectra.reshape(*lead, *spectra.shape[1:])


def pull_back(
    source: Source, density: NDArray[Any], cotangent: NDArray[Any], conditions: Mapping[str, NDArray[Any]]
) -> Gradients:
    """The gradient of sum(cotangent * spectra) with respect to densities and conditions, in one batch.

    Args:
        source: source of the gradient.
        density: (..., y, x).
        cotangent: (..., channels, wavelengths); an axis of length 1 of one array is repeated for the others.
        conditions: (..., size) by name.

    Returns:
        (..., y, x), and (..., size) for each condition.
    """
    points = _lead(density, conditions)  # structures at conditions
    lead = np.broadcast_shapes(points, cotangent.shape[:-2])
    cotangent = np.broadcast_to(cotangent, (*lead, *cotangent.shape[-2:]))
    several = [axis for axis, count in enumerate(lead) if points[axis] != count]  # cotangents of each point
    order = [axis for axis in range(len(lead)) if axis not in several] + several
    each, more = (int(np.prod([lead[axis] for axis in axes])) for axes in (order[: len(lead) - len(several)], several))
    stacked = cotangent.transpose(*order, len(lead), len(lead) + 1).reshape(each, more, *cotangent.shape[-2:])

    def in_order(array: NDArray[np.float32], row: tuple[int, ...]) -> NDArray[np.float32]:
        ordered = array.reshape(*(lead[axis] for axis in order), *row)
        return ordered.transpose(*np.argsort(order), *range(len(lead), ordered.ndim))

    at = {name: _rows(values, points, 1) for name, values in conditions.items()}
    found = gradients_at(source, _rows(density, points, 2), stacked[:, 0] if more == 1 else stacked, at)
    by_condition = {name: in_order(found.conditions[name], values.shape[-1:]) for name, values in conditions.items()}
    return Gradients(in_order(found.structure, density.shape[-2:]), by_condition)


def _lead(density: NDArray[Any], conditions: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    """Leading axes of densities and conditions together."""
    return np.broadcast_shapes(density.shape[:-2], *(values.shape[:-1] for values in conditions.values()))


def _rows(array: NDArray[Any], lead: tuple[int, ...], axes: int) -> NDArray[Any]:
    """An array (..., *row) as (N, *row) with the leading axes `lead`, where a row has so many axes."""
    row = array.shape[array.ndim - axes :]
    return np.broadcast_to(array, (*lead, *row)).reshape(-1, *row)
