"""The finished samples of a data set, in memory, and what a model's provenance says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.process import Process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_contract.structures import pack, unpack
from metaspec_simulation.data import families
from metaspec_simulation.data.damage import Damage, find_damage, finished
from metaspec_simulation.data.labels import STEP
from metaspec_simulation.data.levels import LEVELS, as_structure, is_grey
from metaspec_simulation.data.store import Group, read_attributes, read_dataset, read_levels


@dataclass(frozen=True)
class Samples:
    """The finished samples of a data set, in memory, still compact.

    Attributes:
        process: process of all samples.
        packed: bit-packed structures, uint8 (N, 2048); densities at the threshold 1/2.
        spectra: spectra, float32 (N, 4, W).
        harmonics: harmonics in units of `HARMONIC_STEP`, int16 (N, H, V); (N, 0, 0) where they are not known.
        harmonic_wavelengths_nm: wavelengths of the harmonics in nm, (V,).
        family: names of the families, (N,).
        split: names of the splits, (N,).
        energy_error: rms over wavelengths of reflection + transmission - 1, float32 (N,).
        flag: 1 where the energy error is above the data set's bound, else 0, uint8 (N,).
        grey: row of `densities` for each sample, int (N,); -1 for binary ones.
        densities: densities in steps of 1/255, uint8 (G, 128, 128).
        harmonic_orders: row and column orders of the harmonics, (2, (H + 1) / 2).
        ordered: row of `orders` for each sample, int (N,); -1 where they are not known or not asked for.
        orders: orders of the field under the layer as `metaspec_simulation.data.labels.pack_orders` packs them, int16
            (M, 2, 2, 2, K, V); (0, 2, 2, 2, 0, 0) if there are none.
        attributes: attributes of the store.
    """

    process: Process
    packed: NDArray[np.uint8]
    spectra: NDArray[np.float32]
    harmonics: NDArray[np.int16]
    harmonic_wavelengths_nm: NDArray[np.float64]
    family: NDArray[np.str_]
    split: NDArray[np.str_]
    energy_error: NDArray[np.float32]
    flag: NDArray[np.uint8]
    grey: NDArray[np.intp]
    densities: NDArray[np.uint8]
    attributes: dict[str, Any]
    harmonic_orders: NDArray[np.int64]
    ordered: NDArray[np.intp]
    orders: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def structures(self) -> NDArray[Any]:
        """Structures (N, 128, 128): binary, uint8, or if one is grey, float32."""
        structures = unpack(self.packed, self.process.structure_shape)
        grey = np.flatnonzero(self.grey >= 0)
        if not grey.size:
            return structures
        density = structures.astype(np.float32)
        density[grey] = as_structure(self.densities[self.grey[grey]])
        return density

    def levels(self, row: int) -> NDArray[np.uint8]:
        """One structure in steps of 1/255, uint8 (128, 128)."""
        levels: NDArray[np.uint8] = (
            np.uint8(LEVELS) * unpack(self.packed[row]) if self.grey[row] < 0 else self.densities[self.grey[row]]
        )
        return levels

    def of(self, split: str, limit: int | None = None) -> Samples:
        """The samples of one split, in order; arguments are those of `rows`."""
        return self.take(self.rows(split, limit))

    def rows(self, split: str, limit: int | None = None) -> NDArray[np.intp]:
        """Numbers of the samples of one split, ascending.

        Args:
            split: "train", "validation" or "test".
            limit: largest number of samples; of more, so many are drawn at random, the same ones every time. Default: all.
        """
        if split not in families.SPLITS:
            raise ValueError(f"split must be one of {', '.join(families.SPLITS)}, got {split!r}")
        rows = np.flatnonzero(self.split == split)
        if limit is not None and limit < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
        return rows

    def take(self, rows: NDArray[np.integer]) -> Samples:
        """Some samples, by number."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ROW_FIELDS})

    def source(self, name: str) -> DataSource:
        """The data set as it is named in a model's provenance.

        Args:
            name: name of the data set's folder.
        """
        return DataSource(
            name=name,
            schema_version=self.attributes["schema_version"],
            structures=int((self.split == "train").sum()),
            solver=self.attributes["solver"],
            made_with=self.attributes["made_with"],
        )


ROW_FIELDS = ("packed", "spectra", "harmonics", "family", "split", "energy_error", "flag", "grey", "ordered")
"""Attributes of `Samples` with one row per sample."""


def load(path: Path, orders: bool = False) -> Samples:
    """Read all finished samples of a data set.

    Args:
        path: folder of the data set.
        orders: whether to read the orders under the layer, too, where the data set has them: 88 KB for each sample.

    Raises:
        ValueError: no data set at `path`, no finished samples in it, damaged files, or attributes and arrays that contradict
            each other.
    """
    group = read_dataset(path)
    attributes = read_attributes(path, group)
    _refuse(path, find_damage(path, group, decode=False))
    done = np.flatnonzero(finished(group))
    if not done.size:
        raise ValueError(f"{path} has no finished samples: run metaspec-simulate to make some")
    try:
        return _load(group, attributes.process, done, orders)
    except (ValueError, RuntimeError):
        _refuse(path, find_damage(path, group))
        raise


def _load(group: Group, process: Process, done: NDArray[np.intp], orders: bool) -> Samples:
    family, split = (np.array(group[name].attrs["flag_meanings"].split()) for name in ("family", "split"))
    known, asked = "harmonics" in group, orders and "orders" in group
    blocks = _blocks(group, done)
    packed, grey, densities = _structures(group, blocks)
    spectra = _rows(group["spectra"], blocks, np.float32)
    spectra *= np.float32(STEP)
    return Samples(
        process=process,
        packed=packed,
        spectra=spectra,
        harmonics=_rows(group["harmonics"], blocks) if known else np.zeros((len(done), 0, 0), np.int16),
        harmonic_wavelengths_nm=group["harmonic_wavelength"][:] if known else np.zeros(0),
        family=family[group["family"][:][done]],
        split=split[group["split"][:][done]],
        energy_error=group["energy_error"][:][done],
        flag=group["flag"][:][done] if "flag" in group else np.zeros(len(done), np.uint8),
        grey=np.where(grey, np.cumsum(grey) - 1, -1),
        densities=densities,
        harmonic_orders=np.array(group.attrs["harmonic_orders"]).T if known else np.zeros((2, 0), np.int64),
        ordered=np.arange(len(done)) if asked else np.full(len(done), -1),
        orders=_rows(group["orders"], blocks) if asked else np.zeros((0, 2, 2, 2, 0, 0), np.int16),
        attributes=dict(group.attrs),
    )


_BLOCK = 1024
"""Samples that are read at a time, so that no array is held twice."""

_Blocks: TypeAlias = list[tuple[slice, NDArray[np.intp]]]


def _blocks(group: Group, done: NDArray[np.intp]) -> _Blocks:
    """Rows of the store in whole shards, and which of each block's rows are wanted."""
    shard = group["structure"].chunks[0]
    size = shard * max(1, _BLOCK // shard)
    starts = range(0, int(done[-1]) + 1, size)
    edges = np.searchsorted(done, [*starts, starts[-1] + size])
    return [
        (slice(start, start + size), done[low:high] - start)
        for start, (low, high) in zip(starts, pairwise(edges), strict=True)
        if high > low
    ]


def _structures(group: Group, blocks: _Blocks) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]:
    """Bit-packed structures, which of them are grey, and the densities of these."""
    packed, grey, densities = [], [], []
    for rows, wanted in tqdm(blocks, "loading", unit="block", delay=2.0, leave=False, disable=None):
        levels = read_levels(group, rows)[wanted]
        shaded = is_grey(levels)
        packed.append(pack(levels > LEVELS // 2))
        grey.append(shaded)
        densities.append(levels[shaded])
    return np.concatenate(packed), np.concatenate(grey), np.concatenate(densities)


def _rows(array: Any, blocks: _Blocks, dtype: type[np.generic] | None = None) -> NDArray[Any]:
    """The wanted rows of an array, in its dtype or another one."""
    values = np.empty((sum(len(wanted) for _, wanted in blocks), *array.shape[1:]), dtype or array.dtype)
    end = 0
    for rows, wanted in blocks:
        values[end : end + len(wanted)] = array[rows][wanted]
        end += len(wanted)
    return values


def _refuse(path: Path, found: list[Damage]) -> None:
    if found:
        others = {1: " is", 2: f" and 1 other file of {path.name} are"}
        which = others.get(len(found), f" and {len(found) - 1} other files of {path.name} are")
        raise ValueError(
            f"{found[0].file}{which} damaged or missing: repeat the metaspec-simulate command that made the data set, "
            "which simulates their samples again"
        )


def count_distinct(sets: Iterable[Samples]) -> int:
    """Number of distinct structures in several data sets; copies by symmetry count as distinct."""
    return len(
        {
            _digest(samples.packed[row] if grey < 0 else samples.densities[grey])
            for samples in sets
            for row, grey in enumerate(samples.grey)
        }
    )


def _digest(structure: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(structure.tobytes(), digest_size=16).digest()


def summary(group: Group) -> str:
    """What is worth knowing of a data set: how many of its structures are distinct, and how many samples flagged.

    Translations, rotations and mirror images of a structure count once, which takes about half a millisecond for each.
    """
    total = int(finished(group).sum())
    structures = tqdm(_finished_structures(group), "counting", total, unit="structure", delay=2.0, leave=False)
    distinct = len(families.distinct(structures))
    text = f"{distinct} of its structures are distinct up to symmetry."
    if "flag" in group and (flagged := int(group["flag"][:].sum())):
        bound = group.attrs["energy_bound"]
        text += f" {flagged} samples have an energy error above {bound:g} and are flagged: training leaves them out."
    return text


def _finished_structures(group: Group) -> Iterator[NDArray[Any]]:
    """Structures of the finished samples, one shard in memory at a time."""
    done, shard = finished(group), group["structure"].chunks[0]
    for start in range(0, len(done), shard):
        levels = read_levels(group, slice(start, start + shard))
        yield from map(as_structure, levels[done[start : start + shard]])


def check(path: Path) -> tuple[int, int, str]:
    """Read all files of a data set.

    Returns:
        Number of finished samples, number of all samples, and SHA-256 of the structures, at 8 bits per pixel.

    Raises:
        ValueError: no data set at `path`, or a damaged one.
    """
    group = read_dataset(path)
    read_attributes(path, group)
    _refuse(path, find_damage(path, group))
    done, digest = finished(group), hashlib.sha256()
    for rows, _ in _blocks(group, np.arange(len(done))):
        digest.update(read_levels(group, rows).tobytes())
    return int(done.sum()), len(done), digest.hexdigest()


def provenance(sets: Mapping[str, Samples], preset: str = "") -> Provenance:
    """The provenance of a network that is trained on data sets.

    Args:
        sets: data sets by name, the one that is validated on first.
        preset: name of the preset that is trained, "" if there is none.

    Raises:
        ValueError: there is no data set, or two differ in process, channels or merged greens; both are named.
    """
    if not sets:
        raise ValueError("there must be at least one data set")
    alone = {
        name: Provenance(
            process=samples.process,
            channels=tuple(samples.attributes["channels"]),
            merged_greens=samples.attributes.get("merged_greens", False),
            preset=preset,
            data=(samples.source(name),),
        )
        for name, samples in sets.items()
    }
    (first, found), *others = alone.items()
    for name, other in others:
        found.require_same_device(other, first, name)
    return found.model_copy(update={"data": tuple(one.data[0] for one in alone.values())})
