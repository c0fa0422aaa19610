"""What `gpu_training.py` trains and validates on: data sets, classes of their samples, and batches mixed of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaspec_simulation.data.families import FINE
from metaspec_simulation.data.regular import REGULAR
from metaspec_simulation.dataset import Samples, load, provenance
from metaspec_training.data.augmentation import Expansion
from metaspec_training.data.datamodule import join
from metaspec_training.data.packed import PackedSpectra

BOUND, COARSE_BOUND = 0.004, 0.008
"""Largest energy error of samples of schema 2 to train on, on the finest grid and on others."""

_BEGAN = time.monotonic()

Sets = dict[str, Samples]


def say(*words: object) -> None:
    print(f"[{time.monotonic() - _BEGAN:6.1f}]", *words, flush=True)


def cells(samples: Samples) -> int:
    """Cells per period of a set's grid.

    Raises:
        ValueError: its samples were imported.
    """
    if "cells" not in samples.attributes["solver"]:
        raise ValueError("--data must name simulated data sets: imported samples state no grid")
    return int(samples.attributes["solver"]["cells"])


def load_sets(paths: list[Path]) -> Sets:
    """Data sets by the names of their folders, without what is flagged or not to be trained on.

    Raises:
        ValueError: one cannot be read, two have the same name, or they do not fit together.
    """
    sets: Sets = {}
    for path in paths:
        if (name := path.resolve().name) in sets:
            raise ValueError(f"--data must name different data sets, got {name} twice")
        sets[name] = load(path, orders=True)
    if provenance(sets).merged_greens:
        raise ValueError("--data must hold G1 and G2 apart, got only their mean")
    first = next(iter(sets.values()))
    finest = max(map(cells, sets.values()))
    for name, samples in sets.items():
        if not np.array_equal(first.harmonic_wavelengths_nm, samples.harmonic_wavelengths_nm):
            raise ValueError(f"--data: {name} has harmonics at other wavelengths than the first data set")
        wanted = samples.flag == 0
        if "decay" not in samples.attributes["solver"]:
            bound = BOUND if cells(samples) == finest else COARSE_BOUND
            wanted &= (samples.split != "train") | (samples.energy_error <= bound)
        sets[name] = samples = samples.take(np.flatnonzero(wanted))
        counts = {split: int((samples.split == split).sum()) for split in ("train", "validation")}
        say(f"{name}: {counts}, {(samples.grey >= 0).sum()} grey, {(samples.ordered >= 0).sum()} with orders")
    if not any((samples.split == "train").any() for samples in sets.values()):
        raise ValueError(f"--data: no samples to train on in {', '.join(sets)}")
    return sets


@dataclass
class Class:
    """Samples of one kind of one data set.

    Attributes:
        name: data set and kind.
        rows: their numbers among all samples that are trained on.
        weight: weight of a sample beside others of the same half of a batch.
        ordered: whether their orders are known: the half.
    """

    name: str
    rows: NDArray[np.int64]
    weight: float
    ordered: bool


def classes(name: str, samples: Samples, finest: int) -> list[Class]:
    """The classes of a set's training samples, numbered from 0."""
    grey, design, regular = samples.grey >= 0, samples.family == "design", np.isin(samples.family, list(REGULAR))
    base = 2.0 if cells(samples) == finest else 1.5 if cells(samples) >= 64 else 1.0
    found = []
    for ordered in (True, False):
        weights = dict.fromkeys(("binary", "regular", "grey", "design"), base)
        if ordered:  # grey structures of optimisers are more alike than random ones
            weights = {"binary": 1.0, "regular": 0.8, "grey": 1.0 if design.mean() > 0.5 else 1.3, "design": 1.3}
        for kind, mask in (
            ("binary", ~(regular | grey | design)),
            ("regular", regular & ~grey),
            ("grey", grey),
            ("design", design & ~grey),
        ):
            if len(rows := np.flatnonzero(mask & ((samples.ordered >= 0) == ordered))):
                found.append(Class(f"{name}, {kind}", rows, weights[kind], ordered))
    return found


def shares(total: int, weights: list[float]) -> list[int]:
    """Whole numbers that add up to a total, in proportion to weights."""
    exact = total * np.array(weights) / sum(weights)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact)[: total - counts.sum()]] += 1
    return list(map(int, counts))


@dataclass
class Mixture:
    """Numbers of the rows of each batch: so many of each class, each class in its own random order."""

    rows: list[NDArray[np.int64]]
    counts: list[int]
    rng: np.random.Generator
    queues: list[NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.queues = [np.zeros(0, np.int64) for _ in self.rows]

    def batch(self) -> list[int]:
        taken: list[int] = []
        for k, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True)):
            while len(self.queues[k]) < count:
                self.queues[k] = np.concatenate([self.queues[k], self.rng.permutation(rows)])
            taken += self.queues[k][:count].tolist()
            self.queues[k] = self.queues[k][count:]
        return taken


def mixture(sets: Sets, batch: int, ordered_rows: int, seed: list[int]) -> tuple[Samples, NDArray[np.float32], Mixture]:
    """All training samples, the share of the coarse head in their labels, and how batches are made of them."""
    finest, first = max(map(cells, sets.values())), 0
    parts, low, found = [], [], list[Class]()
    for name, samples in sets.items():
        part = samples.of("train")
        for each in classes(name, part, finest):
            found.append(Class(each.name, each.rows + first, each.weight, each.ordered))
        # The error of the grid is of second order: (1/64^2 - 1/80^2) / (1/48^2 - 1/80^2) is about a third.
        share = 0.0 if cells(part) == finest else 1 / 3 if cells(part) >= 64 else 1.0
        low.append(np.full(len(part), share, np.float32))
        parts.append(part)
        first += len(part)
    halves = [[each for each in found if each.ordered], [each for each in found if not each.ordered]]
    ordered_rows = ordered_rows if all(halves) else batch if halves[0] else 0
    counts = []
    for half, total in zip(halves, (ordered_rows, batch - ordered_rows), strict=True):
        counts += shares(total, [len(each.rows) * each.weight for each in half]) if half else []
    for each, count in zip(halves[0] + halves[1], counts, strict=True):
        say(f"  {count:4d} of {batch}: {each.name}{', with orders' * each.ordered}, {len(each.rows)} samples")
    rows = [each.rows for each in halves[0] + halves[1]]
    return join(parts), np.concatenate(low), Mixture(rows, counts, np.random.default_rng(seed))


class Validation:
    """Samples of the validation split on the device, by group, and the errors of a network on them."""

    def __init__(self, sets: Sets, device: torch.device) -> None:
        self.groups: dict[str, tuple[Tensor, Tensor]] = {}
        for name, samples in sets.items():
            if not len(part := samples.of("validation")):
                continue
            named = np.isin(part.family, [*REGULAR, "design"])
            kinds = np.where(named, part.family, np.where(np.isin(part.family, FINE), "fine", "random"))
            kinds = np.where(part.grey >= 0, "grey", kinds)
            density = Expansion(part.process.wavelengths_nm, np.zeros(0))(PackedSpectra(part)[range(len(part))]).density
            for kind in np.unique(kinds):
                rows = torch.from_numpy(np.flatnonzero(kinds == kind))
                spectra = torch.from_numpy(part.spectra)[rows]
                self.groups[f"{name} {kind}"] = density[rows].to(device), spectra.to(device)

    @torch.no_grad()
    def errors(self, network: nn.Module) -> str:
        """Mean absolute error of each group."""
        found = []
        for name, (density, spectra) in self.groups.items():
            predicted = torch.cat([network(part).flatten(1, 2) for part in torch.split(density, 64)])
            found.append(f"{name} ({len(density)}) {(predicted - spectra).abs().mean().item():.5f}")
        return "; ".join(found) or "no samples"
