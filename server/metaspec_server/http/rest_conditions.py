"""Conditions in the query of `/predict` and `/gradient`: values for all structures, and names of arrays in a `.npy` body."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.conditions import Condition, InvalidCondition, check_conditions
from metaspec_server.http.query import NUMBER, unknown_name
from metaspec_server.http.rest_codec import InvalidBody

__all__ = ["read_query"]

_SHOWN = 65  # characters of a name or a value that are looked at: one more than the name of a condition may have


def read_query(
    conditions: Sequence[Condition], values: Mapping[str, str], arrays: Sequence[str], known: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], list[Condition]]:
    """What a query says of conditions: the values that it gives, and the conditions whose arrays the body holds.

    Args:
        conditions: conditions of the model.
        values: text of the values for all structures, by name; those of a vector with commas between them.
        arrays: names of the arrays in the body.
        known: other names that the route knows.

    Returns:
        Values by name, () or (size,), each in its range; and the conditions of the arrays, in their order.

    Raises:
        Problem: a name is none of the model's, or one is named twice.
        InvalidCondition: a value is none of its condition, or an array is named of a condition that the model does not take.
    """
    try:
        _check_names(conditions, values)
    except InvalidCondition as error:
        raise unknown_name(422, error.name, known, f"; {error}") from None
    _check_names(conditions, arrays)
    for name in arrays:
        if arrays.count(name) > 1:
            raise InvalidBody("conditions", f"{name} is named twice, expected once")
        if name in values:
            raise InvalidBody(name, "given in the query and as an array in the body: give it once")
    taken = {condition.name: condition for condition in conditions}
    given = {name: _numbers(taken[name], text) for name, text in values.items()}
    check_conditions(conditions, given, 1)
    return given, [taken[name] for name in arrays]


def _check_names(conditions: Sequence[Condition], names: Iterable[str]) -> None:
    check_conditions(conditions, {name[:_SHOWN]: None for name in names}, 1)


def _numbers(condition: Condition, text: str) -> NDArray[np.float64]:
    """The numbers in a text: () for one, (count,) for several."""
    numbers = text.split(",")
    if not all(re.fullmatch(NUMBER, number) for number in numbers):
        raise InvalidCondition(condition.name, f"must be numbers between {condition.range}, got {text[:_SHOWN]!r}")
    array = np.array([float(number) for number in numbers])
    return array if len(array) > 1 else array.reshape(())
