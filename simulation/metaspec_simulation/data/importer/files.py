"""Raw files of simulations made elsewhere: which belong together, and their rows in MetaSpec's convention.

A pair is `binary_dataset_<pixels>_<k>.npy`, structures (N, 1, pixels, pixels) in {0, 1} or {0, 255}, and
`spectra_latest_<k>.npy`, floats (N, 4, W), (N, 2, 2, W), or (N, 3, W) with the mean of G1 and G2 as G.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS, COLOURS
from metaspec_contract.files import read_array, stamp
from metaspec_contract.process import Process

BLOCK = 1024
"""Rows that are read, and written as one chunk, at a time."""

_STRUCTURES = re.compile(r"binary_dataset_(\d+)_(\w+)\.npy")
_SPECTRA = re.compile(r"spectra_latest_(\w+)\.npy")
_NEARLY = re.compile(r".*(binary|dataset|structure|spectra|spectrum).*\.np[yz].*", re.IGNORECASE)


class Axes(StrEnum):
    """Order of a structure's axes: [y, x] as MetaSpec's, row = y, or [x, y]."""

    YX = "yx"
    XY = "xy"


@dataclass(frozen=True)
class Convention:
    """How raw files number detectors and axes, and the unit of their spectra. The default is MetaSpec's own convention.

    A detector is named by its place in the cell: x and y both in the first half of the period are R, x in the second and y in
    the first G1, x in the first and y in the second G2, both in the second B.

    Attributes:
        order: detectors in the order of the channels, row by row for channels (2, 2); R, G and B for three channels. None for
            the order R, G1, G2, B or R, G, B.
        axes: order of the structures' axes. Detectors keep their names whatever it is: they are named by x and y.
        percent: whether the spectra are in percent instead of fractions.
    """

    order: tuple[str, ...] | None = None
    axes: Axes = Axes.YX
    percent: bool = False

    def channels(self, count: int) -> list[int]:
        """Where each of R, G1, G2, B, or of R, G, B, is among the channels of the files.

        Args:
            count: number of channels of the files, 3 or 4.

        Raises:
            ValueError: `order` names another number of channels.
        """
        names = CHANNELS if count == len(CHANNELS) else COLOURS
        order = self.order or names
        if len(order) != count:
            raise ValueError(f"--order names {len(order)} channels, {','.join(order)}, but the files have {count}")
        return [order.index(name) for name in names]


def read_order(text: str) -> tuple[str, ...]:
    """Detectors from a comma-separated list, such as "R,G2,G1,B".

    Raises:
        ValueError: it is no permutation of R, G1, G2, B or of R, G, B.
    """
    order = tuple(name.strip() for name in text.split(","))
    if sorted(order) not in (sorted(CHANNELS), sorted(COLOURS)):
        raise ValueError(f"--order must name each of R,G1,G2,B once, or each of R,G,B, got {text!r}")
    return order


@dataclass(frozen=True)
class Pair:
    """A file of structures and the file of their spectra.

    Attributes:
        structures: file of structures.
        spectra: file of spectra.
        rows: number of rows in each file.
        channels: number of channels, 3 or 4.
        convention: convention of the files.
        stamps: inode, size and modification time of both files when they were found.
    """

    structures: Path
    spectra: Path
    rows: int
    channels: int
    convention: Convention
    stamps: tuple[tuple[int, int, int], ...]

    def require_unchanged(self) -> None:
        """Refuse files that have changed since they were found: what was checked would not be what is written.

        Raises:
            ValueError: one has changed; it is named.
        """
        for file, before in zip((self.structures, self.spectra), self.stamps, strict=True):
            if stamp(file) != before:
                raise ValueError(
                    f"{file.name} has changed during the import: import it when nothing writes to it any more"
                )

    @property
    def name(self) -> str:
        """Name of the pair: that of the file of structures."""
        return self.structures.name

    def blocks(self) -> Iterator[tuple[NDArray[np.generic], NDArray[np.float32]]]:
        """Consecutive rows as `read` gives them, `BLOCK` at a time."""
        for start in range(0, self.rows, BLOCK):
            yield self.read(slice(start, start + BLOCK))

    def read(self, rows: slice) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
        """Some rows of structures [y, x] and spectra as `read_spectra` gives them."""
        return self._read_structures(rows), self.read_spectra(rows)

    def _read_structures(self, rows: slice) -> NDArray[np.generic]:
        # Mapped anew for each block: pages of the previous one no longer count as this process's memory.
        array = np.array(read_array(self.structures, mmap_mode="r")[rows])
        array = array.reshape(-1, *array.shape[-2:])
        return array.swapaxes(-1, -2) if self.convention.axes == Axes.XY else array

    def read_spectra(self, rows: slice) -> NDArray[np.float32]:
        """Spectra of R, G1, G2, B, or of R, G, B, for some rows: fractions, signs as in the file, float32 (n, 3 or 4, W)."""
        array = read_array(self.spectra, mmap_mode="r")[rows].astype(np.float32)
        spectra = array.reshape(len(array), self.channels, array.shape[-1])[:, self.convention.channels(self.channels)]
        return spectra / np.float32(100) if self.convention.percent else spectra


def find_pairs(folder: Path, process: Process, convention: Convention | None = None) -> list[Pair]:
    """The pairs of files in a folder; their names and shapes are checked, their values are not read.

    Args:
        folder: folder of the files.
        process: process that was simulated; its wavelengths are those of the spectra.
        convention: convention of the files; MetaSpec's own by default.

    Raises:
        ValueError: there is no pair, a file lacks its partner, is misnamed, or has a wrong shape or dtype.
    """
    structures, spectra = _sort(folder, process.pixels)
    if not structures and not spectra:
        raise ValueError(f"{folder} holds no files binary_dataset_{process.pixels}_<k>.npy and spectra_latest_<k>.npy")
    for k, path in structures.items():
        if k not in spectra:
            raise ValueError(f"{path.name} has no partner spectra_latest_{k}.npy")
    for k, path in spectra.items():
        if k not in structures:
            raise ValueError(f"{path.name} has no partner binary_dataset_{process.pixels}_{k}.npy")
    pairs = [_pair(path, spectra[k], process, convention or Convention()) for k, path in structures.items()]
    by_channels = {pair.channels: pair.spectra.name for pair in pairs}
    if len(by_channels) > 1:
        raise ValueError(
            f"{by_channels[3]} has 3 channels and {by_channels[4]} has 4: import them into separate data sets"
        )
    return pairs


def _sort(folder: Path, pixels: int) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files of structures and of spectra by <k>; refuses what looks like one of them but is not named so."""
    structures: dict[str, Path] = {}
    spectra: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npy" and not path.is_file():  # opening a pipe would wait for its writer
            raise ValueError(f"{path.name} is no regular file: move it out of the folder")
        if found := _STRUCTURES.fullmatch(path.name):
            if int(found[1]) != pixels:
                raise ValueError(
                    f"{path.name} is of structures of {found[1]} pixels, but the process has {pixels}: give its own with "
                    "--process"
                )
            structures[found[2]] = path
        elif found := _SPECTRA.fullmatch(path.name):
            spectra[found[1]] = path
        elif _NEARLY.fullmatch(path.name) and not path.name.startswith("."):
            raise ValueError(
                f"{path.name} is named neither binary_dataset_{pixels}_<k>.npy nor spectra_latest_<k>.npy: rename it, or "
                "move it out of the folder"
            )
    return structures, spectra


def _pair(path: Path, partner: Path, process: Process, convention: Convention) -> Pair:
    structures, spectra = (read_array(file, mmap_mode="r") for file in (path, partner))
    shape = process.structure_shape
    if structures.shape[1:] not in ((1, *shape), shape) or structures.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"{path.name}: expected uint8 of shape (N, 1, {shape[0]}, {shape[1]}), got {_described(structures)}"
        )
    wavelengths = len(process.wavelengths_nm)
    if spectra.shape[1:] not in ((3, wavelengths), (4, wavelengths), (2, 2, wavelengths)) or spectra.dtype.kind != "f":
        raise ValueError(
            f"{partner.name}: expected floats of shape (N, 3, {wavelengths}), (N, 4, {wavelengths}) or "
            f"(N, 2, 2, {wavelengths}), for the process has {wavelengths} wavelengths from {process.wavelength_min_nm:g} to "
            f"{process.wavelength_max_nm:g} nm, got {_described(spectra)}"
        )
    if len(structures) != len(spectra):
        raise ValueError(f"{path.name} has {len(structures)} rows but {partner.name} has {len(spectra)}")
    channels = 3 if spectra.shape[1] == 3 else 4
    convention.channels(channels)
    return Pair(path, partner, len(structures), channels, convention, (stamp(path), stamp(partner)))


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
