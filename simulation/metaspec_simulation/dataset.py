"""Data sets: append simulated samples to one, read it, and state its provenance.

A worker writes whole shards of its own, and `complete` last: a killed run loses the shard it was in, and a rerun resumes
from there. Sample i's structure depends on the data set's seed and i alone, not on who simulates it; or the structures are
given, and stored when the data set is created. `metaspec_simulation.data.store` describes the layout on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.process import Process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_contract.structures import Structure, pack, unpack
from metaspec_simulation.data import families
from metaspec_simulation.data.damage import Damage, find_damage, finished
from metaspec_simulation.data.labels import HARMONIC_STEP, STEP, label
from metaspec_simulation.data.levels import LEVELS, as_levels, as_structure, is_grey
from metaspec_simulation.data.recipe import Recipe, given_levels, given_recipe
from metaspec_simulation.data.store import (
    PER_SAMPLE,
    SHARD,
    Group,
    chunk_file,
    consolidate,
    create_store,
    is_vacant,
    new_folder,
    read_attributes,
    read_dataset,
    whole_chunks,
)
from metaspec_simulation.physics.farfield import harmonic_orders
from metaspec_simulation.physics.solver import Solver

__all__ = [
    "HARMONIC_STEP",
    "STEP",
    "Group",
    "Recipe",
    "Samples",
    "add_structures",
    "check",
    "count_distinct",
    "given_recipe",
    "load",
    "mend",
    "missing_shards",
    "open_dataset",
    "provenance",
    "read_dataset",
    "summary",
    "write_samples",
]


def open_dataset(path: Path, recipe: Recipe, count: int, given: ArrayLike | None = None, shard: int = SHARD) -> Group:
    """Open a data set for appending up to `count` samples; create it if there is none.

    Args:
        path: folder of the data set.
        recipe: recipe of its samples.
        count: number of samples that it shall have in all.
        given: structures or densities of a recipe with given ones, (count, 128, 128).
        shard: samples per shard of a new data set.

    Raises:
        ValueError: something else lies at `path`, or a data set made by another recipe.
    """
    if is_vacant(path):
        with new_folder(path) as unfinished:
            group = create_store(unfinished, recipe.process, recipe.attributes(), count, True, recipe.orders, shard)
            if given is not None:
                with whole_chunks():
                    group["structure"][:] = given_levels(given)
        return read_dataset(path, mode="r+")
    group = read_dataset(path, mode="r+")
    if difference := read_attributes(path, group).process.difference(recipe.process):
        raise ValueError(
            f"{path} was made with another process: {difference}; give the same one, or choose another folder"
        )
    done = finished(group)
    _require_recipe(path, group, recipe, to_do=count > len(done) or not done.all())
    if count > len(done):
        _resize(path, group, count)
    return group


def _require_recipe(path: Path, group: Group, recipe: Recipe, to_do: bool) -> None:
    """Refuse a data set of another recipe; where nothing is to be simulated, labels of an earlier solver or layout may stay.

    Raises:
        ValueError: an attribute differs; it is named.
    """
    required = {name: wanted for name, wanted in recipe.attributes().items() if name != "process"}
    if not to_do and group.attrs["solver"].get("cells") == recipe.cells:
        required = {name: required[name] for name in ("seed", "given")}
    for name, wanted in required.items():
        if group.attrs.get(name) != wanted:
            raise ValueError(
                f"{path} was made with {name} = {_shortened(group.attrs.get(name))}, not {_shortened(wanted)}: "
                "use the settings it was made with, or choose another folder"
            )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]} ..."


def add_structures(
    path: Path, process: Process, cells: int, wanted: Structure, orders: bool = False
) -> tuple[Recipe, int]:
    """Add structures, still to be simulated, to a data set of given ones; create it if there is none.

    Structures of which the data set has a translation, rotation or mirror image are left out. Nothing that is simulated is
    touched, and a run that is killed here leaves the data set as it was, or with the structures added.

    Args:
        path: folder of the data set.
        process: process of all samples.
        cells: the solver's grid cells per period.
        wanted: distinct structures, uint8 (N, 128, 128).
        orders: whether the samples have the orders under the layer, too.

    Returns:
        The data set's recipe, and the number of new structures.

    Raises:
        ValueError: the data set holds random or imported structures, was made with another process or grid, or its structures
            are damaged.
    """
    if is_vacant(path):
        recipe = given_recipe(process, cells, wanted, orders)
        open_dataset(path, recipe, len(wanted), wanted)
        return recipe, len(wanted)
    group = read_dataset(path, mode="r+")
    if group.attrs.get("given") is None:
        raise ValueError(f"{path} holds structures that are not given but random or imported: choose another folder")
    count = group["complete"].shape[0]
    found = Recipe(process, seed=0, cells=cells, given=group.attrs["given"], orders=orders)
    open_dataset(path, found, count)
    for damage in find_damage(path, group):
        if damage.array == "structure":
            raise ValueError(f"{damage.file} is damaged, and the structures in it are lost: restore it")
    known = _levels(group, slice(0, count))
    new = wanted[families.distinct(wanted, map(as_structure, known))]
    if not len(new):
        return found, 0
    _require_recipe(path, group, found, to_do=True)
    levels = np.concatenate([known, as_levels(new)])
    recipe = given_recipe(process, cells, as_structure(levels), orders)
    # The data set has as many samples as `complete`: until that has grown, all of this can be repeated.
    group["structure"].resize(levels.shape)
    with whole_chunks():
        group["structure"][count:] = levels[count:]
    group.attrs["given"] = recipe.given
    _resize(path, group, len(levels))
    return recipe, len(new)


def _resize(path: Path, group: Group, count: int) -> None:
    """Resize all arrays to `count`; `complete` last, so that an interrupted resize is repeated."""
    for name in PER_SAMPLE:
        if name in group:
            group[name].resize((count, *group[name].shape[1:]))
    consolidate(path)


def _levels(group: Group, rows: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
    """Structures of some samples as levels, uint8 (n, 128, 128)."""
    kept = group["structure"][:][rows]
    levels: NDArray[np.uint8] = np.uint8(LEVELS) * unpack(kept) if kept.ndim == 2 else kept
    return levels


def mend(path: Path, group: Group, recipe: Recipe, given: ArrayLike | None = None) -> list[Damage]:
    """Remove damaged files of a data set, so that their samples are missing.

    Args:
        path: folder of the data set.
        group: the data set, opened for writing.
        recipe: its recipe.
        given: structures of a recipe with given ones; those of damaged files are written again.

    Returns:
        What was damaged.

    Raises:
        ValueError: given structures are lost, or the samples cannot be made again by this recipe.
    """
    found = find_damage(path, group)
    if not found:
        return []
    try:
        _require_recipe(path, group, recipe, to_do=True)
    except ValueError as error:
        raise ValueError(f"{found[0].file} is damaged, and {error}") from None
    lost = [damage.file for damage in found if damage.array == "structure" and recipe.given is not None]
    if lost and given is None:
        raise ValueError(f"{lost[0]} is damaged, and the structures in it are lost: restore it")
    with whole_chunks():
        for damage in found:
            shard = damage.start // group["complete"].chunks[0]
            chunk_file(path, group["complete"], shard).unlink(missing_ok=True)
            damage.file.unlink(missing_ok=True)
            if damage.array == "structure" and given is not None:
                group["structure"][damage.start : damage.stop] = given_levels(given)[damage.start : damage.stop]
    return found


def missing_shards(group: Group) -> list[tuple[int, int]]:
    """Ranges [start, stop) of samples still to be simulated, one for each incomplete shard."""
    complete, shard = finished(group), group["complete"].chunks[0]
    ranges = []
    for start in range(0, len(complete), shard):
        absent = np.flatnonzero(~complete[start : start + shard])
        if absent.size:
            ranges.append((start + int(absent[0]), start + int(absent[-1]) + 1))
    return ranges


def write_samples(
    group: Group, recipe: Recipe, solver: Solver, start: int, stop: int, report: Callable[[], object]
) -> None:
    """Simulate samples start .. stop - 1, which lie in one shard, and write them; calls `report()` after each."""
    rows: dict[str, list[Any]] = {}
    given = None if recipe.given is None else _levels(group, slice(start, stop))
    for sample in range(start, stop):
        structure = recipe.structure(sample) if given is None else as_structure(given[sample - start])
        simulation, labels = label(solver, structure, recipe.orders)
        energy_error = float(np.sqrt(np.mean(simulation.energy_error**2)))
        row = labels | {
            "structure": as_levels(structure),
            "family": families.SOURCES.index(recipe.family(sample) if given is None else "design"),
            "split": families.SPLITS.index(families.split_of(structure)),
            "energy_error": energy_error,
            "remaining": simulation.remaining,
            "duration": simulation.duration,
            "flag": not energy_error <= recipe.energy_bound,
            "complete": 1,
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
        report()
    with whole_chunks():
        for name in PER_SAMPLE:  # `complete` comes last
            if name in rows:
                group[name][start:stop] = np.stack(rows[name])


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
    harmonic_orders: NDArray[np.int64] = field(default_factory=lambda: np.stack(harmonic_orders()))

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def structures(self) -> NDArray[Any]:
        """Structures (N, 128, 128): binary, uint8, or if one is grey, float32."""
        structures = unpack(self.packed)
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

    def of(self, split: str) -> Samples:
        """The samples of one split, "train", "validation" or "test"."""
        if split not in families.SPLITS:
            raise ValueError(f"split must be one of {', '.join(families.SPLITS)}, got {split!r}")
        return self.take(np.flatnonzero(self.split == split))

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


ROW_FIELDS = ("packed", "spectra", "harmonics", "family", "split", "energy_error", "flag", "grey")
"""Attributes of `Samples` with one row per sample."""


def load(path: Path) -> Samples:
    """Read all finished samples of a data set.

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
        return _load(group, attributes.process, done)
    except (ValueError, RuntimeError):
        _refuse(path, find_damage(path, group))
        raise


def _load(group: Group, process: Process, done: NDArray[np.intp]) -> Samples:
    family, split = (np.array(group[name].attrs["flag_meanings"].split()) for name in ("family", "split"))
    known = "harmonics" in group
    levels = _levels(group, done)
    grey = is_grey(levels)
    return Samples(
        process=process,
        packed=pack(levels > LEVELS // 2),
        spectra=group["spectra"][:][done].astype(np.float32) * np.float32(STEP),
        harmonics=group["harmonics"][:][done] if known else np.zeros((len(done), 0, 0), np.int16),
        harmonic_wavelengths_nm=group["harmonic_wavelength"][:] if known else np.zeros(0),
        family=family[group["family"][:][done]],
        split=split[group["split"][:][done]],
        energy_error=group["energy_error"][:][done],
        flag=group["flag"][:][done] if "flag" in group else np.zeros(len(done), np.uint8),
        grey=np.where(grey, np.cumsum(grey) - 1, -1),
        densities=levels[grey],
        harmonic_orders=np.array(group.attrs["harmonic_orders"]).T if known else np.zeros((2, 0), np.int64),
        attributes=dict(group.attrs),
    )


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
    """What is worth knowing of a finished data set: how many of its structures are distinct, and how many samples flagged."""
    distinct = len({_digest(structure) for structure in group["structure"][:]})
    text = f"{distinct} of its structures are distinct."
    if "flag" in group and (flagged := int(group["flag"][:].sum())):
        bound = group.attrs["energy_bound"]
        text += f" {flagged} samples have an energy error above {bound:g} and are flagged: training leaves them out."
    return text


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
    done = finished(group)
    return int(done.sum()), len(done), hashlib.sha256(_levels(group, slice(None)).tobytes()).hexdigest()


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
