"""Checks of imported rows: each row gets a verdict, and nothing is corrected but the sign of a whole row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.structures import pack

TOLERANCE = 0.05
"""Largest excursion of efficiencies from [0, 1], and of their sum over the detectors above 1: numerical errors of a solver."""

CONTRADICTION = 0.01
"""Rms difference, over detectors and wavelengths, above which spectra of one structure contradict each other.

Grids of 48 and 80 cells per period differ by .007 (`docs/training.md`), spectra of different structures by some .05."""


class Verdict(IntEnum):
    """What was found out about a row: the first that applies, in this order."""

    USABLE = 0
    EMPTY = 1
    DETECTOR_MISSING = 2
    WAVELENGTHS_MISSING = 3
    NOT_FINITE = 4
    NOT_BINARY = 5
    PERCENT = 6
    FRACTIONS = 7
    MIXED_SIGN = 8
    OUT_OF_RANGE = 9
    TOO_MUCH_ENERGY = 10
    CONTRADICTION = 11
    REPEAT = 12


MEANING = {
    Verdict.EMPTY: "unfinished, all zero",
    Verdict.DETECTOR_MISSING: "unfinished, a detector without values",
    Verdict.WAVELENGTHS_MISSING: "unfinished, wavelengths without values",
    Verdict.NOT_FINITE: "values that are not finite",
    Verdict.NOT_BINARY: "structure not binary",
    Verdict.PERCENT: "percent, not fractions",
    Verdict.FRACTIONS: "fractions, not percent",
    Verdict.MIXED_SIGN: "both signs in one row",
    Verdict.OUT_OF_RANGE: f"efficiency above {1 + TOLERANCE}",
    Verdict.TOO_MUCH_ENERGY: f"efficiencies of the four detectors add up to more than {1 + TOLERANCE}",
    Verdict.CONTRADICTION: "equal structures, other spectra",
    Verdict.REPEAT: "repeats an earlier structure",
}
"""Words for each verdict but `USABLE`."""

UNFINISHED = (Verdict.EMPTY, Verdict.DETECTOR_MISSING, Verdict.WAVELENGTHS_MISSING)
"""Verdicts on what an interrupted campaign leaves behind."""

WRONG = tuple(verdict for verdict in MEANING if verdict not in (*UNFINISHED, Verdict.REPEAT))
"""Verdicts that cast doubt on the other rows, too."""


@dataclass(frozen=True)
class Checked:
    """Rows that were checked.

    Attributes:
        verdict: `Verdict` of each row, uint8 (n,).
        flipped: whether the row's sign is to be changed, (n,).
        digest: hash of the structure, uint64 (n, 2).
    """

    verdict: NDArray[np.uint8]
    flipped: NDArray[np.bool_]
    digest: NDArray[np.uint64]

    def __getitem__(self, rows: slice) -> Checked:
        """Some consecutive rows."""
        return Checked(self.verdict[rows], self.flipped[rows], self.digest[rows])

    def has(self, *verdicts: Verdict) -> NDArray[np.bool_]:
        """Which rows have one of some verdicts, (n,)."""
        return np.isin(self.verdict, verdicts)

    @classmethod
    def join(cls, parts: Sequence[Checked]) -> Checked:
        """All rows of several parts, in order."""
        return cls(
            np.concatenate([np.zeros(0, np.uint8), *(part.verdict for part in parts)]),
            np.concatenate([np.zeros(0, bool), *(part.flipped for part in parts)]),
            np.concatenate([np.zeros((0, 2), np.uint64), *(part.digest for part in parts)]),
        )


def check_rows(structures: NDArray[np.generic], spectra: NDArray[np.float32], percent: bool = False) -> Checked:
    """Check each row alone.

    Args:
        structures: structures, (n, y, x).
        spectra: spectra as fractions, (n, 3 or 4, W).
        percent: whether the fractions were percent in the file: what was none is found.
    """
    empty = (spectra == 0) | np.isnan(spectra)  # both are what a campaign fills its arrays with
    with np.errstate(invalid="ignore"):
        sign = np.where(spectra.sum(axis=(1, 2), dtype=np.float64) < 0, -1, 1).astype(np.float32)
        upright = spectra * sign[:, None, None]
        high, low = upright.max(axis=(1, 2)), upright.min(axis=(1, 2))
        weights = np.array([1, 2, 1] if spectra.shape[1] == 3 else [1, 1, 1, 1], np.float32)
        energy = np.einsum("ncw,c->nw", upright, weights).max(axis=1)
    verdict = np.select(
        [
            empty.all(axis=(1, 2)),
            empty.all(axis=2).any(axis=1),
            empty.all(axis=1).any(axis=1),
            ~np.isfinite(spectra).all(axis=(1, 2)),
            ~_are_binary(structures),
            _look_like_percent(upright, high),
            percent & (np.maximum(high, -low) <= (1 + TOLERANCE) / 100),
            low < -TOLERANCE,
            high > 1 + TOLERANCE,
            energy > 1 + TOLERANCE,
        ],
        list(MEANING)[:10],
        Verdict.USABLE,
    ).astype(np.uint8)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pack(structures)]
    digest = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    return Checked(verdict, sign < 0, digest)


def _are_binary(structures: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which structures have two levels, 0 and either 1 or 255, or one of them, (n,)."""
    high = structures.max(axis=(1, 2))
    two_levels = ((structures == 0) | (structures == high[:, None, None])).all(axis=(1, 2))
    return np.asarray(two_levels) & np.isin(high, (0, 1, 255))


def _look_like_percent(spectra: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows have most values, not a few outliers, above those of fractions and none above those of percent, (n,)."""
    candidate = (high > 1 + TOLERANCE) & (high <= 100 * (1 + TOLERANCE))
    for row in np.flatnonzero(candidate):  # few, unless all are percent
        candidate[row] = np.median(np.abs(spectra[row])) > 1 + TOLERANCE
    return candidate


def equal_structures(checked: Checked) -> list[NDArray[np.intp]]:
    """Groups of usable rows with equal structures, each in ascending order."""
    rows = np.flatnonzero(checked.has(Verdict.USABLE))
    first, second = checked.digest[rows].T
    order = np.lexsort((rows, second, first))
    changes = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    groups = np.split(rows[order], np.flatnonzero(changes) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def check_repeats(
    checked: Checked, groups: Iterable[NDArray[np.intp]], read: Callable[[int], NDArray[np.float32]]
) -> list[NDArray[np.intp]]:
    """Give rows with equal structures their verdicts: of those that agree the first stays, of others none.

    Args:
        checked: checked rows; their verdicts are changed.
        groups: groups of `equal_structures`.
        read: spectra of a row, signs as in the file, (channels, W).

    Returns:
        The groups whose spectra contradict each other.
    """
    contradictions = []
    sign = np.where(checked.flipped, np.float32(-1), np.float32(1))
    for group in groups:
        first, *others = (int(row) for row in group)
        expected = sign[first] * read(first)
        if all(np.sqrt(np.mean((sign[row] * read(row) - expected) ** 2)) <= CONTRADICTION for row in others):
            checked.verdict[others] = Verdict.REPEAT
        else:
            checked.verdict[group] = Verdict.CONTRADICTION
            contradictions.append(group)
    return contradictions
