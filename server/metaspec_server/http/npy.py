"""Heads of `.npy` files: dtype and shape, read and checked before the data. Pickled objects and structured dtypes are refused.

The format is that of `numpy.lib.format`: versions 1 to 3, a Python dictionary of descr, fortran_order and shape. The dictionary
is matched, not evaluated: a head cannot make the interpreter do anything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_server.http.request_body import RequestBody

__all__ = ["MAGIC", "InvalidNpy", "NpyHead", "read_head"]

MAGIC = b"\x93NUMPY"
"""First bytes of every `.npy` file."""

_MAX_HEAD = 4096  # bytes; those of numeric arrays have 118
_MAX_AXES = 32
_MAX_DIGITS = 18
_LONGEST_DTYPE = 20  # characters
_SHOWN = 60  # characters of a head in a message

_ENTRY = r"""\s*['"](?:descr|fortran_order|shape)['"]\s*:\s*(?:['"][^'"]*['"]|True|False|\([\d,\sL]*\))\s*"""
_HEAD = re.compile(rf"\s*\{{{_ENTRY},{_ENTRY},{_ENTRY}(?:,\s*)?\}}\s*", re.ASCII)
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([^'"]*)['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d,\sL]*)\)""")


class InvalidNpy(ValueError):
    """Bytes that are not a `.npy` file of numbers. The message states what was expected, and what came."""


@dataclass(frozen=True)
class NpyHead:
    """Head of a `.npy` file.

    Attributes:
        dtype: dtype of the elements, of fixed size and without Python objects.
        shape: shape of the array.
        fortran_order: whether the first axis varies fastest.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytearray) -> NDArray[Any]:
        """The array, without a copy.

        Raises:
            InvalidNpy: the data are shorter than the head states.
        """
        if len(data) < self.nbytes:
            raise InvalidNpy(f"its head states {self.nbytes} bytes of data, but there are {len(data)}")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran_order else "C")


async def read_head(body: RequestBody) -> NpyHead:
    """Read the head of a `.npy` file, up to its data.

    Raises:
        InvalidNpy: the next bytes are no such head.
    """
    start = bytes(await body.read(len(MAGIC) + 2))
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 2:
        raise InvalidNpy(f"it must start with {MAGIC!r}, got {start[: len(MAGIC)]!r}")
    version = start[-2]
    if version not in (1, 2, 3):
        raise InvalidNpy(f"version must be 1, 2 or 3, got {version}")
    width = 2 if version == 1 else 4
    length = int.from_bytes(await body.read(width), "little")
    if length > _MAX_HEAD:
        raise InvalidNpy(f"its head must have at most {_MAX_HEAD} bytes, got {length}")
    text = bytes(await body.read(length)).decode("latin1")
    if len(text) < length:
        raise InvalidNpy(f"its head has {len(text)} of {length} bytes")
    return _parse(text)


def _parse(text: str) -> NpyHead:
    descr, order, shape = (pattern.findall(text) for pattern in (_DESCR, _ORDER, _SHAPE))
    if not _HEAD.fullmatch(text) or not len(descr) == len(order) == len(shape) == 1:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise InvalidNpy(f"its head must be a dictionary of descr (one dtype), fortran_order and shape, got {shown!r}")
    try:
        dtype = np.dtype(descr[0][:_LONGEST_DTYPE])
    except (TypeError, ValueError, SyntaxError, OverflowError, MemoryError):
        raise InvalidNpy(f"descr must be a dtype, got {descr[0][:_SHOWN]!r}") from None
    if dtype.hasobject:
        raise InvalidNpy("its elements are pickled Python objects, which are refused: loading them could run code")
    if dtype.names is not None or dtype.subdtype is not None or not dtype.itemsize:
        raise InvalidNpy(f"descr must be a dtype of numbers, got {descr[0][:_SHOWN]!r}")
    axes = [axis.strip().removesuffix("L") for axis in shape[0].split(",")]
    if axes[-1] == "":
        axes.pop()
    if len(axes) > _MAX_AXES or not all(axis.isdecimal() and len(axis) <= _MAX_DIGITS for axis in axes):
        shown = shape[0] if len(shape[0]) <= _SHOWN else f"{shape[0][:_SHOWN]}..."
        raise InvalidNpy(f"shape must be up to {_MAX_AXES} whole numbers, got ({shown})")
    return NpyHead(dtype, tuple(map(int, axes)), order[0] == "True")
