"""Spectra of a file of structures, larger than memory if need be, as a file: what `metaspec predict` does."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec._spectra import Spectra
from metaspec._surrogate.arrays import check_structures
from metaspec._surrogate.client import Surrogate
from metaspec_contract.files import replacing

_CHUNK = 256  # structures between two writes


def open_structures(path: Path, pixels: tuple[int, int]) -> NDArray[Any]:
    """The structures of a .npy file, mapped into memory and checked.

    Args:
        path: of the file: (y, x), (N, y, x) or (N, 1, y, x), bool, integer or float, values from 0 to 1.
        pixels: rows and columns of a structure, (y, x).

    Returns:
        (N, 1, y, x), of the file's dtype.

    Raises:
        ValueError: not a .npy file of numbers, or no structures in it.
        InvalidStructure: the numbers cannot be structures.
    """
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy file of structures: {error}") from None
    structures = check_structures(mapped, pixels)
    if not len(structures):
        raise ValueError(f"{path} holds no structures: its shape is {mapped.shape}")
    return structures


def predict_to_file(
    surrogate: Surrogate, structures: NDArray[Any], path: Path, advance: Callable[[int], object]
) -> Spectra:
    """Predict structures into a .npy file, float32 (N, channels, wavelengths).

    If the file exists, the prediction goes on where it ends, after two of its spectra have been compared with fresh ones.

    Args:
        surrogate: to ask.
        structures: (N, 1, y, x), checked; they may be mapped from a file.
        path: of the file. Until all is predicted it is shorter than its header says, and numpy refuses to load it.
        advance: called with a number of structures, again and again, whenever so many more are in the file.

    Returns:
        The spectra, mapped from the file.

    Raises:
        ValueError: what is in the file is not of these structures and this model, or another version of the model took over.
        MetaSpecError: the server cannot be asked; what is finished stays in the file.
    """
    info = surrogate.metadata()
    header, row = _header((len(structures), *info.spectra_shape)), 4 * info.spectra_shape[0] * info.spectra_shape[1]
    with path.open("a+b") as file:
        if file.tell() == 0:
            file.write(header)
        file.seek(0)
        started = file.read(len(header)) == header
        done = (file.seek(0, os.SEEK_END) - len(header)) // row
        if not started or not all(_agrees(surrogate, structures, path, n, len(header)) for n in {0, done - 1} if done):
            raise ValueError(f"{path} has spectra of other structures or of another model: delete it to start anew")
        file.truncate(len(header) + done * row)
        advance(done)
        for start in range(done, len(structures), _CHUNK):
            spectra = surrogate.predict(structures[start : start + _CHUNK])
            if spectra.version != info.version:
                raise ValueError(
                    f"version {spectra.version} of {info.name} took over from version {info.version}: delete {path} and "
                    "repeat the command"
                )
            file.write(spectra.values.tobytes())
            file.flush()
            advance(len(spectra))
    values = np.lib.format.open_memmap(path, mode="r")
    return Spectra(values, info.wavelengths_nm, info.channels, info.name, info.version)


def colour_efficiency(spectra: Spectra) -> NDArray[np.float32]:
    """Efficiency of red, green (G1 + G2) and blue, (N, 3), of spectra that may be larger than memory."""
    parts = [spectra[start : start + _CHUNK].colour_efficiency() for start in range(0, len(spectra), _CHUNK)]
    return np.concatenate(parts)


def write_csv(spectra: Spectra, path: Path) -> None:
    """Write spectra as a table: a line for each structure and wavelength, a column for each channel."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        file.write(",".join(["structure", "wavelength_nm", *spectra.channels]) + "\n")
        for n, values in enumerate(spectra.values):
            numbers = np.column_stack([np.full(values.shape[1], n), spectra.wavelengths_nm, values.T])
            np.savetxt(file, numbers, fmt=["%d", "%.10g", *["%.7g"] * len(values)], delimiter=",")


def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of float32 begins with."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _agrees(surrogate: Surrogate, structures: NDArray[Any], path: Path, n: int, offset: int) -> bool:
    """Whether spectrum n of a file is that of structure n, but for the rounding of another batch or precision."""
    fresh = surrogate.predict(structures[n]).values[0]
    found = np.fromfile(path, "<f4", fresh.size, offset=offset + n * fresh.nbytes).reshape(fresh.shape)
    return bool(np.allclose(found, fresh, rtol=0, atol=0.005))
