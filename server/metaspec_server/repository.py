"""The model repository on disk: Triton's layout, and what each model says of itself.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx

Everything the server knows of a model comes from here: the ONNX graph names its tensors, and `metadata_props["metaspec"]`
holds, as JSON, the process, the wavelengths, the channels and the measured quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RepositoryError(Exception):
    """A model repository, or a model in it, cannot be served. The message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class NothingToServe(Exception):
    """No model of a repository can be served. The message has the first reason."""


class InputMetadata(BaseModel):
    """Which input is the structure, and what its values mean."""

    name: str
    solid: float
    void: float


class ModelMetadata(BaseModel):
    """What a model says of itself. More than these fields may be present, and is passed on.

    `forward_passes` is how many passes through a network one structure takes.
    """

    model_config = ConfigDict(extra="allow")

    schema_version: int = Field(ge=1, le=1)
    name: str
    kind: str
    wavelengths_nm: list[float] = Field(min_length=2)
    channels: list[str] = Field(min_length=1)
    units: dict[str, str]
    input: InputMetadata
    process: dict[str, Any]
    forward_passes: int = Field(1, ge=1)


@dataclass(frozen=True)
class ModelFile:
    """One version of a model on disk.

    Attributes:
        name: folder of the model.
        version: folder of the version, a positive whole number.
        path: the ONNX file.
        stamp: changes when the file does; None where it is missing.
    """

    name: str
    version: int
    path: Path
    stamp: tuple[int, ...] | None


def find_models(repository: Path) -> dict[str, list[ModelFile]]:
    """The versions of each model, newest first, by name. A model may have none.

    Raises:
        RepositoryError: no such folder.
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
        status = path.stat()
    except OSError:
        return ModelFile(folder.name, version, path, None)
    return ModelFile(folder.name, version, path, (status.st_ino, status.st_size, status.st_mtime_ns))


def parse_metadata(file: ModelFile, properties: dict[str, str]) -> ModelMetadata:
    """Read a model's own description from its ONNX metadata properties.

    Raises:
        RepositoryError: there is none, or it is not what this server understands.
    """
    if "metaspec" not in properties:
        raise RepositoryError(
            file.path, 'has no "metaspec" entry in its metadata_props: export it with metaspec-export'
        )
    try:
        metadata = ModelMetadata.model_validate_json(properties["metaspec"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise RepositoryError(file.path, f'bad "metaspec" metadata: {where}: {first["msg"]}') from error
    if metadata.name != file.name:
        raise RepositoryError(file.path, f"is model {metadata.name!r} but lies in folder {file.name!r}")
    return metadata
