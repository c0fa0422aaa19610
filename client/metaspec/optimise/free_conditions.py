"""Free conditions: design variables beside the structure, such as the distance of the detectors, each within bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from metaspec._conditions import check_conditions, named_conditions
from metaspec._errors import InvalidCondition
from metaspec.optimise.adam import Adam
from metaspec.optimise.base import Array
from metaspec_contract.conditions import Condition

Bounds = Mapping[str, tuple[float, float]]
"""Smallest and largest value of conditions, by name."""

STEPPING = "adam, torch or optax"
"""Names of the optimisers that can go with free conditions."""

_LEARNING_RATE = 0.02  # share of the interval


def check_bounds(known: Iterable[Condition], free: Bounds) -> dict[str, tuple[float, float]]:
    """Bounds of conditions as floats, in the order of the model's conditions.

    Args:
        known: conditions of the source.
        free: bounds by name.

    Raises:
        InvalidCondition: the source has no such condition, it is a vector, or its bounds are not two numbers within its
            range that ascend.
    """
    checked = {}
    for name, condition in _numbers(known, free).items():
        try:
            low, high = map(float, free[name])
        except (TypeError, ValueError):
            raise InvalidCondition(name, f"must have two bounds, (low, high), got {free[name]!r}") from None
        for bound in (low, high):
            check_conditions([condition], {name: bound}, 1)
        if not low < high:
            raise InvalidCondition(name, f"must have bounds that ascend, got {low:g} and {high:g}")
        checked[name] = low, high
    return checked


def varies_conditions(optimiser: object) -> bool:
    """Whether an optimiser, or a class of them, can go with conditions that move: it takes single steps along gradients.

    A line search compares values of one function of the latents, which every step of the conditions changes.
    """
    return bool(getattr(optimiser, "needs_gradient", True)) and not getattr(optimiser, "line_search", False)


def spread(free: Bounds, rows: int) -> dict[str, Array]:
    """Values (rows,) in the middles of as many equal parts of each interval, by name; the order differs from name to name."""
    generator, middles = np.random.default_rng(1), (np.arange(rows) + 0.5) / rows
    values: dict[str, Array] = {}
    for name, (low, high) in free.items():
        values[name] = low + (high - low) * (generator.permutation(middles) if values else middles)
    return values


class BatchConditions:
    """Conditions of a batch, one value for each row: free ones move uphill within their bounds, the others stay.

    Free ones are varied by Adam with its own step size, on their intervals mapped to [0, 1]. Steps are clipped there: unlike
    with a sigmoid, whose slope vanishes at the ends, a bound can be reached, and left.

    Args:
        known: conditions of the source.
        free: bounds of those that are free, by name.
        start: values by name, a number or (rows,): where free conditions start, spread over their intervals by default, and
            values of further conditions, which stay.
        rows: M, the number of rows.

    Attributes:
        names: names of the conditions, in the order of the last axis of the arrays.

    Raises:
        InvalidCondition: a condition is unknown or a vector, or a value is outside its range or its bounds.
    """

    def __init__(
        self, known: Iterable[Condition], free: Bounds, start: Mapping[str, ArrayLike] | None, rows: int
    ) -> None:
        given = {name: one for name, one in (start or {}).items() if one is not None}
        check_conditions(_numbers(known, given).values(), given, rows)
        values = {**spread(free, rows), **{name: np.broadcast_to(np.ravel(one), rows) for name, one in given.items()}}
        for name, (low, high) in free.items():
            if not ((values[name] >= low) & (values[name] <= high)).all():
                wrong = values[name][(values[name] < low) | (values[name] > high)][0]
                raise InvalidCondition(name, f"must start between its bounds {low:g} and {high:g}, got {wrong:g}")
        self._free = tuple(free)
        self._low, self._high = (np.array([free[name][end] for name in free]) for end in (0, 1))
        self.names = (*free, *(name for name in values if name not in free))
        self._values = (
            np.stack([values[name] for name in self.names], 1).astype(float) if values else np.empty((rows, 0))
        )
        self._adam: Adam | None = None
        if free:
            unit = (self._values[:, : len(free)] - self._low) / (self._high - self._low)
            self._adam = Adam(unit[:, None].clip(0, 1), _LEARNING_RATE)

    def ask(self) -> Array:
        """The present values, (M, conditions)."""
        if self._adam is None:
            return self._values
        moved = self._low + (self._high - self._low) * self._adam.ask()[:, 0]
        return np.concatenate([moved.clip(self._low, self._high), self._values[:, len(self._free) :]], axis=1)

    def tell(self, value: Array, gradient: Mapping[str, Array]) -> None:
        """Move the free conditions.

        Args:
            value: values of the objective, (M,).
            gradient: its gradient with respect to each free condition, (M,) by name.
        """
        if self._adam is not None:
            by_unit = np.stack([gradient[name] for name in self._free], axis=1) * (self._high - self._low)
            self._adam.tell(value, by_unit[:, None])

    def named(self, values: Array) -> dict[str, Array]:
        """Values (..., conditions) as arrays (...) by name."""
        return {name: values[..., number] for number, name in enumerate(self.names)}

    def state(self) -> dict[str, Array]:
        """The state between two steps, for `restore`."""
        return {} if self._adam is None else self._adam.state()

    def restore(self, state: dict[str, Array]) -> None:
        """Continue exactly from a state."""
        if self._adam is not None:
            self._adam.restore(state)


def _numbers(known: Iterable[Condition], names: Iterable[str]) -> dict[str, Condition]:
    """The conditions of these names, none of which may be a vector."""
    found = named_conditions(known, names)
    for name, condition in found.items():
        if condition.size > 1:
            raise InvalidCondition(
                name, f"is a vector of {condition.size} numbers, and must be fixed for all structures"
            )
    return found
