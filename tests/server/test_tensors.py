"""Structures as they wait in the queue: bits where all pixels are 0 or 1, densities otherwise, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metaspec_contract.model import STRUCTURE, TensorSpec
from metaspec_contract.structures import InvalidStructure, pack
from metaspec_server.core.tensors import compact

SPEC = TensorSpec(STRUCTURE, np.dtype(np.float32), (1, 128, 128))


def binary(dtype: Any) -> Any:
    return np.random.default_rng(0).integers(0, 2, (3, 1, 128, 128)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axes", [3, 4])
def test_binary_structures_become_bits(dtype: Any, axes: int) -> None:
    structures = binary(dtype)
    given = structures if axes == 4 else structures[:, 0]
    np.testing.assert_array_equal(compact(given, SPEC), pack(structures[:, 0]).reshape(3, -1))


def test_rounding_is_clipped_before_pixels_are_compared_with_0_and_1() -> None:
    structures = binary(np.float64)
    np.testing.assert_array_equal(compact(structures * (1 + 5e-7), SPEC), compact(structures, SPEC))


def test_a_density_stays_one_in_the_dtype_of_the_model() -> None:
    structures = binary(np.float64)
    structures[1, 0, 5, 7] = 0.25
    compacted = compact(structures, SPEC)
    assert compacted.dtype == np.float32
    np.testing.assert_array_equal(compacted, structures.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 2.0, 255.0])
def test_other_values_are_refused(value: float) -> None:
    structures = binary(np.float32)
    structures[2, 0, 127, 127] = value
    with pytest.raises(InvalidStructure, match="structure 2, row 127, column 127"):
        compact(structures, SPEC)


@pytest.mark.parametrize("shape", [(3, 1, 64, 64), (3, 2, 128, 128), (3, 16384)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidStructure, match="must be"):
        compact(np.zeros(shape, np.float32), SPEC)
