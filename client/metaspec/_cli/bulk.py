"""`metaspec predict`: from a file of structures to a file of spectra, both possibly larger than memory."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec._structures import check_structures
from metaspec_contract.files import read_array, replacing, sync_folder
from metaspec_contract.source import Source
from metaspec_contract.spectra import Spectra

_CHUNK = 256  # structures between two writes
_SLOW_CHUNK = 16  # of a solver, which takes seconds for each


def open_structures(path: Path, pixels: tuple[int, int]) -> NDArray[Any]:
    """The structures of a .npy file, memory-mapped and checked.

    Args:
        path: path of the file: (y, x), (N, y, x) or (N, 1, y, x), bool, integer or float, values from 0 to 1.
        pixels: rows and columns of a structure.

    Returns:
        (N, 1, y, x), dtype of the file.

    Raises:
        ValueError: not a .npy file of numbers, or without structures.
        InvalidStructure: the array is not one of structures.
    """
    mapped = read_array(path, mmap_mode="r")
    structures = check_structures(mapped, pixels)
    if not len(structures):
        raise ValueError(f"{path} holds no structures: its shape is {mapped.shape}")
    return structures


def predict_to_file(source: Source, structures: NDArray[Any], path: Path, advance: Callable[[int], object]) -> Spectra:
    """Write the spectra of structures into a .npy file, float32 (N, channels, wavelengths).

    An existing file is resumed, after two of its spectra have been compared with new ones.

    Args:
        source: source of the spectra.
        structures: checked structures (N, 1, y, x), possibly memory-mapped.
        path: path of the file. Until complete it is shorter than its header states, so that numpy refuses to load it.
        advance: callback after each write, with the number of structures written.

    Returns:
        The spectra, memory-mapped from the file.

    Raises:
        ValueError: the file holds spectra of other structures or another model, or a new version of the model took over.
        SourceError: the source failed; finished spectra stay in the file.
    """
    info = source.metadata()
    chunk = _SLOW_CHUNK if info.simulated else _CHUNK
    header, row = _header((len(structures), *info.spectra_shape)), 4 * info.spectra_shape[0] * info.spectra_shape[1]
    size = path.stat().st_size if path.exists() else 0
    done = max(size - len(header), 0) // row
    if size:
        with path.open("rb") as earlier:
            started = earlier.read(len(header)) == header
        if not started or not all(_agrees(source, structures, path, n, len(header)) for n in {0, done - 1} if done):
            raise ValueError(f"{path} holds spectra of other structures or another model: delete it to start over")

    def parts() -> Iterator[Spectra]:
        for start in range(done, len(structures), chunk):
            spectra = source.predict(structures[start : start + chunk])
            if spectra.version != info.version:
                raise ValueError(
                    f"version {spectra.version} of {info.name} took over from version {info.version}: delete {path} and "
                    "repeat the command"
                )
            yield spectra

    advance(done)
    following = parts()
    first = list(islice(following, 1))  # before there is a file: what the source refuses leaves none
    with path.open("ab") as file:
        if not size:
            file.write(header)
        file.truncate(len(header) + done * row)
        for spectra in chain(first, following):
            file.write(spectra.values.tobytes())
            file.flush()
            advance(len(spectra))
        os.fsync(file.fileno())
    return Spectra.of_model(read_array(path, mmap_mode="r"), info)


def finish(partial: Path, path: Path) -> None:
    """Give a complete file of spectra its final name."""
    partial.replace(path)
    sync_folder(path.absolute().parent)


def colour_efficiency(spectra: Spectra) -> NDArray[np.float32]:
    """Efficiency of the colours that the wavelengths reach, (N, colours); the spectra may be larger than memory."""
    starts, colours = range(0, len(spectra), _CHUNK), spectra.colours
    return np.concatenate([spectra[start : start + _CHUNK].colour_efficiency(colours) for start in starts])


def write_csv(spectra: Spectra, path: Path) -> None:
    """Write spectra as a table with a row for each structure and wavelength and a column for each channel."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        file.write(",".join(["structure", "wavelength_nm", *spectra.channels]) + "\n")
        for n, values in enumerate(spectra.values):
            numbers = np.column_stack([np.full(values.shape[1], n), spectra.wavelengths_nm, values.T])
            np.savetxt(file, numbers, fmt=["%d", "%.10g", *["%.7g"] * len(values)], delimiter=",")


def _header(shape: tuple[int, ...]) -> bytes:
    """Header of a .npy file of float32."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _agrees(source: Source, structures: NDArray[Any], path: Path, n: int, offset: int) -> bool:
    """Whether spectrum n of a file is that of structure n, up to the rounding of another batch or precision of a model."""
    spectra = source.predict(structures[n])
    fresh, tolerance = spectra.values[0], 1e-5 if spectra.simulated else 0.005
    found = np.fromfile(path, "<f4", fresh.size, offset=offset + n * fresh.nbytes).reshape(fresh.shape)
    return bool(np.allclose(found, fresh, rtol=0, atol=tolerance))
