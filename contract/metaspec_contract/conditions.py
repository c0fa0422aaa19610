"""Conditions: named real numbers that a model or solver takes beside each structure, such as the distance of the detectors.

Each has a unit, a range and a default, and one value or a vector of values for each row of a batch. A model's graph has an
input (N, size) for each, and a gradient model an output of the same shape, the gradient with respect to it. What users give is
checked and completed here, by the same rule in client, server and solver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

ConditionValue: TypeAlias = ArrayLike | None
"""What users give for a condition: a number for all rows, an array of one for each row, or None for the default."""

_RESERVED = frozenset(
    (
        *("structure", "cotangent", "spectra"),
        *("structures", "objective", "conditions", "self"),
        *("model", "version", "channels", "wavelengths_nm", "dtype", "priority", "packed"),
    )
)
"""Names of tensors, of arguments of sources, and of what the routes of a server take."""

_GRADIENT_PREFIX = "gradient"


class InvalidCondition(ValueError):
    """A value that is none of a condition, or a condition that does not exist.

    The message states what was expected and what came.

    Attributes:
        name: name of the condition.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, str(self).removeprefix(f"{self.name} "))


class Condition(BaseModel):
    """One condition of a model. Further fields are allowed.

    Attributes:
        name: name of the keyword argument, of the field on the wire, and of the input in the graph.
        unit: unit of its values; "" if they have none.
        low: smallest value that the model was made for.
        high: largest value that the model was made for.
        default: value where none is given: a number, or `size` numbers.
        size: number of values in each row: 1 for a number, more for a vector.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    unit: str
    low: FiniteFloat
    high: FiniteFloat
    default: FiniteFloat | tuple[FiniteFloat, ...]
    size: int = Field(default=1, ge=1, le=1024)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise ValueError(f"name must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got {self.name!r}")
        if self.name in _RESERVED or self.name.startswith(_GRADIENT_PREFIX):
            raise ValueError(f"name must not be that of another tensor or argument, got {self.name!r}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if not isinstance(self.default, tuple) and self.size > 1:
            raise ValueError(f"default must be {self.size} numbers for size {self.size}, got {self.default:g}")
        if isinstance(self.default, tuple) and (self.size == 1 or len(self.default) != self.size):
            expected = "a number" if self.size == 1 else f"{self.size} numbers"
            raise ValueError(f"default must be {expected} for size {self.size}, got {len(self.default)} numbers")
        if outside := [value for value in self.defaults if not self.low <= value <= self.high]:
            raise ValueError(f"default must lie between {self.range}, got {outside[0]:g}")
        return self

    @property
    def defaults(self) -> tuple[float, ...]:
        """The default values of one row."""
        return self.default if isinstance(self.default, tuple) else (self.default,)

    @property
    def shape(self) -> tuple[int]:
        """Shape of one row of its tensor."""
        return (self.size,)

    @property
    def gradient(self) -> str:
        """Name of the output of a gradient model that holds the gradient with respect to it."""
        return f"{_GRADIENT_PREFIX}_{self.name}"

    @property
    def range(self) -> str:
        """Its range in words: "1 and 3 um"."""
        return f"{self.low:g} and {self.high:g}{f' {self.unit}' if self.unit else ''}"

    def __str__(self) -> str:
        default = ", ".join(f"{value:g}" for value in self.defaults)
        return f"{self.name} between {self.range}, default {default if self.size == 1 else f'({default})'}"

    def check(self, value: ConditionValue, count: int) -> NDArray[np.float32]:
        """What a user gave, as float32 (count, size); the default where it is None.

        Args:
            value: a number, or an array (count,) or (count, 1) of numbers; for a vector, an array (size,) for all rows, or
                (count, size).
            count: number of rows.

        Raises:
            InvalidCondition: another shape, no numbers, not finite, or outside the range, in float32.
        """
        array = self.numbers(self.default if value is None else value)
        self.check_head(array.dtype, array.shape, count)
        for_all = array.shape == (() if self.size == 1 else self.shape)
        shape = count, self.size
        rows = np.broadcast_to(array, shape) if for_all else array.reshape(shape)
        with np.errstate(over="ignore"):  # what overflows becomes inf and is refused
            checked = rows.astype(np.float32, "C")
        low, high = np.float32(self.low), np.float32(self.high)  # as the values are, so that both ends are in it
        if not ((checked >= low) & (checked <= high)).all():  # this form also rejects NaN
            row, component = (int(i) for i in np.argwhere(~((checked >= low) & (checked <= high)))[0])
            where = f" at structure {row}" if array.shape and count > 1 and len(array) == count else ""
            raise InvalidCondition(self.name, f"must lie between {self.range}, got {rows[row, component]:.9g}{where}")
        return checked

    def numbers(self, value: ConditionValue) -> NDArray[Any]:
        """What a user gave as an array of numbers, of any shape.

        Raises:
            InvalidCondition: a masked array, no array, or no numbers.
        """
        if np.ma.is_masked(value):
            raise InvalidCondition(self.name, "must be given everywhere, got a masked array: use its method filled")
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidCondition(self.name, f"must be an array: {error}") from None
        self._check_dtype(array.dtype)
        return array

    def check_head(self, dtype: np.dtype[Any], shape: tuple[int, ...], count: int) -> None:
        """Refuse an array by its dtype and shape, as `check` does, before its values are read.

        Args:
            dtype: its dtype.
            shape: its shape.
            count: number of rows.

        Raises:
            InvalidCondition: no numbers, or another shape than `check` takes.
        """
        self._check_dtype(dtype)
        if self.size == 1:
            shapes, expected = [(), (count,), (count, 1)], f"a number, or ({count},): one for each structure"
        else:
            shapes = [self.shape, (count, self.size)]
            expected = f"({self.size},), or ({count}, {self.size}) for each structure"
        if shape not in shapes:
            raise InvalidCondition(self.name, f"must be {expected}, got an array {shape}")

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        if dtype.kind not in "uif":
            raise InvalidCondition(self.name, f"must be numbers between {self.range}, got {dtype}")


def check_conditions(
    conditions: Iterable[Condition], given: Mapping[str, ConditionValue], count: int
) -> dict[str, NDArray[np.float32]]:
    """The values of all conditions of a model for a batch, float32 (count, size) by name: those given, defaults for the others.

    Args:
        conditions: conditions of the model.
        given: what the user gave, by name; see `Condition.check`.
        count: number of structures in the batch.

    Raises:
        InvalidCondition: the model has no condition of this name, or a value is none of it. The message names the condition,
            its range and its unit.

    Example:
        >>> distance = Condition(name="distance_um", unit="um", low=1, high=3, default=2.5)
        >>> check_conditions([distance], {"distance_um": [1.25, 2]}, 2)["distance_um"].ravel().tolist()
        [1.25, 2.0]
    """
    known = {condition.name: condition for condition in conditions}
    for name in given:
        if name not in known:
            taken = "; ".join(map(str, known.values())) or "none"
            raise InvalidCondition(name, f"is no condition of this model, which takes {taken}")
    return {name: condition.check(given.get(name), count) for name, condition in known.items()}


def stated_conditions(values: Mapping[str, float | Sequence[float]]) -> str:
    """Values of conditions in words: "distance_um 1.25, incidence (3, -4.5)"."""

    def stated(value: float | Sequence[float]) -> str:
        return f"{value:g}" if isinstance(value, int | float) else f"({', '.join(f'{one:g}' for one in value)})"

    return ", ".join(f"{name} {stated(value)}" for name, value in values.items())


def spread_conditions(conditions: Iterable[Condition], count: int) -> dict[str, NDArray[np.float32]]:
    """Values that cover the range of each condition evenly, with both ends if there are two or more: float32 (count, size).

    The order differs from one condition, or component of a vector, to the next.
    """
    generator = np.random.default_rng(1)
    values = {}
    for condition in conditions:
        steps = np.linspace(condition.low, condition.high, count, dtype=np.float32)
        values[condition.name] = np.stack([generator.permutation(steps) for _ in range(condition.size)], axis=1)
    return values


def require_unique(conditions: Sequence[Condition]) -> None:
    """Refuse two conditions of one name.

    Raises:
        ValueError: there are two; the name is in the message.
    """
    names = [condition.name for condition in conditions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"conditions must have different names, got {twice[0]} twice")
