from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.detectors import CHANNELS, QUADRANTS
from metaspec_contract.structures import (
    PIXELS,
    ROUNDING,
    InvalidStructure,
    Symmetry,
    as_density,
    check_binary,
    check_structures,
    pack,
    pack_binary,
    packed_bytes,
    symmetries,
    unpack,
)

ONE = (PIXELS, PIXELS)
GROUP = list(symmetries())


def with_value(value: float, dtype: str = "f8", count: int = 300) -> NDArray[Any]:
    """Void structures with one other pixel, past the first block that is checked at a time."""
    array = np.zeros((count, *ONE), dtype)
    array[count - 1, 5, 7] = value
    return array


@pytest.mark.parametrize("shape", [ONE, (3, *ONE), (3, 1, *ONE), (0, *ONE), (0, 1, *ONE)])
@pytest.mark.parametrize("dtype", ["bool", "u1", "i8", "f2", "f4", "f8"])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: str) -> None:
    array = np.ones(shape, dtype)
    checked = check_structures(array)
    assert checked.shape == (1 if shape == ONE else shape[0], 1, *ONE)
    assert checked.dtype == array.dtype
    assert array.size == 0 or np.shares_memory(checked, array)
    binary = check_binary(array)
    assert binary.shape == checked.shape[:1] + ONE
    assert binary.dtype == np.uint8
    assert (binary == 1).all()
    density = as_density(checked)
    assert density.shape == checked.shape
    assert density.dtype == np.float32
    assert density.flags.c_contiguous


def test_lists_and_views() -> None:
    rows = np.eye(PIXELS, dtype=int)
    np.testing.assert_array_equal(check_binary(rows.tolist())[0], rows)
    backwards = np.tile(rows, (2, 1, 1))[:, ::-1, ::-1].swapaxes(1, 2)
    assert np.shares_memory(check_structures(backwards), backwards)
    np.testing.assert_array_equal(check_binary(backwards), backwards)


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "structures.npy"
    np.save(path, np.ones((300, *ONE), np.uint8))
    mapped = np.load(path, mmap_mode="r")
    assert np.shares_memory(check_structures(mapped), mapped)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (1.5, "1.5"),
        (-0.25, "-0.25"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (1 + 2e-6, "1.000002"),
        (-2e-6, "-2e-06"),
    ],
)
def test_values_that_are_refused(value: float, got: str) -> None:
    place = "at structure 299, row 5, column 7"
    hint = r"; numpy\.clip\(array, 0, 1\) cuts off .*" if np.isfinite(value) else ""
    with pytest.raises(InvalidStructure, match=rf"^masks must lie between 0 .* and 1 .*, got {got} {place}{hint}$"):
        check_structures(with_value(value), name="masks")


def test_images_of_eight_bits() -> None:
    with pytest.raises(InvalidStructure, match=r"got 255 at structure 299.*; divide 8-bit images by 255$"):
        check_structures(with_value(255, "u1"))


@pytest.mark.parametrize("value", [1 + 0.9 * ROUNDING, -0.9 * ROUNDING])
def test_rounding_is_clipped(value: float) -> None:
    array = with_value(value)
    density = as_density(check_structures(array))
    assert density.min() >= 0
    assert density.max() <= 1
    np.testing.assert_array_equal(check_binary(array), array > 0.5)
    assert array[299, 5, 7] == value  # the caller's array is as it was


@pytest.mark.parametrize(("value", "got"), [(0.25, "0.25"), (1e-7, "1e-07"), (1 - 1e-7, "0.9999999")])
def test_densities_are_not_binary(value: float, got: str) -> None:
    place = "at structure 299, row 5, column 7; threshold densities first"
    with pytest.raises(InvalidStructure, match=rf"^structures must be binary, .*, got {got} {place}$"):
        check_binary(with_value(value))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((128, 127)), r"must be \(128, 128\), \(N, 128, 128\) or \(N, 1, 128, 128\), got \(128, 127\)"),
        (np.zeros((3, 2, *ONE)), r"got \(3, 2, 128, 128\)"),
        (np.zeros((1, 1, 1, *ONE)), r"got \(1, 1, 1, 128, 128\)"),
        (np.zeros(PIXELS), r"got \(128,\)"),
        (0.5, r"got \(\)"),
        ([], r"got \(0,\)"),
        ([[1], [1, 2]], "must be an array"),
        (None, "must be numbers .*, got object"),
        (np.zeros(ONE, complex), "got complex128"),
        (np.zeros(ONE, [("solid", "f4")]), r"got \[\('solid', '<f4'\)\]"),
        (np.full(ONE, "1"), "got <U1"),
        (np.zeros(ONE, "datetime64[s]"), "got datetime64"),
    ],
)
def test_arrays_that_are_refused(array: ArrayLike, message: str) -> None:
    for check in (check_structures, check_binary):
        with pytest.raises(InvalidStructure, match=f"^structures .*{message}"):
            check(array)


def test_other_sizes() -> None:
    assert check_binary(np.ones((2, 4, 6)), (4, 6)).shape == (2, 4, 6)
    with pytest.raises(InvalidStructure, match=r"must be \(4, 6\), .* got \(2, 6, 4\)"):
        check_structures(np.ones((2, 6, 4)), (4, 6))


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
leads = st.one_of(st.just(()), array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=3))


@settings(deadline=None)
@given(data=st.data(), size=sizes, lead=leads, dtype=st.sampled_from(["bool", "u1", "i4", "f4"]))
def test_packing_round_trip(data: st.DataObject, size: tuple[int, int], lead: tuple[int, ...], dtype: str) -> None:
    structures = data.draw(arrays(np.uint8, lead + size, elements=st.integers(0, 1)))
    packed = pack(structures.astype(dtype))
    assert packed.shape == (*lead, packed_bytes(size))
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack(packed, size), structures)
    if len(lead) == 1:
        np.testing.assert_array_equal(pack_binary(structures.astype(dtype)), packed)


def test_the_first_pixel_is_the_highest_bit() -> None:
    structure = np.zeros(ONE, np.uint8)
    structure[0, 0] = structure[0, 9] = 1
    assert pack(structure)[:2].tolist() == [128, 64]
    assert packed_bytes() == pack(structure).size == 2048


@pytest.mark.parametrize("value", [0.5, 2, -1, np.nan])
def test_rows_that_are_not_binary_are_not_packed(value: float) -> None:
    rows = np.zeros((2, 3, 4), np.float32)
    rows[1, 2, 3] = value
    assert pack_binary(rows) is None


@pytest.mark.parametrize("shape", [(2047,), (3, 2049), ()])
def test_unpacking_another_number_of_bytes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidStructure, match=r"packed structures must be \(\.\.\., 2048\), got \("):
        unpack(np.zeros(shape, np.uint8))


def test_the_symmetries_are_a_group() -> None:
    marked = np.arange(64).reshape(8, 8)
    images = {symmetry.apply(marked).tobytes(): symmetry for symmetry in GROUP}
    assert len(images) == len(GROUP) == 32
    assert GROUP[0] == Symmetry()
    for first in GROUP:
        after_first = first.apply(marked)
        products = [second.apply(after_first).tobytes() for second in GROUP]
        assert set(products) == images.keys()  # closed, and each has an inverse
        for second, product in zip(GROUP, products, strict=True):
            assert images[product].channels == tuple(first.channels[channel] for channel in second.channels)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), symmetry=st.sampled_from(GROUP))
def test_symmetries_permute_spectra(seed: int, symmetry: Symmetry) -> None:
    """A toy model with the symmetry of the device: light spreads alike in all directions, quadrants collect it."""
    structure = np.random.default_rng(seed).integers(0, 2, (3, 8, 8))

    def spectra(structures: NDArray[Any]) -> NDArray[Any]:
        spread = sum(np.roll(structures, shift, axis) for shift in (-1, 1) for axis in (-2, -1))
        light = (spread**2 + 3 * structures * spread)[..., None]
        half = structures.shape[-1] // 2
        parts = [
            light[:, row * half :, column * half :][:, :half, :half].sum(axis=(1, 2))
            for row, column in (QUADRANTS[name] for name in CHANNELS)
        ]
        return np.stack(parts, axis=1)  # (N, 4, 1)

    np.testing.assert_array_equal(spectra(symmetry.apply(structure)), spectra(structure)[:, symmetry.channels, :])
