"""The model repository on disk, in Triton's layout.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx

Everything that the server knows about a model comes from its file: the ONNX graph names the tensors, and its `metadata_props`
hold the metadata (`metaspec_contract.model`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from metaspec_contract.files import stamp
from metaspec_server.blocking import PATIENCE, read_file, require_regular, within

__all__ = ["Contents", "ModelFile", "NothingToServe", "RepositoryError", "Unreadable", "find_models", "read_repository"]

_OF_FILE_SYSTEMS = ("lost+found",)  # folders in the root of a volume
_READINGS = 5  # of a repository that changes all the time
_LARGEST = 2**31 - 1  # bytes of a model: the limit of ONNX, as of every protocol buffer


class RepositoryError(Exception):
    """A model repository, or a model in it, cannot be served. The message names the file and the reason.

    Args:
        path: file or folder.
        reason: reason why it cannot be served.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class Unreadable(RepositoryError):
    """A file cannot be read. That is no property of the model, and may pass: it is tried again."""


class NothingToServe(Exception):
    """No model of a repository can be served. The message holds the first reason."""


@dataclass(frozen=True)
class ModelFile:
    """One version of a model on disk.

    Attributes:
        name: name of the model's folder.
        version: number of the version, that of its folder; at least 1.
        path: path of the ONNX file.
        stamp: inode, size and modification time of the file; None where there is a problem.
        problem: reason why the file cannot be loaded; None if that has to be tried.
    """

    name: str
    version: int
    path: Path
    stamp: tuple[int, ...] | None
    problem: str | None = None

    def read(self) -> bytes:
        """Content of the file.

        Raises:
            Unreadable: it cannot be read (now).
        """
        try:
            return read_file(self.path, _LARGEST)
        except OSError as error:
            raise Unreadable(self.path, _unreadable(error)) from None


@dataclass(frozen=True)
class Contents:
    """What a repository holds.

    Attributes:
        models: versions of each model, newest first, by name. A model may have none.
        unreadable: for each model whose folder cannot be read, the reason.
    """

    models: dict[str, list[ModelFile]]
    unreadable: dict[str, str]


def read_repository(repository: Path) -> Contents:
    """What a repository holds now. Hidden folders, and those that a file system has for itself, are no models.

    A folder that does not answer, as of a mount that is gone, is waited for once, and is unreadable from then on until it does.
    A repository that is replaced while it is read, as by another that is moved to its place, is read again: what was found
    would be a part of both.

    Raises:
        RepositoryError: there is no such folder, or it cannot be read.
    """
    try:
        for _ in range(_READINGS):
            before = within(PATIENCE, stamp, repository)
            contents = _contents(repository, within(PATIENCE, os.listdir, repository))
            if within(PATIENCE, stamp, repository) == before:
                break
        return contents
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(
            repository, "no such folder; --repository expects <model>/<version>/model.onnx in it"
        ) from None
    except OSError as error:
        raise RepositoryError(repository, _unreadable(error)) from None


def _contents(repository: Path, names: list[str]) -> Contents:
    contents = Contents({}, {})
    for name in sorted(names):
        if name.startswith(".") or name in _OF_FILE_SYSTEMS:
            continue
        try:
            contents.models[name] = within(PATIENCE, _versions, repository / name)
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or a file
            continue
        except OSError as error:
            contents.unreadable[name] = f"{repository / name}: {_unreadable(error)}"
    return contents


def find_models(repository: Path) -> dict[str, list[ModelFile]]:
    """Versions of each model, newest first, by name. A model may have none, as one that cannot be read.

    Raises:
        RepositoryError: there is no such folder, or it cannot be read.
    """
    contents = read_repository(repository)
    return contents.models | {name: [] for name in contents.unreadable}


def _versions(folder: Path) -> list[ModelFile]:
    numbers = [int(name) for name in os.listdir(folder) if name.isdecimal() and name == str(int(name))]
    files = [_model_file(folder, version) for version in sorted(numbers, reverse=True) if version > 0]
    return [file for file in files if file is not None]


def _model_file(folder: Path, version: int) -> ModelFile | None:
    """The file of a version; None if the version is no folder."""
    path = folder / str(version) / "model.onnx"
    found = problem = None
    try:
        require_regular(path.stat())
        found = stamp(path)
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except NotADirectoryError:
        return None
    except FileNotFoundError:
        if not path.parent.is_dir():
            return None
        found, problem = None, "missing"
    except OSError as error:
        found, problem = None, _unreadable(error)
    return ModelFile(folder.name, version, path, found, problem)


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"
