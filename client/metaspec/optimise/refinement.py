"""Refinement of binary structures: their edges move uphill, and no feature becomes too narrow.

    refined = refine(source, objectives.by_name("bayer"), structures, min_feature_nm=78, steps=100)
    refined.structure, refined.value, refined.spectra

Made for a source whose gradient is exact but expensive, such as the solver: a step costs one evaluation of the objective, and
a gradient only where the objective has improved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._design.features import without_small_features
from metaspec._design.filters import check_symmetry, conic_filter, symmetrise
from metaspec._source import check_source, gradients_at, predict_at
from metaspec.optimise.base import Array
from metaspec_contract.source import ObjectiveFunction, Source, value_and_cotangent
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import check_binary

_REACH = 8  # pixels from an edge: all that are farther count as that deep
_GROWTH = 1.5  # of the size of a step after one that improves; after another one, it is halved


class Refined(NamedTuple):
    """Refined structures.

    Attributes:
        structure: binary structures, uint8 (N, y, x).
        value: values of the objective, float64 (N,).
        spectra: their spectra.
    """

    structure: Array
    value: Array
    spectra: Spectra


def refine(
    source: Source,
    objective: ObjectiveFunction,
    structure: ArrayLike,
    min_feature_nm: float,
    steps: int = 100,
    *,
    symmetry: str | None = None,
    conditions: Mapping[str, ArrayLike] | None = None,
    callback: Callable[[Refinement], None] | None = None,
) -> Refined:
    """Improve binary structures, keeping a minimum feature size. See `Refinement`, which can also be saved and resumed.

    Args:
        source: source of spectra and gradients.
        objective: function from `Spectra` of N structures to N values, larger is better, and N derivatives with respect to
            the spectra; best a smooth one that depends on all colours, such as `MinEfficiency(softness=0.02)`.
        structure: binary structures (N, y, x); features that are too small are repaired first.
        min_feature_nm: minimum width of solid and void in nm.
        steps: largest number of steps.
        symmetry: None or "diagonal", which the structures must have.
        conditions: values of conditions by name, (N,), which stay; defaults of the source for the others.
        callback: callback after each step.

    Raises:
        InvalidStructure: not binary structures.
        ValueError: a setting is out of range.
        SourceError: the source failed.
    """
    refinement = Refinement(source, objective, structure, min_feature_nm, symmetry=symmetry, conditions=conditions)
    for _ in range(steps):
        if refinement.finished:
            break
        refinement.step()
        if callback is not None:
            callback(refinement)
    return refinement.result()


class Refinement:
    """Steps that move the edges of binary structures uphill, each structure on its own.

    A step changes the pixels that promise most: those with the largest gradient, smoothed over the minimum feature size,
    divided by their distance from the edge. Features that this makes too small are repaired. If the objective has improved,
    the result is kept and the next step changes half as many pixels again; otherwise half of them, until not even one
    improves. So the objective never falls. The first step evaluates the structures. Arrays are replaced, never modified.

    Args:
        source: source of spectra and gradients.
        objective: objective as for `refine`.
        structure: binary structures (N, y, x); features that are too small are repaired.
        min_feature_nm: minimum width of solid and void in nm.
        symmetry: None or "diagonal", which the structures must have.
        conditions: values of conditions by name, (N,), which stay; defaults of the source for the others.

    Attributes:
        structure: structures so far, uint8 (N, y, x), all without features that are too small.
        value: their values of the objective, float64 (N,).
        size: number of pixels that the next step changes, float64 (N,); below 1 for a structure that no step improves.
        structures_evaluated: number of structures whose spectra were computed.
        server_calls: number of calls of the source.

    Raises:
        InvalidStructure: not binary structures.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        objective: ObjectiveFunction,
        structure: ArrayLike,
        min_feature_nm: float,
        *,
        symmetry: str | None = None,
        conditions: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        check_source(source)
        check_symmetry(symmetry)
        self._info = source.metadata()
        self._source, self._objective, self._symmetry = source, objective, symmetry
        self._width, self._pixel = min_feature_nm, self._info.process.pixel_nm
        binary = check_binary(structure, self._info.pixels)
        self.structure = np.stack([without_small_features(one, self._width, self._pixel) for one in binary])
        count = len(binary)
        self._at = {name: np.broadcast_to(np.asarray(one), count) for name, one in (conditions or {}).items()}
        self.size = np.full(count, binary[0].size / 256)
        self.value = np.full(count, -np.inf)
        self.structures_evaluated = self.server_calls = 0
        self._spectra = np.zeros((count, *self._info.spectra_shape), np.float32)
        self._gradient = np.zeros(binary.shape, np.float32)
        self._version = ""

    @property
    def finished(self) -> bool:
        """Whether no step improves any structure."""
        return bool((self.size < 1).all())

    def step(self) -> None:
        """Move the edges once.

        Raises:
            SourceError: the source failed. Nothing has changed: the step can be repeated.
        """
        trial, size = self.structure.copy(), self.size.copy()
        rows = np.arange(len(trial))
        if self._version:
            for row in range(len(trial)):
                trial[row], size[row] = self._moved(row)
            rows = rows[size >= 1]
        if not len(rows):
            self.size = size
            return
        found = predict_at(self._source, trial[rows], {name: values[rows] for name, values in self._at.items()})
        if self._version and found.version != self._version:  # values of two versions of a model are not compared
            self._version = ""
            self.step()
            return
        spectra = self._spectra.copy()
        spectra[rows] = found.values
        known = Spectra.of_model(spectra, self._info, found.version)
        value, cotangent = map(np.asarray, value_and_cotangent(self._objective, known))
        better = rows[value[rows] > self.value[rows]] if self._version else rows
        gradient = self._gradient[:0]
        if len(better):
            at = {name: values[better] for name, values in self._at.items()}
            gradient = gradients_at(self._source, trial[better], cotangent[better], at).structure
        if self._version:
            size[better] *= _GROWTH
        size[np.setdiff1d(rows, better)] /= 2
        self.structures_evaluated += len(rows)
        self.server_calls += 1 + bool(len(better))
        self.structure = _replaced(self.structure, better, trial[better])
        self.value = _replaced(self.value, better, value[better])
        self._spectra = _replaced(self._spectra, better, spectra[better])
        self._gradient = _replaced(self._gradient, better, gradient)
        self.size, self._version = size, found.version

    def _moved(self, row: int) -> tuple[Array, float]:
        """The next structure to try in a row, and the number of pixels to change; below 1 where none differs."""
        solid, size = self.structure[row].astype(bool), self.size[row]
        uphill = conic_filter(self._gradient[row].astype(np.float64), self._width, self._pixel)
        uphill = symmetrise(uphill, self._symmetry)  # last, so that rounding breaks no tie
        promise = np.where(solid, -uphill, uphill) / _depth(solid)
        ranked = np.sort(promise, axis=None)
        while size >= 1:
            chosen = promise >= max(ranked[-int(size)], np.finfo(np.float64).tiny)
            moved = without_small_features(solid ^ chosen, self._width, self._pixel)
            if (moved != solid).any():
                return moved, size
            size /= 2
        return self.structure[row], size

    def result(self) -> Refined:
        """The structures so far, in the order in which they were given."""
        return Refined(self.structure, self.value, Spectra.of_model(self._spectra, self._info, self._version))

    def state(self) -> dict[str, Array]:
        """The state between two steps, for `restore`. The arrays are never modified later."""
        return {
            "structure": self.structure,
            "value": self.value,
            "size": self.size,
            "spectra": self._spectra,
            "gradient": self._gradient,
            "version": np.array(self._version, "U64"),
        }

    def restore(self, state: dict[str, Array]) -> None:
        """Continue exactly from the state of a refinement with the same arguments."""
        self.structure, self.value, self.size = state["structure"], state["value"], state["size"]
        self._spectra, self._gradient, self._version = state["spectra"], state["gradient"], str(state["version"])


def _replaced(array: Array, rows: Array, values: Array) -> Array:
    """A copy of an array with other values in some rows."""
    copy = array.copy()
    copy[rows] = values
    return copy


def _depth(solid: Array) -> Array:
    """Distance of every pixel from the nearest one of the other kind in pixels, (y, x), at most about `_REACH`; periodic."""
    from scipy.ndimage import distance_transform_edt  # of the extra "optimise", like imageruler

    wrapped = np.pad(solid, _REACH, mode="wrap")
    distance = distance_transform_edt(wrapped) + distance_transform_edt(~wrapped)
    depth: Array = np.clip(distance[_REACH:-_REACH, _REACH:-_REACH], 1, _REACH)
    return depth
