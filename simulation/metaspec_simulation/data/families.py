"""Random binary structures of several families; identity of structures up to symmetry, and their split.

Structures are as in `metaspec_contract.structures`. No family has features much below 80 nm, solid or void: that is the
limit of electron-beam lithography.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaspec_contract.structures import PIXELS, Structure

SHAPES = ("random_field", "rectangles", "pillars")
FAMILIES = tuple(shape + symmetry for shape in SHAPES for symmetry in ("", "_diagonal"))
"""Names of the families; those that end in `_diagonal` equal their own transpose."""

SOURCES = (*FAMILIES, "design", "imported")
"""Origins of a data set's structures: a random family, an optimiser, or imported files."""

MINIMUM_FEATURE = 5
"""Smallest width of a feature in pixels; 5 pixels of the default period are 78 nm."""

SPLITS = ("train", "validation", "test")
_SPLIT_UP_TO = (0.8, 0.9, 1.0)


def random_structure(rng: np.random.Generator, family: str) -> Structure:
    """Draw one structure (128, 128) of a family.

    Raises:
        ValueError: `family` is not one of `FAMILIES`.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    shape, diagonal = family.removesuffix("_diagonal"), family.endswith("_diagonal")
    draw = {"random_field": _random_field, "rectangles": _rectangles, "pillars": _pillars}[shape]
    # Opening and closing treat rows and columns alike, so a symmetric structure stays symmetric.
    return without_small_features(draw(rng, diagonal))


def _random_field(rng: np.random.Generator, diagonal: bool) -> Structure:
    """A Gaussian random field of one correlation length, thresholded to a random fill factor."""
    correlation = np.exp(rng.uniform(np.log(5), np.log(26)))  # pixels: 80 to 400 nm
    k = 2 * np.pi * np.fft.fftfreq(PIXELS)
    low_pass = np.exp(-(k[:, None] ** 2 + k**2) * correlation**2 / 4)
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((PIXELS, PIXELS))) * low_pass).real
    if diagonal:
        field = field + field.T
    return (field > np.quantile(field, 1 - rng.uniform(0.25, 0.75))).astype(np.uint8)


def _rectangles(rng: np.random.Generator, diagonal: bool) -> Structure:
    """A union of axis-parallel rectangles, with some cut out again."""
    structure = np.zeros((PIXELS, PIXELS), np.uint8)
    for _ in range(rng.integers(3, 12)):
        height, width = rng.integers(MINIMUM_FEATURE + 1, 56, size=2)
        value = np.uint8(rng.random() < 0.75)
        row, column = rng.integers(0, PIXELS, size=2)
        box = np.zeros_like(structure)
        box[:height, :width] = 1
        box = np.roll(box, (row, column), axis=(0, 1))
        if diagonal:
            box |= box.T
        structure[box == 1] = value
    return structure


def _pillars(rng: np.random.Generator, diagonal: bool) -> Structure:
    """Round or square pillars or, half of the time, holes."""
    structure = np.zeros((PIXELS, PIXELS), np.uint8)
    axis = np.arange(PIXELS)
    power = rng.choice([2, 8])  # the superellipse of exponent 8 is a square with rounded corners
    for _ in range(rng.integers(2, 17)):
        radius = rng.uniform(MINIMUM_FEATURE / 2 + 1, 18)
        centre = rng.uniform(0, PIXELS, size=2)
        y, x = ((axis - c + PIXELS / 2) % PIXELS - PIXELS / 2 for c in centre)
        structure |= (np.abs(y[:, None]) ** power + np.abs(x) ** power < radius**power).astype(np.uint8)
    if diagonal:
        structure |= structure.T
    return structure if rng.random() < 0.5 else 1 - structure


def without_small_features(structure: Structure) -> Structure:
    """Open and close with a disc of the minimum feature, periodically: removes small islands, holes and necks."""
    axis = np.arange(MINIMUM_FEATURE) - (MINIMUM_FEATURE - 1) / 2
    disc = axis[:, None] ** 2 + axis**2 <= (MINIMUM_FEATURE / 2) ** 2
    opened = ndimage.grey_opening(structure, footprint=disc, mode="wrap")
    return np.asarray(ndimage.grey_closing(opened, footprint=disc, mode="wrap"), np.uint8)


def orbit_key(structure: Structure) -> str:
    """A hash shared by all translations, rotations and mirror images of a structure.

    It is taken from the periodic autocorrelation, which is invariant under translation, and from the smallest of its images
    under rotations and mirrors. Copies of one structure therefore never end up in different splits.
    """
    transform = np.fft.rfft2(structure.astype(np.float64))
    counts = np.rint(np.fft.irfft2(np.abs(transform) ** 2, s=structure.shape)).astype(np.int32)
    # The autocorrelation is even, so the other four elements of D4 give the same four arrays.
    mirrored = np.roll(counts[:, ::-1], 1, axis=1)
    images = (counts, counts.T, mirrored, mirrored.T)
    return hashlib.sha256(min(np.ascontiguousarray(image).tobytes() for image in images)).hexdigest()


def distinct(structures: Structure, known: Iterable[Structure] = ()) -> NDArray[np.intp]:
    """Rows of `structures` that are no translation, rotation or mirror image of an earlier row or a known structure."""
    seen = {orbit_key(structure) for structure in known}
    rows = []
    for row, structure in enumerate(structures):
        key = orbit_key(structure)
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return np.array(rows, np.intp)


def split_of(structure: Structure) -> str:
    """The split of a structure and all its symmetric copies: 80 % train, 10 % validation, 10 % test."""
    position = int(orbit_key(structure)[:8], 16) / 2**32
    return next(name for name, upper in zip(SPLITS, _SPLIT_UP_TO, strict=True) if position < upper)
