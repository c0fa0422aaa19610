"""System shared memory: regions that callers register, whose tensors are read and written without a copy through a socket.

See Triton's `protocol/extension_shared_memory.md`. A region is a file in /dev/shm, as POSIX `shm_open` makes it. It is opened,
checked and copied with ordinary reads and writes at each use, and never mapped into memory: one that its owner shortens or
removes meanwhile is an error of that request.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metaspec_server.core.errors import InvalidSharedMemory, UnknownRegion

__all__ = ["MAX_REGIONS", "Place", "Region", "SharedMemory"]

MAX_REGIONS = 1024
"""Largest number of regions that are registered at the same time."""

_LONGEST_NAME = 255  # characters of the name of a region or of an object
_LARGEST = 2**62  # bytes: sums of two offsets are far from the end of 64 bits


@dataclass(frozen=True)
class Region:
    """A registered region.

    Attributes:
        name: name that callers gave it.
        key: name of the shared memory object, as the caller gave it.
        offset: where the region begins in the object, in bytes.
        nbytes: size of the region in bytes.
        identity: device and inode of the object.
    """

    name: str
    key: str
    offset: int
    nbytes: int
    identity: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Place of a tensor in a region.

    Attributes:
        region: name of the region.
        offset: where it begins in the region, in bytes.
        nbytes: its size in bytes.
    """

    region: str
    offset: int
    nbytes: int

    def __str__(self) -> str:
        return f"bytes {self.offset} to {self.offset + self.nbytes - 1} of {self.region!r}"


class SharedMemory:
    """Regions by name.

    Args:
        folder: folder of the shared memory objects.
    """

    def __init__(self, folder: Path = Path("/dev/shm")) -> None:
        self._folder = folder
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, nbytes: int) -> None:
        """Register a region of an existing shared memory object.

        Args:
            name: name of the region.
            key: name of the object, as `shm_open` takes it: with or without a slash before it.
            offset: where the region begins in the object, in bytes.
            nbytes: size of the region in bytes.

        Raises:
            InvalidSharedMemory: the name is taken, the object cannot be used or is too small, or there are too many regions.
        """
        if not self._folder.is_dir():
            raise InvalidSharedMemory(f"this system has no shared memory in {self._folder}")
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidSharedMemory(
                f"the name of a region must have 1 to {_LONGEST_NAME} characters, got {len(name)}"
            )
        if name in self._regions:
            raise InvalidSharedMemory(f"the region {name!r} is registered already: unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidSharedMemory(f"at most {MAX_REGIONS} regions can be registered: unregister those not in use")
        if not (0 <= offset <= _LARGEST and 0 < nbytes <= _LARGEST):
            raise InvalidSharedMemory(
                f"the region {name!r} needs an offset >= 0 and a size > 0, got {offset}, {nbytes}"
            )
        with self._open(name, key, os.O_RDWR) as (_, status):
            identity = _check(name, key, status, offset + nbytes)
        self._regions[name] = Region(name, key, offset, nbytes, identity)

    def unregister(self, name: str) -> None:
        """Forget a region, or all regions if the name is empty. One that is not registered is no error."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def regions(self, name: str = "") -> list[Region]:
        """A region, or all regions if the name is empty.

        Raises:
            UnknownRegion: it is not registered.
        """
        return [self._find(name)] if name else list(self._regions.values())

    def check(self, place: Place) -> None:
        """Check that a place can be used now.

        Raises:
            UnknownRegion: its region is not registered.
            InvalidSharedMemory: it leaves its region, or the object was shortened, removed or replaced.
        """
        with self._used(place, os.O_RDWR):
            pass

    def check_apart(self, inputs: Mapping[str, Place], outputs: Mapping[str, Place]) -> None:
        """Check that no output of a request would overwrite another, or an input, through whichever regions they are named.

        Args:
            inputs: places of inputs, by name.
            outputs: places of outputs, by name.

        Raises:
            UnknownRegion: a region is not registered.
            InvalidSharedMemory: an output overlaps an input or another output.
        """
        taken = list(inputs.items())
        for name, place in outputs.items():
            for other, before in taken:
                if self._overlap(place, before):
                    raise InvalidSharedMemory(
                        f"{name}: its place in shared memory, {place}, overlaps that of {other}, {before}"
                    )
            taken.append((name, place))

    def read(self, place: Place) -> bytearray:
        """A copy of the bytes at a place. Raises as `check` does."""
        data = bytearray(place.nbytes)
        view = memoryview(data)
        with self._used(place, os.O_RDONLY) as (file, offset):
            done = 0
            while done < place.nbytes:
                count = os.preadv(file, [view[done:]], offset + done)
                if not count:
                    raise InvalidSharedMemory(
                        f"the shared memory of the region {place.region!r} was shortened meanwhile"
                    )
                done += count
        return data

    def write(self, place: Place, data: memoryview) -> None:
        """Write bytes to a place, at most as many as it has. Raises as `check` does."""
        with self._used(place, os.O_RDWR) as (file, offset):
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], offset + done)

    def _overlap(self, one: Place, other: Place) -> bool:
        first, second = self._find(one.region), self._find(other.region)
        start, begin = first.offset + one.offset, second.offset + other.offset
        return first.identity == second.identity and start < begin + other.nbytes and begin < start + one.nbytes

    def _find(self, name: str) -> Region:
        try:
            return self._regions[name]
        except KeyError:
            known = ", ".join(sorted(self._regions)[:10]) or "none"
            raise UnknownRegion(f"no shared memory region {name[:60]!r} is registered; there is {known}") from None

    @contextmanager
    def _used(self, place: Place, flags: int) -> Iterator[tuple[int, int]]:
        """The open object of a place, and where the place begins in it."""
        region = self._find(place.region)
        if place.offset + place.nbytes > region.nbytes:
            raise InvalidSharedMemory(
                f"the region {region.name!r} has {region.nbytes} bytes, expected offset + size to be at most that, got "
                f"{place.offset} + {place.nbytes}"
            )
        with self._open(region.name, region.key, flags) as (file, status):
            if (status.st_dev, status.st_ino) != region.identity:
                raise InvalidSharedMemory(
                    f"the shared memory {region.key!r} of the region {region.name!r} was replaced: register it again"
                )
            _check(region.name, region.key, status, region.offset + place.offset + place.nbytes)
            yield file, region.offset + place.offset

    @contextmanager
    def _open(self, name: str, key: str, flags: int) -> Iterator[tuple[int, os.stat_result]]:
        """The open object with this key, and its status."""
        path = self._folder / _file_name(key)
        try:
            # No links out of the folder, and no waiting for the other end of a pipe.
            file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise InvalidSharedMemory(
                f"the shared memory {key!r} of the region {name!r} cannot be opened: {reason}"
            ) from None
        try:
            yield file, os.fstat(file)
        except OSError as error:
            raise InvalidSharedMemory(f"the shared memory {key!r} of the region {name!r}: {error.strerror}") from None
        finally:
            os.close(file)


def _file_name(key: str) -> str:
    name = key.lstrip("/")
    if not name or name in (".", "..") or "/" in name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise InvalidSharedMemory(
            f"key must be the name of a POSIX shared memory object, without slashes within it, got {key[:60]!r}"
        )
    return name


def _check(name: str, key: str, status: os.stat_result, end: int) -> tuple[int, int]:
    """Check that an object is a file with at least `end` bytes; returns its device and inode."""
    if not stat.S_ISREG(status.st_mode):
        raise InvalidSharedMemory(f"{key!r}, the key of the region {name!r}, is not a shared memory object")
    if status.st_size < end:
        raise InvalidSharedMemory(
            f"the shared memory {key!r} of the region {name!r} has {status.st_size} bytes, expected at least {end}"
        )
    return status.st_dev, status.st_ino
