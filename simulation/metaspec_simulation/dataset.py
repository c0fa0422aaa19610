"""Data sets: append simulated samples to one, read it, and state its provenance.

A worker writes whole shards of its own, and `complete` last: a killed run loses the shard it was in, and a rerun resumes
from there. Sample i's structure depends on the data set's seed and i alone, not on who simulates it; or the structures are
given, and stored when the data set is created. `metaspec_simulation.data.store` describes the layout on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_contract.structures import Structure, pack, packed_bytes, unpack
from metaspec_simulation.data import families
from metaspec_simulation.data.recipe import Recipe, given_recipe
from metaspec_simulation.data.store import (
    HARMONIC_STEP,
    PER_SAMPLE,
    SHARD,
    STEP,
    Group,
    create_store,
    harmonic_stride,
    is_vacant,
    new_folder,
    read_attributes,
    read_dataset,
)
from metaspec_simulation.physics.solver import Solver

__all__ = [
    "HARMONIC_STEP",
    "STEP",
    "Group",
    "Recipe",
    "Samples",
    "add_structures",
    "given_recipe",
    "load",
    "missing_shards",
    "open_dataset",
    "provenance",
    "read_dataset",
    "write_samples",
]


def open_dataset(path: Path, recipe: Recipe, count: int, given: Structure | None = None, shard: int = SHARD) -> Group:
    """Open a data set for appending up to `count` samples; create it if there is none.

    Args:
        path: folder of the data set.
        recipe: recipe of its samples.
        count: number of samples that it shall have in all.
        given: structures of a recipe with given ones, uint8 (count, 128, 128).
        shard: samples per shard of a new data set.

    Raises:
        ValueError: something else lies at `path`, or a data set made by another recipe.
    """
    if is_vacant(path):
        with new_folder(path) as unfinished:
            group = create_store(unfinished, recipe.process, recipe.attributes(), count, harmonics=True, shard=shard)
            if given is not None:
                group["structure"][:] = pack(given)
        return read_dataset(path, mode="r+")
    group = read_dataset(path, mode="r+")
    if difference := read_attributes(path, group).process.difference(recipe.process):
        raise ValueError(
            f"{path} was made with another process: {difference}; give the same one, or choose another folder"
        )
    complete = group["complete"][:]
    _require_recipe(path, group, recipe, to_do=count > len(complete) or not complete.all())
    if count > len(complete):
        _resize(group, count)
    return group


def _require_recipe(path: Path, group: Group, recipe: Recipe, to_do: bool) -> None:
    """Refuse a data set of another recipe; where nothing is to be simulated, an earlier solver's labels on this grid may stay.

    Raises:
        ValueError: an attribute differs; it is named.
    """
    required = {name: wanted for name, wanted in recipe.attributes().items() if name != "process"}
    if not to_do and group.attrs["solver"].get("cells") == recipe.cells:
        del required["solver"]
    for name, wanted in required.items():
        if group.attrs.get(name) != wanted:
            raise ValueError(
                f"{path} was made with {name} = {group.attrs.get(name)}, not {wanted}: "
                "use the settings it was made with, or choose another folder"
            )


def add_structures(path: Path, process: Process, cells: int, wanted: Structure) -> tuple[Recipe, int]:
    """Add structures, still to be simulated, to a data set of given ones; create it if there is none.

    Structures of which the data set has a translation, rotation or mirror image are left out. Nothing that is simulated is
    touched, and a run that is killed here leaves the data set as it was, or with the structures added.

    Args:
        path: folder of the data set.
        process: process of all samples.
        cells: the solver's grid cells per period.
        wanted: distinct structures, uint8 (N, 128, 128).

    Returns:
        The data set's recipe, and the number of new structures.

    Raises:
        ValueError: the data set holds random or imported structures, or was made with another process or grid.
    """
    if is_vacant(path):
        recipe = given_recipe(process, cells, wanted)
        open_dataset(path, recipe, len(wanted), wanted)
        return recipe, len(wanted)
    group = read_dataset(path, mode="r+")
    if group.attrs.get("given") is None:
        raise ValueError(f"{path} holds structures that are not given but random or imported: choose another folder")
    count = group["complete"].shape[0]
    found = Recipe(process, seed=0, cells=cells, given=group.attrs["given"])
    open_dataset(path, found, count)
    known = unpack(group["structure"][:count])
    new = wanted[families.distinct(wanted, known)]
    _require_recipe(path, group, found, to_do=len(new) > 0)
    recipe = given_recipe(process, cells, np.concatenate([known, new]))
    # The data set has as many samples as `complete`: until that has grown, all of this can be repeated.
    group["structure"].resize((count + len(new), packed_bytes()))
    group["structure"][count:] = pack(new)
    group.attrs["given"] = recipe.given
    _resize(group, count + len(new))
    return recipe, len(new)


def _resize(group: Group, count: int) -> None:
    """Resize all arrays to `count`; `complete` last, so that an interrupted resize is repeated."""
    for name in PER_SAMPLE:
        if name in group:
            group[name].resize((count, *group[name].shape[1:]))


def missing_shards(group: Group) -> list[tuple[int, int]]:
    """Ranges [start, stop) of samples still to be simulated, one for each incomplete shard."""
    complete, shard = group["complete"][:].astype(bool), group["complete"].chunks[0]
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
    rows: dict[str, list[Any]] = {name: [] for name in PER_SAMPLE}
    given = None if recipe.given is None else unpack(group["structure"][start:stop])
    for sample in range(start, stop):
        structure = recipe.structure(sample) if given is None else given[sample - start]
        family = recipe.family(sample) if given is None else "design"
        simulation = solver.simulate(structure)
        thinned = simulation.harmonics[:, :: harmonic_stride(recipe.process)]
        rows["structure"].append(pack(structure))
        rows["spectra"].append(np.rint(simulation.spectra / STEP).astype(np.int16))
        rows["harmonics"].append(np.rint(thinned / HARMONIC_STEP).astype(np.int16))
        rows["family"].append(families.SOURCES.index(family))
        rows["split"].append(families.SPLITS.index(families.split_of(structure)))
        rows["energy_error"].append(np.sqrt(np.mean(simulation.energy_error**2)))
        rows["complete"].append(1)
        report()
    for name in PER_SAMPLE:  # `complete` comes last
        group[name][start:stop] = np.stack(rows[name])


@dataclass(frozen=True)
class Samples:
    """The finished samples of a data set, in memory, still compact.

    Attributes:
        process: process of all samples.
        packed: bit-packed structures, uint8 (N, 2048).
        spectra: spectra, float32 (N, 4, W).
        harmonics: harmonics in units of `HARMONIC_STEP`, int16 (N, 81, V); (N, 0, 0) where they are not known.
        harmonic_wavelengths_nm: wavelengths of the harmonics in nm, (V,).
        family: names of the families, (N,).
        split: names of the splits, (N,).
        energy_error: rms over wavelengths of reflection + transmission - 1, float32 (N,).
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
    attributes: dict[str, Any]

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def structures(self) -> Structure:
        """Unpacked structures, uint8 (N, 128, 128)."""
        return unpack(self.packed)

    def of(self, split: str) -> Samples:
        """The samples of one split, "train", "validation" or "test"."""
        if split not in families.SPLITS:
            raise ValueError(f"split must be one of {', '.join(families.SPLITS)}, got {split!r}")
        return self.take(np.flatnonzero(self.split == split))

    def take(self, rows: NDArray[np.integer]) -> Samples:
        """Some samples, by number."""
        picked = {name: getattr(self, name)[rows] for name in _SAMPLE_FIELDS}
        return Samples(
            self.process, harmonic_wavelengths_nm=self.harmonic_wavelengths_nm, attributes=self.attributes, **picked
        )

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


_SAMPLE_FIELDS = ("packed", "spectra", "harmonics", "family", "split", "energy_error")


def load(path: Path) -> Samples:
    """Read all finished samples of a data set.

    Raises:
        ValueError: no data set at `path`, no finished samples in it, or attributes and arrays that contradict each other.
    """
    group = read_dataset(path)
    process = read_attributes(path, group).process
    done = np.flatnonzero(group["complete"][:])
    if not done.size:
        raise ValueError(f"{path} has no finished samples: run metaspec-simulate to make some")
    known = "harmonics" in group
    return Samples(
        process=process,
        packed=group["structure"][:][done],
        spectra=group["spectra"][:][done].astype(np.float32) * np.float32(STEP),
        harmonics=group["harmonics"][:][done] if known else np.zeros((len(done), 0, 0), np.int16),
        harmonic_wavelengths_nm=group["harmonic_wavelength"][:] if known else np.zeros(0),
        family=np.array(families.SOURCES)[group["family"][:][done]],
        split=np.array(families.SPLITS)[group["split"][:][done]],
        energy_error=group["energy_error"][:][done],
        attributes=dict(group.attrs),
    )


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
