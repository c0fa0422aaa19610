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


class InputMetadata(BaseModel):
    """Which input is the structure, and what its values mean."""

    name: str
    solid: float
    void: float


class ModelMetadata(BaseModel):
    """What a model says of itself. More than these fields may be present, and is passed on."""

    model_config = ConfigDict(extra="allow")

    schema_version: int = Field(ge=1, le=1)
    name: str
    kind: str
    wavelengths_nm: list[float] = Field(min_length=2)
    channels: list[str] = Field(min_length=1)
    units: dict[str, str]
    input: InputMetadata
    process: dict[str, Any]


@dataclass(frozen=True)
class ModelFile:
    """One version of a model on disk.

    Attributes:
        name: folder of the model.
        version: folder of the version, a positive whole number.
        path: the ONNX file.
    """

    name: str
    version: int
    path: Path


def find_models(repository: Path) -> list[ModelFile]:
    """The newest version of each model, by name.

    Raises:
        RepositoryError: no such folder, no model in it, or a model without a complete version.
    """
    if not repository.is_dir():
        raise RepositoryError(repository, "no such folder; --repository expects <model>/<version>/model.onnx in it")
    models = []
    for folder in sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")):
        versions = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
        if not versions:
            raise RepositoryError(folder, "the model has no version: expected a folder 1, 2, ... with model.onnx in it")
        file = folder / str(versions[-1]) / "model.onnx"
        if not file.is_file():
            raise RepositoryError(file, "missing")
        models.append(ModelFile(folder.name, versions[-1], file))
    if not models:
        raise RepositoryError(repository, "no models in it; expected <model>/<version>/model.onnx")
    return models


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
