"""Random structures of several families; identity of structures up to symmetry, and their split.

Structures are as in `metaspec_contract.structures`: binary, uint8, or densities, float32 in multiples of 1/255.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaspec_contract.structures import PIXELS, Structure
from metaspec_simulation.data.grey import grey_density
from metaspec_simulation.data.levels import LEVELS
from metaspec_simulation.data.regular import REGULAR, THINNEST

SHAPES = ("random_field", "rectangles", "pillars")
FAMILIES = tuple(shape + symmetry for shape in SHAPES for symmetry in ("", "_diagonal"))
"""Families without features much below 80 nm, solid or void, the limit of electron-beam lithography; those that end in
`_diagonal` equal their own transpose."""

FINE = tuple(shape + "_fine" for shape in SHAPES)
"""The same shapes with features down to 47 nm, and any share of solid."""

GREY = "grey"
"""Family of densities between 0 and 1."""

SOURCES = (*FAMILIES, "design", "imported", *FINE, *REGULAR, GREY)
"""Origins of a data set's structures: a random family, an optimiser, or imported files."""

MIXTURE = (
    "random_field", "gratings", "rectangles", "grey", "random_field_fine",
    "pillars", "letters", "random_field_diagonal", "films", "rectangles_fine",
    "random_field", "grey", "rectangles_diagonal", "rings", "random_field_fine",
    "pillars_diagonal", "crosses", "grey", "chequerboards", "pillars_fine",
)  # fmt: skip
"""Families of the samples of a data set, in turn: 35 % of `FAMILIES`, 20 % fine, 30 % regular, 15 % grey."""

MINIMUM_FEATURE = 5
"""Smallest width of a feature of `FAMILIES` in pixels; 5 pixels of the default period are 78 nm."""

SPLITS = ("train", "validation", "test")
_SPLIT_UP_TO = (0.8, 0.9, 1.0)


def random_structure(rng: np.random.Generator, family: str, pixels: int = PIXELS) -> NDArray[Any]:
    """Draw one structure of a family: binary, uint8, or of the family `grey` a density, float32.

    Args:
        rng: random number generator.
        family: a random one of `SOURCES`.
        pixels: pixels along each side. All are drawn with 128: for 64, every other one is taken, for 256, each one twice.

    Returns:
        (pixels, pixels).

    Raises:
        ValueError: `family` is not a random one of `SOURCES`.
    """
    return resampled(_draw(rng, family), pixels)


def resampled(structure: NDArray[Any], pixels: int) -> NDArray[Any]:
    """A structure (128, 128) on other pixels, (pixels, pixels): for 64, every other one is taken, for 256, each one twice."""
    if pixels < PIXELS:
        step = PIXELS // pixels
        return structure[::step, ::step]
    return structure.repeat(pixels // PIXELS, axis=0).repeat(pixels // PIXELS, axis=1)


def _draw(rng: np.random.Generator, family: str) -> NDArray[Any]:
    """A structure of a family, (128, 128)."""
    if family in FAMILIES:
        # Opening and closing treat rows and columns alike, so a symmetric structure stays symmetric.
        shape, diagonal = family.removesuffix("_diagonal"), family.endswith("_diagonal")
        return without_small_features(_DRAW[shape](rng, diagonal))
    if family in FINE:
        return _fine(rng, family.removesuffix("_fine"))
    if family in REGULAR:
        return REGULAR[family](rng)
    if family == GREY:
        return grey_density(rng, _binary(rng))
    known = ", ".join((*FAMILIES, *FINE, *REGULAR, GREY))
    raise ValueError(f"family must be one of {known}, got {family!r}")


def _binary(rng: np.random.Generator) -> Structure:
    """A binary structure to make a grey one of."""
    family = (*FAMILIES, *FINE, "rings", "crosses", "letters")[rng.integers(len(FAMILIES) + len(FINE) + 3)]
    return _draw(rng, family)


def _fine(rng: np.random.Generator, shape: str) -> Structure:
    """A structure with features down to `THINNEST`, never all solid or all void."""
    while True:
        structure = without_small_features(_DRAW_FINE[shape](rng), THINNEST)
        if structure.any() and not structure.all():
            return structure


def _random_field(
    rng: np.random.Generator, diagonal: bool, finest: float = 5, fill: tuple[float, float] = (0.25, 0.75)
) -> Structure:
    """A Gaussian random field of one correlation length, thresholded to a random fill factor."""
    correlation = np.exp(rng.uniform(np.log(finest), np.log(26)))  # pixels; 26 are 400 nm
    k = 2 * np.pi * np.fft.fftfreq(PIXELS)
    low_pass = np.exp(-(k[:, None] ** 2 + k**2) * correlation**2 / 4)
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((PIXELS, PIXELS))) * low_pass).real
    if diagonal:
        field = field + field.T
    return (field > np.quantile(field, 1 - rng.uniform(*fill))).astype(np.uint8)


def _rectangles(
    rng: np.random.Generator, diagonal: bool, sides: tuple[int, int] = (MINIMUM_FEATURE + 1, 56), most: int = 11
) -> Structure:
    """A union of axis-parallel rectangles, with some cut out again."""
    structure = np.zeros((PIXELS, PIXELS), np.uint8)
    for _ in range(rng.integers(3, most + 1)):
        height, width = rng.integers(*sides, size=2)
        value = np.uint8(rng.random() < 0.75)
        row, column = rng.integers(0, PIXELS, size=2)
        box = np.zeros_like(structure)
        box[:height, :width] = 1
        box = np.roll(box, (row, column), axis=(0, 1))
        if diagonal:
            box |= box.T
        structure[box == 1] = value
    return structure


def _pillars(
    rng: np.random.Generator,
    diagonal: bool,
    radii: tuple[float, float] = (MINIMUM_FEATURE / 2 + 1, 18),
    most: int = 16,
) -> Structure:
    """Round or square pillars or, half of the time, holes."""
    structure = np.zeros((PIXELS, PIXELS), np.uint8)
    axis = np.arange(PIXELS)
    power = rng.choice([2, 8])  # the superellipse of exponent 8 is a square with rounded corners
    for _ in range(rng.integers(2, most + 1)):
        radius = rng.uniform(*radii)
        centre = rng.uniform(0, PIXELS, size=2)
        y, x = ((axis - c + PIXELS / 2) % PIXELS - PIXELS / 2 for c in centre)
        structure |= (np.abs(y[:, None]) ** power + np.abs(x) ** power < radius**power).astype(np.uint8)
    if diagonal:
        structure |= structure.T
    return structure if rng.random() < 0.5 else 1 - structure


_DRAW: dict[str, Callable[[np.random.Generator, bool], Structure]] = {
    "random_field": _random_field,
    "rectangles": _rectangles,
    "pillars": _pillars,
}


def _fine_rectangles(rng: np.random.Generator) -> Structure:
    structure = _rectangles(rng, False, sides=(THINNEST, int(rng.integers(12, 60))), most=int(rng.integers(4, 40)))
    return structure if rng.random() < 0.5 else 1 - structure


_DRAW_FINE: dict[str, Callable[[np.random.Generator], Structure]] = {
    "random_field": lambda rng: _random_field(rng, False, finest=3, fill=(0.0, 1.0)),
    "rectangles": _fine_rectangles,
    "pillars": lambda rng: _pillars(
        rng, False, radii=(THINNEST / 2, rng.uniform(4, 30)), most=int(rng.integers(3, 48))
    ),
}


def without_small_features(structure: Structure, minimum: int = MINIMUM_FEATURE) -> Structure:
    """Open and close with a disc of the minimum feature, periodically: removes small islands, holes and necks.

    Args:
        structure: binary structure, (128, 128).
        minimum: diameter of the disc in pixels, odd.
    """
    axis = np.arange(minimum) - (minimum - 1) / 2
    disc = axis[:, None] ** 2 + axis**2 < (minimum**2 - 1) / 4  # 3 pixels: a pixel and its four neighbours
    opened = ndimage.grey_opening(structure, footprint=disc, mode="wrap")
    return np.asarray(ndimage.grey_closing(opened, footprint=disc, mode="wrap"), np.uint8)


def orbit_key(structure: NDArray[Any]) -> str:
    """A hash shared by all translations, rotations and mirror images of a structure or a density.

    It is taken from the periodic autocorrelation, which is invariant under translation, and from the smallest of its images
    under rotations and mirrors. Copies of one structure therefore never end up in different splits.
    """
    values = structure.astype(np.float64)
    if structure.dtype.kind == "f" and not np.isin(structure, (0, 1)).all():
        values = np.rint(LEVELS * values)
    transform = np.fft.rfft2(values)
    counts = np.rint(np.fft.irfft2(np.abs(transform) ** 2, s=structure.shape)).astype(np.int32)
    # The autocorrelation is even, so the other four elements of D4 give the same four arrays.
    mirrored = np.roll(counts[:, ::-1], 1, axis=1)
    images = (counts, counts.T, mirrored, mirrored.T)
    return hashlib.sha256(min(np.ascontiguousarray(image).tobytes() for image in images)).hexdigest()


def distinct(structures: Iterable[NDArray[Any]], known: Iterable[NDArray[Any]] = ()) -> NDArray[np.intp]:
    """Rows of `structures` that are no translation, rotation or mirror image of an earlier row or a known structure."""
    seen = {orbit_key(structure) for structure in known}
    rows = []
    for row, structure in enumerate(structures):
        key = orbit_key(structure)
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return np.array(rows, np.intp)


def split_of(structure: NDArray[Any]) -> str:
    """The split of a structure and all its symmetric copies: 80 % train, 10 % validation, 10 % test."""
    position = int(orbit_key(structure)[:8], 16) / 2**32
    return next(name for name, upper in zip(SPLITS, _SPLIT_UP_TO, strict=True) if position < upper)
