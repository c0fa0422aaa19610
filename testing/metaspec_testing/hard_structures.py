"""Structures that are hard for the solver: dense, regular, with narrow lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metaspec_contract.structures import Structure, unpack
from metaspec_simulation.dataset import read_dataset

ROOT = Path(__file__).parents[2]
WORST = 551
"""Sample of datasets/bayer-600nm with the largest energy error of those recorded for 25 um / c after the pulse."""


def hard_structures() -> dict[str, Structure]:
    """The structures by name, uint8 (128, 128)."""
    y, x = np.mgrid[:128, :128]
    found = {f"chequerboard, {p} pixels": ((y // p + x // p) % 2).astype(np.uint8) for p in (4, 16, 64)}
    found |= {"film": np.ones((128, 128), np.uint8), "lines of 62 nm": (x // 4 % 2).astype(np.uint8)}
    worst = read_dataset(ROOT / "datasets" / "bayer-600nm")["structure"][WORST : WORST + 1]
    return found | {f"bayer-600nm, sample {WORST}": unpack(np.asarray(worst))[0]}
