"""Append simulated samples to a data set.

A worker writes whole shards of its own, and `complete` last: a killed run loses the shard it was in, and a rerun resumes
from there. Sample i's structure depends on the data set's seed and i alone, not on who simulates it; or the structures are
given, and stored when the data set is created.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.process import Process
from metaspec_simulation.data import families
from metaspec_simulation.data.damage import Damage, find_damage, finished
from metaspec_simulation.data.labels import labels
from metaspec_simulation.data.levels import as_levels, as_structure
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
    read_levels,
    whole_chunks,
)
from metaspec_simulation.physics.farfield import Complex
from metaspec_simulation.physics.solver import Simulation, Solver

if TYPE_CHECKING:  # compiles for CUDA when imported
    from metaspec_simulation.physics.many import ManySolver


def open_dataset(path: Path, recipe: Recipe, count: int, given: ArrayLike | None = None, shard: int = SHARD) -> Group:
    """Open a data set for appending up to `count` samples; create it if there is none.

    Args:
        path: folder of the data set.
        recipe: recipe of its samples.
        count: number of samples that it shall have in all.
        given: structures or densities of a recipe with given ones, (count, y, x).
        shard: samples per shard of a new data set.

    Raises:
        ValueError: something else lies at `path`, or a data set made by another recipe.
    """
    if is_vacant(path):
        with new_folder(path) as unfinished:
            group = create_store(unfinished, recipe.process, recipe.attributes(), count, True, recipe.orders, shard)
            if given is not None:
                with whole_chunks():
                    group["structure"][:] = given_levels(given, recipe.process)
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
    path: Path, process: Process, cells: int, wanted: NDArray[Any], orders: bool = False
) -> tuple[Recipe, int]:
    """Add structures, still to be simulated, to a data set of given ones; create it if there is none.

    Structures of which the data set has a translation, rotation or mirror image are left out. Nothing that is simulated is
    touched, and a run that is killed here leaves the data set as it was, or with the structures added.

    Args:
        path: folder of the data set.
        process: process of all samples.
        cells: the solver's grid cells per period.
        wanted: distinct structures or densities, (N, y, x).
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
    known = read_levels(group, slice(0, count))
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
                levels = given_levels(given, recipe.process)
                group["structure"][damage.start : damage.stop] = levels[damage.start : damage.stop]
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
    rows = []
    for sample, structure in structures_of(group, recipe, start, stop):
        rows.append(_row(recipe, sample, structure, *solver.simulate_with_orders(structure)))
        report()
    _write(group, start, rows)


def write_together(
    group: Group, recipe: Recipe, solver: ManySolver, shards: list[tuple[int, int]], report: Callable[[], object]
) -> None:
    """Simulate the samples of many shards side by side, and write each shard when its last one has ended.

    Args:
        group: the data set, opened for writing.
        recipe: its recipe.
        solver: solver of the data set's process, on a GPU.
        shards: ranges as `missing_shards` returns them.
        report: called after each sample.
    """
    # Structures are drawn when there are free lanes: only those that are being simulated are kept.
    under_way: dict[int, tuple[int, NDArray[Any]]] = {}

    def structures() -> Iterator[NDArray[Any]]:
        every = (each for start, stop in shards for each in structures_of(group, recipe, start, stop))
        for number, (sample, structure) in enumerate(every):
            under_way[number] = sample, structure
            yield structure

    shard_of = {sample: shard for shard in shards for sample in range(*shard)}
    rows: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for number, simulation, orders in solver.simulate(structures()):
        sample, structure = under_way.pop(number)
        shard = shard_of[sample]
        done = rows.setdefault(shard, {})
        done[sample] = _row(recipe, sample, structure, simulation, orders)
        report()
        if len(done) == shard[1] - shard[0]:
            _write(group, shard[0], [row for _, row in sorted(rows.pop(shard).items())])


def structures_of(group: Group, recipe: Recipe, start: int, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Numbers and structures of samples start .. stop - 1."""
    given = None if recipe.given is None else read_levels(group, slice(start, stop))
    for sample in range(start, stop):
        yield sample, recipe.structure(sample) if given is None else as_structure(given[sample - start])


def _row(
    recipe: Recipe, sample: int, structure: NDArray[Any], simulation: Simulation, orders: Complex
) -> dict[str, Any]:
    """All that a data set keeps of a sample, by the names of its arrays."""
    energy_error = float(np.sqrt(np.mean(simulation.energy_error**2)))
    return labels(recipe.process, simulation, orders if recipe.orders else None) | {
        "structure": as_levels(structure),
        "family": families.SOURCES.index(recipe.family(sample) if recipe.given is None else "design"),
        "split": families.SPLITS.index(families.split_of(structure)),
        "energy_error": energy_error,
        "remaining": simulation.remaining,
        "duration": simulation.duration,
        "flag": not energy_error <= recipe.energy_bound,
        "complete": 1,
    }


def _write(group: Group, start: int, rows: list[dict[str, Any]]) -> None:
    """Write rows from sample `start` on."""
    with whole_chunks():
        for name in PER_SAMPLE:  # `complete` comes last
            if name in rows[0]:
                group[name][start : start + len(rows)] = np.stack([row[name] for row in rows])
