"""Numbers in JSON bodies: whole and small ones, which take a faster way, and all others."""

from __future__ import annotations

import numpy as np
import pytest

from metaspec_server.http.json_body import to_array

PART = 2**15  # numbers that are converted at a time


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        [[], []],
        [0, 1, True],
        [[0, 1], [1, 0]],
        [255, 256],
        [-1, 0],
        [1.0, True],
        [1, 2.5],
        [1] * PART + [0.5],
        [1] * PART + [300],
        [0.5] * PART + [1],
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_become_an_array(value: object) -> None:
    array = to_array(value)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, np.array(value, np.float64))
    assert array.shape == np.shape(np.array(value))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([1, "a"], "text"),
        ([None], "null"),
        ([1] * PART + [None], "null"),
        ([{}], "an object"),
        ([1, [2]], "lists of different depths"),
        ([[1], 2], "lists of different depths"),
        ([[1], [2, 3]], "ragged"),
        ([[[[[1]]]]], "deeper"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_values_are_refused(value: object, got: str) -> None:
    with pytest.raises(ValueError, match=got):
        to_array(value)
