"""The data set on disk: a Zarr v3 store that xarray reads and that many workers append to safely.

Along `sample` every array is cut into chunks of `SHARD` structures, and a worker writes whole shards of its own, so no two
workers ever touch one file. `complete` is written last: a killed run loses the shard it was in, and a rerun goes on from
there. Which structure sample i is follows from the data set's seed and i alone, not from who simulates it; or the
structures are given, and stored when the data set is made.

Efficiencies are int16 in steps of `STEP`, their harmonics in steps of `HARMONIC_STEP` (xarray scales both back by itself):
spectra put together from the harmonics are within 1e-3 (rms) of the solver's. Structures are bit-packed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Structure, pack, unpack
from metaspec_simulation.data import families
from metaspec_simulation.data.recipe import SCHEMA_VERSION, Recipe, given_recipe
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_simulation.physics.solver import Solver

SHARD = 64
STEP = 1e-4
HARMONIC_STEP = 5e-4  # 41 pairs of them add up to an rms error of 9e-4
HARMONIC_STEP_NM = 2  # the spectra resolve about 10 nm

Group: TypeAlias = Any  # a zarr.Group; zarr types what lies in one as array or group, whatever the name


def open_dataset(path: Path, recipe: Recipe, count: int, given: NDArray[np.generic] | None = None) -> Group:
    """Open a data set for appending up to `count` samples; make it if there is none.

    Args:
        path: its folder.
        recipe: what the samples have in common.
        count: how many there shall be.
        given: the structures, uint8 (count, 128, 128), of a recipe that has them given.

    Raises:
        ValueError: something else lies at `path`, or a data set made by another recipe.
    """
    if _is_vacant(path):
        return _create(path, recipe, count, given)
    group = read_dataset(path, mode="r+")
    for name, wanted in recipe.attributes().items():
        if group.attrs.get(name) != wanted:
            raise ValueError(
                f"{path} was made with {name} = {group.attrs.get(name)}, not {wanted}: "
                "go on with the settings it was made with, or choose another folder"
            )
    if count > group["complete"].shape[0]:
        _resize(group, count)
    return group


def add_structures(path: Path, process: Process, cells: int, wanted: Structure) -> tuple[Recipe, int]:
    """Add structures to a data set of given ones, to be simulated; make it if there is none.

    Structures of which the data set has a translation, rotation or mirror image are left out. Nothing that is simulated is
    touched, and a run that is killed here leaves the data set as it was, or with the structures added.

    Args:
        path: its folder.
        process: the device.
        cells: the solver's grid cells per period.
        wanted: distinct structures, uint8 (N, 128, 128).

    Returns:
        What all samples of the data set have in common, and how many structures are new.

    Raises:
        ValueError: the data set holds random or imported structures, or was made with another process or grid.
    """
    if _is_vacant(path):
        recipe = given_recipe(process, cells, wanted)
        open_dataset(path, recipe, len(wanted), wanted)
        return recipe, len(wanted)
    group = read_dataset(path, mode="r+")
    if group.attrs.get("given") is None:
        raise ValueError(f"{path} holds structures that are not given but random or imported: choose another folder")
    count = group["complete"].shape[0]
    open_dataset(path, Recipe(process, seed=0, cells=cells, given=group.attrs["given"]), count)
    known = unpack(group["structure"][:count])
    new = wanted[families.distinct(wanted, known)]
    recipe = given_recipe(process, cells, np.concatenate([known, new]))
    # The samples of a data set are those of `complete`: until that has grown, all of this can be done again.
    group["structure"].resize((count + len(new), PIXELS * PIXELS // 8))
    group["structure"][count:] = pack(new)
    group.attrs["given"] = recipe.given
    _resize(group, count + len(new))
    return recipe, len(new)


def _resize(group: Group, count: int) -> None:
    """Make room for `count` samples, in `complete` last: a run that is killed on the way can do it again."""
    for name in _PER_SAMPLE:
        if name in group:
            group[name].resize((count, *group[name].shape[1:]))


def _is_vacant(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def read_dataset(path: Path, mode: str = "r") -> Group:
    """Open an existing data set.

    Raises:
        ValueError: no MetaSpec data set at `path`, or one of another schema version.
    """
    try:
        group = zarr.open_group(path, mode=mode)
    except (FileNotFoundError, NotADirectoryError, zarr.errors.GroupNotFoundError) as error:
        raise ValueError(f"{path} is not a MetaSpec data set: it holds no Zarr group") from error
    found = group.attrs.get("schema_version")
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path} is not a MetaSpec data set of schema version {SCHEMA_VERSION}, it says {found}")
    return group


def missing_shards(group: Group) -> list[tuple[int, int]]:
    """Ranges [start, stop) of samples still to be simulated, one for each shard that is not complete."""
    complete = group["complete"][:].astype(bool)
    ranges = []
    for start in range(0, len(complete), SHARD):
        absent = np.flatnonzero(~complete[start : start + SHARD])
        if absent.size:
            ranges.append((start + int(absent[0]), start + int(absent[-1]) + 1))
    return ranges


def write_samples(group: Group, recipe: Recipe, solver: Solver, start: int, stop: int, report: Any) -> None:
    """Simulate samples start .. stop - 1, which lie in one shard, and write them; calls `report()` after each."""
    rows: dict[str, list[Any]] = {name: [] for name in _PER_SAMPLE}
    given = None if recipe.given is None else unpack(group["structure"][start:stop])
    for sample in range(start, stop):
        structure = recipe.structure(sample) if given is None else given[sample - start]
        family = recipe.family(sample) if given is None else "design"
        simulation = solver.simulate(structure)
        coarse = simulation.harmonics[:, :: _harmonic_stride(recipe.process)]
        rows["structure"].append(pack(structure))
        rows["spectra"].append(np.rint(simulation.spectra / STEP).astype(np.int16))
        rows["harmonics"].append(np.rint(coarse / HARMONIC_STEP).astype(np.int16))
        rows["family"].append(families.SOURCES.index(family))
        rows["split"].append(families.SPLITS.index(families.split_of(structure)))
        rows["energy_error"].append(np.sqrt(np.mean(simulation.energy_error**2)))
        rows["complete"].append(1)
        report()
    for name in _PER_SAMPLE:  # `complete` comes last
        group[name][start:stop] = np.stack(rows[name])


@dataclass(frozen=True)
class Samples:
    """The finished samples of a data set, in memory, still compact.

    Attributes:
        process: the device.
        packed: bit-packed structures, uint8 (N, 2048).
        spectra: float32 (N, 4, W).
        harmonics: int16 (N, 81, V) in units of `HARMONIC_STEP`; (N, 0, 0) where they are not known.
        harmonic_wavelengths_nm: (V,).
        family: names, (N,).
        split: names, (N,).
        energy_error: rms over wavelengths of reflection + transmission - 1, float32 (N,).
        attributes: those of the store.
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
        """Unpacked, uint8 (N, 128, 128)."""
        return unpack(self.packed)

    def of(self, split: str) -> Samples:
        """The samples of one split."""
        if split not in families.SPLITS:
            raise ValueError(f"split must be one of {', '.join(families.SPLITS)}, got {split!r}")
        rows = np.flatnonzero(self.split == split)
        return self.take(rows)

    def take(self, rows: NDArray[np.integer]) -> Samples:
        """Some samples, by number."""
        picked = {name: getattr(self, name)[rows] for name in _SAMPLE_FIELDS}
        return Samples(
            self.process, harmonic_wavelengths_nm=self.harmonic_wavelengths_nm, attributes=self.attributes, **picked
        )


_SAMPLE_FIELDS = ("packed", "spectra", "harmonics", "family", "split", "energy_error")


def load(path: Path) -> Samples:
    """Read all finished samples of a data set.

    Raises:
        ValueError: no data set at `path`, or nothing in it is finished.
    """
    group = read_dataset(path)
    done = np.flatnonzero(group["complete"][:])
    if not done.size:
        raise ValueError(f"{path} has no finished samples: run metaspec-simulate to make some")
    known = "harmonics" in group
    return Samples(
        process=Process.model_validate(group.attrs["process"]),
        packed=group["structure"][:][done],
        spectra=group["spectra"][:][done].astype(np.float32) * np.float32(STEP),
        harmonics=group["harmonics"][:][done] if known else np.zeros((len(done), 0, 0), np.int16),
        harmonic_wavelengths_nm=group["harmonic_wavelength"][:] if known else np.zeros(0),
        family=np.array(families.SOURCES)[group["family"][:][done]],
        split=np.array(families.SPLITS)[group["split"][:][done]],
        energy_error=group["energy_error"][:][done],
        attributes=dict(group.attrs),
    )


_PER_SAMPLE: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "structure": (("byte",), "uint8", {"long_name": "bit-packed structure, rows first, 1 = solid"}),
    "spectra": (
        ("channel", "wavelength"),
        "int16",
        {"long_name": "power in the detector / incident power", "scale_factor": STEP},
    ),
    "harmonics": (
        ("harmonic", "harmonic_wavelength"),
        "int16",
        {"long_name": "Fourier coefficients of the R efficiency under translation", "scale_factor": HARMONIC_STEP},
    ),
    "family": ((), "uint8", {"flag_meanings": " ".join(families.SOURCES)}),
    "split": ((), "uint8", {"flag_meanings": " ".join(families.SPLITS)}),
    "energy_error": ((), "float32", {"long_name": "rms over wavelengths of reflection + transmission - 1"}),
    "complete": ((), "uint8", {"long_name": "1 once the sample is finished"}),
}


def _create(path: Path, recipe: Recipe, count: int, given: NDArray[np.generic] | None) -> Group:
    """Make the empty data set beside its place and move it there: a killed run leaves none or a whole one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    group = create_store(unfinished, recipe.process, recipe.attributes(), count, harmonics=True)
    if given is not None:
        group["structure"][:] = pack(given.astype(np.uint8))
    if path.exists():
        path.rmdir()
    unfinished.rename(path)
    return read_dataset(path, mode="r+")


def create_store(
    path: Path, process: Process, attributes: dict[str, Any], count: int, harmonics: bool, shard: int = SHARD
) -> Group:
    """Make the arrays of a data set of `count` samples, all of them still to be filled.

    Args:
        path: folder, made if there is none.
        process: the device.
        attributes: of the store.
        count: samples.
        harmonics: whether the samples come with their harmonics.
        shard: samples in a chunk.
    """
    path.mkdir(parents=True, exist_ok=True)
    wavelengths = process.wavelengths_nm
    coarse = wavelengths[:: _harmonic_stride(process)]
    sizes = {
        "byte": PIXELS * PIXELS // 8,
        "channel": len(CHANNELS),
        "wavelength": len(wavelengths),
        "harmonic": shifted_basis(np.zeros(1, int), np.zeros(1, int)).shape[-1],
        "harmonic_wavelength": len(coarse),
    }
    group = zarr.create_group(path, attributes={**attributes, "made_with": f"metaspec {version('metaspec')}"})
    axes = {"wavelength": wavelengths} | ({"harmonic_wavelength": coarse} if harmonics else {})
    for name, values in axes.items():
        group.create_array(name, data=values, dimension_names=(name,), attributes={"units": "nm"})
    compressor = zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle="shuffle")
    for name, (dimensions, dtype, metadata) in _PER_SAMPLE.items():
        if "harmonic" in dimensions and not harmonics:
            continue
        shape = tuple(sizes[dimension] for dimension in dimensions)
        group.create_array(
            name,
            shape=(count, *shape),
            chunks=(shard, *shape),
            dtype=dtype,
            compressors=compressor,
            dimension_names=("sample", *dimensions),
            attributes=metadata,
        )
    return group


def _harmonic_stride(process: Process) -> int:
    return max(1, round(HARMONIC_STEP_NM / process.wavelength_step_nm))
