"""The layout of a data set on disk: a Zarr v3 store that xarray reads.

Along `sample` every array is cut into shards, one file each, so that workers who write whole shards never touch one file.
Efficiencies are int16 in steps of `STEP`, their harmonics in steps of `HARMONIC_STEP` (xarray scales both back by itself):
spectra computed from the harmonics are within 1e-3 (rms) of the solver's. Structures are bit-packed.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, StrictBool, ValidationError, model_validator

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import CompleteProcess, Process
from metaspec_contract.structures import packed_bytes
from metaspec_contract.validation import first_error
from metaspec_simulation.data.families import SOURCES, SPLITS
from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.physics.farfield import shifted_basis

SHARD = 64
"""Samples per shard."""

STEP = 1e-4
HARMONIC_STEP = 5e-4  # 41 pairs of them add up to an rms error of 9e-4
HARMONIC_STEP_NM = 2  # the spectra resolve about 10 nm

Group: TypeAlias = Any  # a zarr.Group; zarr types its members as array or group, whatever the name

PER_SAMPLE: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
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
    "family": ((), "uint8", {"flag_meanings": " ".join(SOURCES)}),
    "split": ((), "uint8", {"flag_meanings": " ".join(SPLITS)}),
    "energy_error": ((), "float32", {"long_name": "rms over wavelengths of reflection + transmission - 1"}),
    "complete": ((), "uint8", {"long_name": "1 once the sample is finished"}),
}
"""Arrays with one row per sample: name, further dimensions, dtype, attributes. `complete` comes last and is written last."""

_HARMONIC = ("harmonics", "harmonic_wavelength")  # arrays that a data set has both of or none


class Attributes(BaseModel):
    """Attributes of a data set that the training and the provenance of a model rely on. Further ones are allowed.

    Attributes:
        schema_version: version of the layout on disk.
        process: device, every field stated.
        channels: channels of the spectra.
        merged_greens: whether only the mean of G1 and G2 is known.
        solver: solver of the labels; `cells` is its grid cells per period, where it has a grid.
        made_with: program and version that wrote the data set.
    """

    schema_version: int
    process: CompleteProcess
    channels: tuple[str, ...]
    merged_greens: StrictBool = False
    solver: dict[str, Any]
    made_with: str

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.channels != CHANNELS:
            raise ValueError(f"channels must be {', '.join(CHANNELS)}, got {', '.join(self.channels)}")
        cells = self.solver.get("cells")
        if cells is not None and (not isinstance(cells, int) or isinstance(cells, bool) or cells < 1):
            raise ValueError(f"solver.cells must be a positive whole number, got {cells!r}")
        return self


def read_attributes(path: Path, group: Group) -> Attributes:
    """Attributes of a data set, held against its arrays.

    Args:
        path: folder of the data set, for messages.
        group: the opened data set.

    Raises:
        ValueError: an attribute is missing or malformed, or wavelengths are not those of the process; it is named.
    """
    try:
        attributes = Attributes.model_validate(dict(group.attrs))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from None
    expected = attributes.process.wavelengths_nm
    axes = {"wavelength": expected}
    if "harmonics" in group:
        axes["harmonic_wavelength"] = expected[:: harmonic_stride(attributes.process)]
    for name, wavelengths in axes.items():
        found = np.asarray(group[name][:], np.float64)
        if found.shape != wavelengths.shape or np.abs(found - wavelengths).max() > 1e-6:
            raise ValueError(
                f"{path}: array {name} has {_range(found)}, but the process has {_range(wavelengths)} there"
            )
    return attributes


def _range(wavelengths: NDArray[np.float64]) -> str:
    return f"{len(wavelengths)} wavelengths" + (
        f" from {wavelengths[0]:g} to {wavelengths[-1]:g} nm" if len(wavelengths) else ""
    )


def is_vacant(path: Path) -> bool:
    """Whether nothing lies at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def read_dataset(path: Path, mode: str = "r") -> Group:
    """Open an existing data set.

    Args:
        path: folder of the data set.
        mode: "r" to read, "r+" to write, too.

    Raises:
        ValueError: no MetaSpec data set at `path`, one of another schema version, or one that lacks an array.
    """
    try:
        group = zarr.open_group(path, mode=mode)
    except (FileNotFoundError, NotADirectoryError, zarr.errors.GroupNotFoundError) as error:
        why = "it holds no Zarr group" if path.exists() else "there is no such folder"
        raise ValueError(f"{path} is not a MetaSpec data set: {why}") from error
    found = group.attrs.get("schema_version")
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path} is not a MetaSpec data set of schema version {SCHEMA_VERSION}, it says {found}")
    has_harmonics = any(name in group for name in _HARMONIC)
    for name in (*PER_SAMPLE, "wavelength", "harmonic_wavelength"):
        if name not in group and (has_harmonics or name not in _HARMONIC):
            raise ValueError(f"{path}: array {name} is missing")
    return group


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A path beside `path` for a folder that is moved there at the end: `path` appears whole or not at all.

    The temporary name is unique to process and thread. If the block raises, nothing is left beside `path`.

    Args:
        path: path of the folder, which must be vacant at the end.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        yield unfinished
        if path.exists():
            path.rmdir()
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def create_store(
    path: Path, process: Process, attributes: dict[str, Any], count: int, harmonics: bool, shard: int = SHARD
) -> Group:
    """Create the arrays of a data set of `count` samples, all of them still to be filled.

    Args:
        path: folder, created if it does not exist.
        process: process of all samples.
        attributes: attributes of the store.
        count: number of samples.
        harmonics: whether the samples have harmonics.
        shard: samples per shard.
    """
    path.mkdir(parents=True, exist_ok=True)
    wavelengths = process.wavelengths_nm
    thinned = wavelengths[:: harmonic_stride(process)]
    sizes = {
        "byte": packed_bytes(),
        "channel": len(CHANNELS),
        "wavelength": len(wavelengths),
        "harmonic": shifted_basis(np.zeros(1, int), np.zeros(1, int)).shape[-1],
        "harmonic_wavelength": len(thinned),
    }
    group = zarr.create_group(path, attributes={**attributes, "made_with": f"metaspec-lab {version('metaspec-lab')}"})
    axes = {"wavelength": wavelengths} | ({"harmonic_wavelength": thinned} if harmonics else {})
    for name, values in axes.items():
        group.create_array(name, data=values, dimension_names=(name,), attributes={"units": "nm"})
    compressor = zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle="shuffle")
    for name, (dimensions, dtype, metadata) in PER_SAMPLE.items():
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


def harmonic_stride(process: Process) -> int:
    """Wavelengths of the process per wavelength of the harmonics."""
    return max(1, round(HARMONIC_STEP_NM / process.wavelength_step_nm))
