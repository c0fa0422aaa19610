"""The model repository on disk, in Triton's layout.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx

Everything that the server knows about a model comes from its file: the ONNX graph names the tensors, and its `metadata_props`
hold the metadata (`metaspec_contract.model`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metaspec_contract.files import stamp

__all__ = ["ModelFile", "NothingToServe", "RepositoryError", "find_models"]


class RepositoryError(Exception):
    """A model repository, or a model in it, cannot be served. The message names the file and the reason.

    Args:
        path: file or folder.
        reason: reason why it cannot be served.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class NothingToServe(Exception):
    """No model of a repository can be served. The message holds the first reason."""


@dataclass(frozen=True)
class ModelFile:
    """One version of a model on disk.

    Attributes:
        name: name of the model's folder.
        version: number of the version, that of its folder; at least 1.
        path: path of the ONNX file.
        stamp: inode, size and modification time of the file; None where it is missing.
    """

    name: str
    version: int
    path: Path
    stamp: tuple[int, ...] | None


def find_models(repository: Path) -> dict[str, list[ModelFile]]:
    """Versions of each model, newest first, by name. A model may have none.

    Raises:
        RepositoryError: there is no such folder.
    """
    if not repository.is_dir():
        raise RepositoryError(repository, "no such folder; --repository expects <model>/<version>/model.onnx in it")
    models = {}
    for folder in sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")):
        names = [path.name for path in folder.iterdir() if path.is_dir()]
        versions = sorted({int(name) for name in names if name.isdecimal() and name == str(int(name))}, reverse=True)
        models[folder.name] = [_model_file(folder, version) for version in versions if version > 0]
    return models


def _model_file(folder: Path, version: int) -> ModelFile:
    path = folder / str(version) / "model.onnx"
    try:
        return ModelFile(folder.name, version, path, stamp(path))
    except OSError:
        return ModelFile(folder.name, version, path, None)
