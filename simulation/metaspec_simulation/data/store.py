"""The layout of a data set on disk: a Zarr v3 store that xarray reads.

Along `sample` every array is cut into shards, one file each, so that workers who write whole shards never touch one file. All
numbers are integers in steps of `metaspec_simulation.data.labels` and `levels`, which xarray scales back by itself. Each file
ends in a checksum. Stores of schema version 2 are read, too: their structures are bit-packed, their harmonics end at the
seventh, and they say neither whether a sample is flagged nor how far its light had decayed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, StrictBool, ValidationError, model_validator

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import CompleteProcess, Process
from metaspec_contract.structures import unpack
from metaspec_contract.validation import first_error
from metaspec_simulation.data import labels
from metaspec_simulation.data.families import SOURCES, SPLITS
from metaspec_simulation.data.levels import LEVELS
from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.physics.farfield import harmonic_orders

READABLE = (2, SCHEMA_VERSION)
"""Schema versions that are read."""

SHARD = 32
"""Samples per shard: what a worker that is killed costs, some ten minutes at 80 cells."""

Group: TypeAlias = Any  # a zarr.Group; zarr types its members as array or group, whatever the name

PER_SAMPLE: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "structure": (
        ("y", "x"),
        "uint8",
        {"long_name": "density, 0 = void, 1 = solid", "scale_factor": 1 / LEVELS},
    ),
    "spectra": (
        ("channel", "wavelength"),
        "int16",
        {"long_name": "power in the detector / incident power", "scale_factor": labels.STEP},
    ),
    "harmonics": (
        ("harmonic", "harmonic_wavelength"),
        "int16",
        {
            "long_name": "Fourier coefficients of the R efficiency under translation",
            "scale_factor": labels.HARMONIC_STEP,
        },
    ),
    "orders": (
        ("polarisation", "component", "part", "order", "order_wavelength"),
        "int16",
        {"long_name": "Fourier orders of E under the layer / incident amplitude", "scale_factor": labels.ORDER_STEP},
    ),
    "family": ((), "uint8", {"flag_meanings": " ".join(SOURCES)}),
    "split": ((), "uint8", {"flag_meanings": " ".join(SPLITS)}),
    "energy_error": ((), "float32", {"long_name": "rms over wavelengths of reflection + transmission - 1"}),
    "remaining": ((), "float32", {"long_name": "energy in the grid at the end / its largest"}),
    "duration": ((), "float32", {"long_name": "simulated time", "units": "um/c"}),
    "flag": (
        (),
        "uint8",
        {"long_name": "1 where the energy error is above the bound that the attribute energy_bound states"},
    ),
    "complete": ((), "uint8", {"long_name": "1 once the sample is finished"}),
}
"""Arrays with one row per sample: name, further dimensions, dtype, attributes. `complete` comes last and is written last."""

# Arrays that a data set has both of or none.
_HARMONIC = ("harmonics", "harmonic_wavelength")
_ORDERS = ("orders", "order_wavelength")
_SINCE_3 = ("remaining", "duration", "flag")


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
        axes["harmonic_wavelength"] = expected[labels.thinned(attributes.process)]
    if "orders" in group:
        axes["order_wavelength"] = expected[labels.thinned(attributes.process, labels.ORDERS_NM)]
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
        ValueError: no MetaSpec data set at `path`, one of another schema version, or one that lacks an array or whose
            metadata are damaged.
    """
    for file in (path / "zarr.json", *path.glob("*/zarr.json")):
        _require_json(file)
    try:
        group = zarr.open_group(path, mode=mode, use_consolidated=False)
    except (FileNotFoundError, NotADirectoryError, zarr.errors.GroupNotFoundError) as error:
        why = "it holds no Zarr group" if path.exists() else "there is no such folder"
        raise ValueError(f"{path} is not a MetaSpec data set: {why}") from error
    found = group.attrs.get("schema_version")
    if found not in READABLE:
        known = " or ".join(map(str, READABLE))
        raise ValueError(f"{path} is not a MetaSpec data set of schema version {known}, it says {found}")
    not_required = {*_SINCE_3} if found < SCHEMA_VERSION else set()
    for both in (_HARMONIC, _ORDERS):
        if not any(name in group for name in both):
            not_required |= {*both}
    for name in (*PER_SAMPLE, "wavelength", "harmonic_wavelength", "order_wavelength"):
        if name not in group and name not in not_required:
            raise ValueError(f"{path}: array {name} is missing")
    return group


def read_levels(group: Group, rows: slice) -> NDArray[np.uint8]:
    """Structures of some samples as levels, uint8 (n, y, x)."""
    kept = group["structure"][rows]
    levels: NDArray[np.uint8] = np.uint8(LEVELS) * unpack(kept) if kept.ndim == 2 else kept
    return levels


def _require_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError:
        raise ValueError(f"{file} is empty or damaged: restore it, or make the data set in another folder") from None


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
        _remove(unfinished)


def _remove(folder: Path) -> None:
    """Remove a folder, in which threads of zarr may still be writing: repeated until nothing comes back."""
    for _ in range(50):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def create_store(
    path: Path,
    process: Process,
    attributes: dict[str, Any],
    count: int,
    harmonics: bool,
    orders: bool = False,
    shard: int = SHARD,
) -> Group:
    """Create the arrays of a data set of `count` samples, all of them still to be filled.

    Args:
        path: folder, created if it does not exist.
        process: process of all samples.
        attributes: attributes of the store.
        count: number of samples.
        harmonics: whether the samples have harmonics.
        orders: whether they have the orders under the layer, too.
        shard: samples per shard.
    """
    path.mkdir(parents=True, exist_ok=True)
    wavelengths = process.wavelengths_nm
    axes = {"wavelength": (wavelengths, "nm")}
    if harmonics:
        axes["harmonic_wavelength"] = wavelengths[labels.thinned(process)], "nm"
    if orders:
        axes["order_wavelength"] = wavelengths[labels.thinned(process, labels.ORDERS_NM)], "nm"
    sizes = {name: len(values) for name, (values, _) in axes.items()} | {
        "y": process.pixels,
        "x": process.pixels,
        "channel": len(CHANNELS),
        "harmonic": 2 * len(harmonic_orders()[0]) - 1,
        "polarisation": 2,
        "component": 2,
        "part": 2,
        "order": len(labels.order_numbers(process)[0]),
    }
    group = zarr.create_group(path, attributes={**attributes, "made_with": f"metaspec-lab {version('metaspec-lab')}"})
    for name, (values, unit) in axes.items():
        group.create_array(name, data=values, dimension_names=(name,), attributes={"units": unit})
    left_out = {*(() if harmonics else _HARMONIC), *(() if orders else _ORDERS)}
    for name, (dimensions, dtype, metadata) in PER_SAMPLE.items():
        if name in left_out:
            continue
        shape = tuple(sizes[dimension] for dimension in dimensions)
        group.create_array(
            name,
            shape=(count, *shape),
            chunks=(shard, *shape),
            dtype=dtype,
            compressors=[
                zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle=_SHUFFLE.get(name, "shuffle")),
                zarr.codecs.Crc32cCodec(),
            ],
            dimension_names=("sample", *dimensions),
            attributes=metadata,
        )
    consolidate(path)
    return group


_SHUFFLE: dict[str, Literal["bitshuffle"]] = {
    "harmonics": "bitshuffle",  # 12 % smaller
    "structure": "bitshuffle",  # 3 % smaller, and ten times faster
}


def consolidate(path: Path) -> None:
    """Repeat the metadata of all arrays in those of the group, where xarray looks for them first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(path)


def whole_chunks() -> Any:
    """A context in which chunks are written even if they hold zeros only, so that one that is missing has been lost."""
    return zarr.config.set({"array.write_empty_chunks": True})


def chunk_file(path: Path, array: Any, shard: int) -> Path:
    """File of one shard of an array.

    Args:
        path: folder of the data set.
        array: zarr array with one row per sample.
        shard: number of the shard.
    """
    return path.joinpath(array.basename, "c", str(shard), *["0"] * (array.ndim - 1))
