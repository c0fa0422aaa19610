"""The working folder of the MCP server, and the structures that a tool is given: nothing outside the folder is touched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

_SHOWN = 60  # characters of a value in a message


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


class Folder:
    """A working folder. Names are relative to it, or absolute and inside it, after symbolic links have been followed.

    Args:
        path: an existing folder.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ValueError(f"--folder must be an existing folder, got {path}")
        self.path = path.resolve()

    def inside(self, name: str, field: str) -> Path:
        """The path of a name, which need not exist.

        Raises:
            ValueError: it is empty, or leads out of the folder, itself or by a symbolic link.
        """
        if not name.strip() or "\0" in name:
            raise ValueError(f"{field} must name a file or folder in the working folder, got {name!r:.{_SHOWN}}")
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path):
            raise ValueError(f"{field} must lie in the working folder {self.path}, got {name!r:.{_SHOWN}}")
        return path

    def new_file(self, name: str, field: str, *endings: str) -> Path:
        """The path of a file to write, in an existing folder.

        Raises:
            ValueError: it leads out of the folder, has another ending, is a folder, or is in none.
        """
        path = self.inside(name, field)
        if path.suffix not in endings:
            raise ValueError(f"{field} must end in {' or '.join(endings)}, got {name!r:.{_SHOWN}}")
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{field} must be a file in an existing folder, got {name!r:.{_SHOWN}}")
        return path

    def run_folder(self, name: str, field: str) -> Path:
        """The path of a run folder, which need not exist, without links out of the working folder in it.

        Raises:
            ValueError: it leads out of the folder, is the folder itself, or holds a symbolic link that leads out.
        """
        path = self.inside(name, field)
        if path == self.path:
            raise ValueError(f"{field} must be a folder inside the working folder, got {name!r:.{_SHOWN}}")
        for entry in path.rglob("*") if path.is_dir() else ():
            if entry.is_symlink() and not entry.resolve().is_relative_to(self.path):
                raise ValueError(f"{field}: {entry.relative_to(self.path)} is a link out of the working folder")
        return path

    def relative(self, path: Path) -> str:
        """A path as it is given to the client."""
        return path.relative_to(self.path).as_posix()

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
