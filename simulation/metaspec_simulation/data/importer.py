"""Import of simulations made elsewhere: pairs of `.npy` files become a data set like those that MetaSpec makes.

A pair is `binary_dataset_128_<k>.npy`, structures (N, 1, 128, 128) in {0, 1} or {0, 255}, and `spectra_latest_<k>.npy`, float
(N, 3, W) in the order R, G, B with G the mean of G1 and G2, or (N, 2, 2, W). Files are memory-mapped and read in blocks: memory
use does not grow with their size. Nothing in them is ever unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Structure, pack
from metaspec_simulation.data import families
from metaspec_simulation.data.labels import STEP
from metaspec_simulation.data.levels import as_levels
from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.data.store import Group, consolidate, create_store, new_folder, whole_chunks

BLOCK = 1024
"""Samples that are read, and written as one chunk, at a time."""

_STRUCTURES = re.compile(r"binary_dataset_128_(\w+)\.npy")


@dataclass
class ImportReport:
    """The result of an import.

    Attributes:
        kept: number of rows in the data set.
        dropped: numbers of rows that were dropped, by reason.
        flipped: files whose spectra had their sign flipped.
        merged_greens: whether G1 and G2 both hold the mean of the two.
        above_one: number of rows kept although their efficiencies add up to more than 1.05.
    """

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    flipped: list[str] = field(default_factory=list)
    merged_greens: bool = False
    above_one: int = 0

    def __str__(self) -> str:
        total = self.kept + sum(self.dropped.values())
        lines = [f"{self.kept} of {total} rows imported."]
        lines += [f"  {count} dropped: {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"  sign of the spectra flipped in {name}" for name in self.flipped]
        if self.merged_greens:
            lines.append("  3 channels: G1 and G2 are both set to G, their mean")
        if self.above_one:
            lines.append(f"  {self.above_one} rows kept although their four efficiencies add up to more than 1.05")
        return "\n".join(lines)


@dataclass(frozen=True)
class Pair:
    """A file of structures and the file of their spectra.

    Attributes:
        structures: file of structures.
        spectra: file of spectra.
        rows: number of rows in each file.
        merged_greens: whether one channel holds the mean of G1 and G2.
    """

    structures: Path
    spectra: Path
    rows: int
    merged_greens: bool

    @property
    def name(self) -> str:
        """Name of the pair."""
        return self.structures.name

    def blocks(self) -> Iterator[tuple[NDArray[np.generic], NDArray[np.float32]]]:
        """Consecutive rows of structures (n, 128, 128) and spectra float32 (n, 3 or 4, W), `BLOCK` at a time."""
        for start in range(0, self.rows, BLOCK):
            # Mapped anew for each block: pages of the previous one no longer count as this process's memory.
            structures, spectra = (
                read_array(file, mmap_mode="r")[start : start + BLOCK] for file in (self.structures, self.spectra)
            )
            yield (
                np.array(structures).reshape(-1, PIXELS, PIXELS),
                np.array(spectra, np.float32).reshape(len(spectra), -1, spectra.shape[-1]),
            )

    def is_negative(self) -> bool:
        """Whether the power monitor faced the other way: the finite values add up to less than 0."""
        return sum(float(np.nansum(np.where(np.isfinite(s), s, 0), dtype=np.float64)) for _, s in self.blocks()) < 0


def find_pairs(folder: Path, process: Process) -> list[Pair]:
    """The pairs of files in a folder; their shapes are checked, their values are not read.

    Args:
        folder: folder of the files.
        process: process that was simulated; its wavelengths are those of the spectra.

    Raises:
        ValueError: there is no pair, a file lacks its partner, or has a wrong shape or dtype.
    """
    found = sorted(path for path in folder.glob("*.npy") if _STRUCTURES.fullmatch(path.name))
    if not found:
        raise ValueError(f"{folder} holds no files binary_dataset_128_<k>.npy")
    pairs = []
    for path in found:
        partner = path.with_name(path.name.replace("binary_dataset_128_", "spectra_latest_"))
        if not partner.exists():
            raise ValueError(f"{path.name} has no partner {partner.name}")
        ours, theirs = (read_array(file, mmap_mode="r") for file in (path, partner))
        if ours.shape[1:] not in ((1, PIXELS, PIXELS), (PIXELS, PIXELS)) or ours.dtype not in (np.uint8, np.bool_):
            raise ValueError(
                f"{path.name}: expected uint8 of shape (N, 1, {PIXELS}, {PIXELS}), got {ours.dtype} of shape {ours.shape}"
            )
        wavelengths = len(process.wavelengths_nm)
        if (
            theirs.shape[1:] not in ((3, wavelengths), (4, wavelengths), (2, 2, wavelengths))
            or theirs.dtype.kind != "f"
        ):
            raise ValueError(
                f"{partner.name}: expected floats of shape (N, 3, {wavelengths}) or (N, 2, 2, {wavelengths}), "
                f"got {theirs.dtype} of shape {theirs.shape}"
            )
        if len(ours) != len(theirs):
            raise ValueError(f"{path.name} has {len(ours)} rows but {partner.name} has {len(theirs)}")
        pairs.append(Pair(path, partner, rows=len(ours), merged_greens=theirs.shape[1] == 3))
    if len({pair.merged_greens for pair in pairs}) > 1:
        raise ValueError("some files have 3 channels and some 4: import them into separate data sets")
    return pairs


def import_pairs(pairs: list[Pair], out: Path, process: Process, report: Callable[[int], object]) -> ImportReport:
    """Write the usable rows of all pairs to a new data set.

    Rows are dropped that are unfinished (all zero), not finite, not binary, or repeat an earlier structure. The data set
    appears when it is complete; a failed import leaves nothing.

    Args:
        pairs: pairs of files.
        out: folder of the new data set.
        process: process that was simulated.
        report: callback that gets the number of rows of each block when it is written.

    Raises:
        ValueError: something lies at `out`, or no row is usable.
    """
    if out.exists():
        raise ValueError(f"{out} exists: choose a folder that does not")
    result = ImportReport(merged_greens=pairs[0].merged_greens)
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "process": process.model_dump(mode="json"),
        "solver": {"name": "imported", "files": [pair.name for pair in pairs]},
        "channels": list(CHANNELS),
        "merged_greens": result.merged_greens,
    }
    rows = sum(pair.rows for pair in pairs)
    with new_folder(out) as unfinished:
        group = create_store(unfinished, process, attributes, rows, harmonics=False, shard=BLOCK)
        seen: set[bytes] = set()
        for pair in pairs:
            sign = np.float32(1)
            if pair.is_negative():
                sign = np.float32(-1)
                result.flipped.append(pair.name)
            for structures, spectra in pair.blocks():
                usable = _usable(structures, spectra, seen, result)
                if usable.any():
                    _append(group, (structures[usable] != 0).astype(np.uint8), sign * spectra[usable], result)
                report(len(structures))
        if not result.kept:
            reasons = ", ".join(f"{count} dropped ({reason})" for reason, count in result.dropped.most_common())
            raise ValueError(f"no usable rows: {reasons or 'the files are empty'}")
        for _, array in group.arrays():
            if array.metadata.dimension_names[0] == "sample":
                array.resize((result.kept, *array.shape[1:]))
        group.attrs["dropped"] = dict(result.dropped)
        consolidate(unfinished)
    return result


def _usable(
    structures: NDArray[np.generic], spectra: NDArray[np.float32], seen: set[bytes], result: ImportReport
) -> NDArray[np.bool_]:
    """Which rows of a block to keep, (rows,); the others are counted by reason."""
    high = structures.reshape(len(structures), -1).max(axis=1)
    level = (structures == 0) | (structures == high[:, None, None])
    binary = np.asarray(level).all(axis=(1, 2)) & np.isin(high, (0, 1, 255))
    finite = np.isfinite(spectra).all(axis=(1, 2))
    finished = np.any(spectra != 0, axis=(1, 2))
    new, keep = np.zeros(len(structures), bool), binary & finite & finished
    for row, packed in enumerate(pack(structures)):
        if keep[row]:
            key = hashlib.blake2b(packed.tobytes(), digest_size=16).digest()
            new[row] = key not in seen
            seen.add(key)
    reasons = np.select(
        [~finished, ~finite, ~binary, ~new],
        ["unfinished, all zero", "values that are not finite", "structure not binary", "repeats an earlier structure"],
        "",
    )
    result.dropped.update(str(reason) for reason in reasons if reason)
    usable: NDArray[np.bool_] = np.equal(reasons, "")
    return usable


def _append(group: Group, structures: Structure, spectra: NDArray[np.float32], result: ImportReport) -> None:
    if spectra.shape[1] == 3:
        spectra = spectra[:, [0, 1, 1, 2]]
    result.above_one += int((spectra.sum(axis=1).max(axis=-1) > 1.05).sum())
    columns = {
        "structure": as_levels(structures),
        "spectra": np.clip(np.rint(spectra / STEP), -32768, 32767).astype(np.int16),
        "family": np.full(len(structures), families.SOURCES.index("imported"), np.uint8),
        "split": np.array([families.SPLITS.index(families.split_of(s)) for s in structures], np.uint8),
        "energy_error": np.full(len(structures), np.nan, np.float32),  # reflection is not in the files
        "remaining": np.full(len(structures), np.nan, np.float32),
        "duration": np.full(len(structures), np.nan, np.float32),
        "flag": np.zeros(len(structures), np.uint8),
        "complete": np.ones(len(structures), np.uint8),
    }
    stop = result.kept + len(structures)
    with whole_chunks():
        for name, values in columns.items():
            group[name][result.kept : stop] = values
    result.kept = stop
