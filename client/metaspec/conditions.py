"""A source at fixed values of its conditions: objectives, optimisers and bridges run on it as on any other source.

with FixedConditions(Surrogate(), {"distance_um": 1.25}) as source:
    problem = Problem(source, objectives.by_name("bayer"), Parameterisation())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._conditions import check_conditions, named_conditions
from metaspec._errors import InvalidCondition
from metaspec._source import check_source, evaluate_at, gradients_at, predict_at
from metaspec_contract.conditions import ConditionValue, stated_conditions
from metaspec_contract.source import Evaluation, Gradients, ObjectiveFunction, Source, SourceInfo
from metaspec_contract.spectra import Spectra

__all__ = ["FixedConditions", "at_conditions"]


def __dir__() -> list[str]:
    return __all__


class FixedConditions(Source):
    """A source at fixed values of conditions. It takes those that are not fixed.

    Its description is that of the device there: where the process has a field of a condition's name, it has the fixed value.

    Args:
        source: a `Surrogate` or another source that takes conditions; not an `AsyncSurrogate`.
        conditions: values for all structures by name: a number, or the numbers of a vector. None leaves the default.

    Attributes:
        source: the source.
        fixed: the values, as JSON: a float, or a list of them for a vector.

    Raises:
        InvalidCondition: the source has no such condition, or a value is none of it.
        SourceError: the description could not be requested.
        TypeError: the source is not a source.
    """

    def __init__(self, source: Source, conditions: Mapping[str, ConditionValue]) -> None:
        check_source(source)
        self.source = source
        self.fixed: dict[str, float | list[float]] = {}
        for name, condition in named_conditions(source.metadata().conditions, conditions).items():
            if conditions[name] is not None:
                check_conditions([condition], {name: conditions[name]}, 1)
                values: list[float] = np.asarray(conditions[name], np.float64).ravel().tolist()
                self.fixed[name] = values[0] if condition.size == 1 else values
        self._described: tuple[SourceInfo, SourceInfo] | None = None

    def __repr__(self) -> str:
        return f"<FixedConditions: {self.source!r} at {stated_conditions(self.fixed)}>"

    def metadata(self) -> SourceInfo:
        """Description of the source at these values, with the conditions that it still takes."""
        info = self.source.metadata()
        if self._described is None or self._described[0] is not info:
            left = tuple(condition for condition in info.conditions if condition.name not in self.fixed)
            self._described = info, replace(info, process=info.process.at(self.fixed), conditions=left)
        return self._described[1]

    def predict(self, structures: ArrayLike, **conditions: ConditionValue) -> Spectra:
        """Spectra of structures; see `Source.predict`."""
        return predict_at(self.source, structures, self._all(conditions))

    def gradient(
        self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue
    ) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra); see `Source.gradient`."""
        return self.gradients(structures, cotangent, **conditions).structure

    def gradients(self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue) -> Gradients:
        """The gradient with respect to structures and to the conditions that are not fixed; see `Source`."""
        found = gradients_at(self.source, structures, cotangent, self._all(conditions))
        return Gradients(found.structure, self._left(found.conditions))

    def predict_and_gradient(
        self, structures: ArrayLike, objective: ObjectiveFunction, **conditions: ConditionValue
    ) -> Evaluation:
        """An objective of the spectra, and its gradient; see `Source.predict_and_gradient`."""
        found = evaluate_at(self.source, structures, objective, self._all(conditions))
        return Evaluation(found.value, found.gradient, found.spectra, self._left(found.conditions))

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def _all(self, given: Mapping[str, ConditionValue]) -> dict[str, ConditionValue]:
        if again := [name for name in given if name in self.fixed]:
            raise InvalidCondition(again[0], f"is fixed: {stated_conditions(self.fixed)}")
        return {**given, **self.fixed}

    def _left(self, gradients: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {name: gradient for name, gradient in gradients.items() if name not in self.fixed}


def at_conditions(source: Source, conditions: Mapping[str, ConditionValue] | None) -> Source:
    """A source at fixed values of conditions, or the source itself where none are given; see `FixedConditions`."""
    return FixedConditions(source, conditions) if conditions else source
