"""Whether axes and detectors of imported samples are right: the solver's spectra of the same structures tell.

A transposed, rotated, mirrored or half-shifted structure has the same four spectra in another order
(`metaspec_contract.structures.Symmetry`). A wrong orientation therefore shows as a wrong order of the detectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS, COLOURS

FITTING = 0.025
"""Largest rms difference of spectra by two solvers; that of different structures is about .05.

Grids of 48 and 80 cells per period differ by .007 (`docs/training.md`)."""

_CLEARLY = 1.2  # times smaller difference of an order that is another one


def require_orientation(
    imported: NDArray[np.float32], simulated: NDArray[np.float32], order: Sequence[str], merged_greens: bool
) -> float:
    """Hold spectra against the solver's.

    Args:
        imported: spectra as imported, of R, G1, G2, B, (n, 4, W).
        simulated: the solver's spectra of the same structures, (n, 4, W).
        order: detectors in the order of the files' channels, as they were taken to be.
        merged_greens: whether G1 and G2 of the import both hold their mean.

    Returns:
        Rms difference.

    Raises:
        ValueError: another order of the detectors fits clearly better, or none fits.
    """
    if merged_greens:
        names: Sequence[str] = COLOURS
        ours = imported[:, [0, 1, 3]]
        theirs = np.stack([simulated[:, 0], simulated[:, 1:3].mean(axis=1), simulated[:, 3]], axis=1)
    else:
        names, ours, theirs = CHANNELS, imported, simulated
    differences = {
        taken: float(np.sqrt(np.mean((ours - theirs[:, list(taken)]) ** 2)))
        for taken in itertools.permutations(range(len(names)))
    }
    found, best = differences[tuple(range(len(names)))], min(differences, key=lambda taken: differences[taken])
    if differences[best] > FITTING:
        raise ValueError(
            f"in no order of the detectors are the samples' spectra near the solver's: rms difference {differences[best]:.3f} "
            "at best. Are process and axes right, is 0 void and 1 solid, do rows of structures and spectra belong together?"
        )
    if found > _CLEARLY * differences[best]:
        true = ",".join(names[best[names.index(name)]] for name in order)
        raise ValueError(
            f"the samples' spectra differ from the solver's by {found:.3f} (rms), in the order --order {true} by "
            f"{differences[best]:.3f} only: give that, or other --axes"
        )
    return found
