"""Files that others wrote: read as plain numbers, never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[np.generic]:
    """The array of a .npy file.

    Args:
        path: the file.
        mmap_mode: "r" maps the file instead of reading it.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but one array of plain numbers.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(f"{path} is not a .npy file of plain numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is not a .npy file of plain numbers: it is an archive of several arrays")
    return array
