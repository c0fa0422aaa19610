"""Checks of callers' conditions: those of the contract, raised as errors of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec._errors import InvalidCondition
from metaspec_contract import conditions as contract
from metaspec_contract.conditions import Condition, ConditionValue


def check_conditions(
    known: Iterable[Condition], given: Mapping[str, ConditionValue], count: int
) -> dict[str, NDArray[np.float32]]:
    """The values of all conditions of a model for a batch, float32 (count, size) by name.

    Raises:
        InvalidCondition: see `metaspec_contract.conditions.check_conditions`.
    """
    with _as_ours():
        return contract.check_conditions(known, given, count)


def named_conditions(known: Iterable[Condition], names: Iterable[str]) -> dict[str, Condition]:
    """The conditions of these names.

    Raises:
        InvalidCondition: the model has no condition of a name.
    """
    known = tuple(known)
    check_conditions(known, dict.fromkeys(names), 0)
    return {condition.name: condition for condition in known if condition.name in names}


def as_numbers(condition: Condition, value: ConditionValue) -> NDArray[Any]:
    """What a caller gave for a condition as an array of numbers, of any shape.

    Raises:
        InvalidCondition: see `metaspec_contract.conditions.Condition.numbers`.
    """
    with _as_ours():
        return condition.numbers(value)


def spread_shape(condition: Condition, shape: tuple[int, ...], lead: tuple[int, ...]) -> tuple[int, ...]:
    """Shape (..., size) in which an array of values broadcasts to (*lead, size), those of densities (*lead, y, x).

    Args:
        condition: the condition.
        shape: shape of the array: for a number, one that broadcasts to lead, or (*lead, 1); for a vector, to (*lead, size).
        lead: leading axes of the densities.

    Raises:
        InvalidCondition: another shape.
    """
    wanted = (*lead, condition.size)
    full = shape if condition.size > 1 or shape == wanted else (*shape, 1)
    fits = len(full) <= len(wanted) and all(
        ours in (1, theirs) for ours, theirs in zip(full[::-1], wanted[::-1], strict=False)
    )
    if not fits or full[-1] != condition.size:
        expected = (
            f"must be a number, or broadcast to {lead}," if condition.size == 1 else f"must broadcast to {wanted}"
        )
        densities = ", ".join(map(str, (*lead, "y", "x")))
        raise InvalidCondition(condition.name, f"{expected} for densities ({densities}), got an array {shape}")
    return full


@contextmanager
def _as_ours() -> Iterator[None]:
    """Raise errors of the contract as those of this package."""
    try:
        yield
    except contract.InvalidCondition as error:
        raise InvalidCondition(error.name, str(error).removeprefix(f"{error.name} ")) from None
