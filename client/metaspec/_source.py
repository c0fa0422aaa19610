"""Callers' sources of spectra: a check, and the gradient for stacks of structures and cotangents of any shape."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.source import Source

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


def predict_stack(source: Source, density: NDArray[Any]) -> NDArray[np.float32]:
    """Spectra (..., channels, wavelengths) of densities (..., y, x), in one batch."""
    spectra = source.predict(density.reshape(-1, *density.shape[-2:])).values
    return spectra.reshape(*density.shape[:-2], *spectra.shape[1:])


def pull_back(source: Source, density: NDArray[Any], cotangent: NDArray[Any]) -> NDArray[np.float32]:
    """The gradient of sum(cotangent * spectra) with respect to densities, in one batch.

    Args:
        source: source of the gradient.
        density: (..., y, x).
        cotangent: (..., channels, wavelengths); an axis of length 1 of either array is repeated for the other one.

    Returns:
        (..., y, x).
    """
    lead = np.broadcast_shapes(density.shape[:-2], cotangent.shape[:-2])
    cotangent = np.broadcast_to(cotangent, (*lead, *cotangent.shape[-2:]))
    several = [axis for axis, count in enumerate(lead) if density.shape[axis] != count]  # cotangents of each structure
    order = [axis for axis in range(len(lead)) if axis not in several] + several
    each, more = (int(np.prod([lead[axis] for axis in axes])) for axes in (order[: len(lead) - len(several)], several))
    stacked = cotangent.transpose(*order, len(lead), len(lead) + 1).reshape(each, more, *cotangent.shape[-2:])
    gradient = source.gradient(density.reshape(each, *density.shape[-2:]), stacked[:, 0] if more == 1 else stacked)
    ordered = gradient.reshape(*(lead[axis] for axis in order), *gradient.shape[-2:])
    return ordered.transpose(*np.argsort(order), len(lead), len(lead) + 1)
