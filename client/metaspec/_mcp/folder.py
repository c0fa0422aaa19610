"""The working folder of the MCP server, and the structures that a tool is given: nothing outside the folder is touched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaspec._working_folder import SHOWN, WorkingFolder
from metaspec_contract.drawings import ENDINGS, read_drawing
from metaspec_contract.process import Process
from metaspec_contract.run_folder import DESIGNS
from metaspec_contract.structures import packed_bytes, unpack

BITS = "bits:"
"""How structures given as text begin: base64 of bit-packed binary structures follows."""

STRUCTURES = (
    f"Structures: a file in the working folder ({', '.join(ENDINGS)}), a run folder in it, or "
    f'"{BITS}" and base64 of packed bits, rows first, the first pixel in the highest bit, 1 = solid '
    "(2048 bytes for each structure of 128 x 128 pixels)."
)
"""What a tool says of its argument `structures`."""


@dataclass(frozen=True)
class Given:
    """Structures that a tool was given.

    Attributes:
        name: what they were given as, shortened.
        density: densities, float32 (N, y, x).
        rows: their rows in the file, (N,).
    """

    name: str
    density: NDArray[np.float32]
    rows: list[int]


class Folder(WorkingFolder):
    """A working folder whose files tools read and write; see `WorkingFolder`."""

    def new_file(self, name: str, field: str, *endings: str) -> Path:
        """The path of a file to write, in an existing folder.

        Raises:
            ValueError: it leads out of the folder, has another ending, is a folder, or is in none.
        """
        path = self.inside(name, field)
        if path.suffix not in endings:
            raise ValueError(f"{field} must end in {' or '.join(endings)}, got {name!r:.{SHOWN}}")
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{field} must be a file in an existing folder, got {name!r:.{SHOWN}}")
        return path

    def read(self, structures: str, rows: Sequence[int] | None, process: Process, most: int) -> Given:
        """The structures of an argument, on the pixels of a process.

        Args:
            structures: file, run folder, or text, see `STRUCTURES`.
            rows: rows to take; all by default.
            process: device of the model.
            most: largest number of structures.

        Raises:
            ValueError: they cannot be read, a row does not exist, or they are too many.
        """
        if structures.startswith(BITS):
            found, name = _unpacked(structures[len(BITS) :], process.structure_shape), f"{structures[:16]}..."
        else:
            path = self.inside(structures, "structures")
            if path.is_dir():
                path = self.inside(str(path / DESIGNS), "structures")
            found, name = read_drawing(path).densities(process), self.relative(path)
        chosen = list(range(len(found))) if rows is None else list(rows)
        if wrong := [row for row in chosen if not 0 <= row < len(found)]:
            raise ValueError(f"rows must be from 0 to {len(found) - 1}, the rows of {name}, got {wrong[0]}")
        if not 0 < len(chosen) <= most:
            raise ValueError(
                f"structures must be 1 to {most}, the limit of this server, got {len(chosen)}: choose some by rows"
            )
        return Given(name, found[chosen], chosen)


def _unpacked(text: str, pixels: tuple[int, int]) -> NDArray[np.float32]:
    """Structures of base64 text, float32 (N, y, x)."""
    try:
        content = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'structures must be base64 after "{BITS}": {error}') from None
    each = packed_bytes(pixels)
    if not content or len(content) % each:
        raise ValueError(
            f"structures must be {each} bytes for each structure of {pixels[0]} x {pixels[1]} pixels, got {len(content)}"
        )
    return unpack(np.frombuffer(content, np.uint8).reshape(-1, each), pixels).astype(np.float32)
