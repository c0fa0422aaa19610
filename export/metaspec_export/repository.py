"""Publishing to a model repository in Triton's layout: all of a version, or nothing of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

NAME = "diffractionnet"


def next_version(repository: Path, name: str = NAME) -> int:
    """One more than the newest version in the repository, or 1."""
    folder = repository / name
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(versions, default=0) + 1


def require_free(repository: Path, version: int, name: str = NAME) -> None:
    """Refuse a version that is there already: published versions never change.

    Raises:
        FileExistsError: it is.
    """
    target = repository / name / str(version)
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another --version, or none for the next one")


def publish(
    repository: Path, version: int, graph: bytes, config: str, card: str | None = None, name: str = NAME
) -> Path:
    """Write `<repository>/<name>/<version>/model.onnx` and `config.pbtxt`; the version appears by one atomic rename.

    Args:
        repository: folder of the repository.
        version: number that is still free.
        graph: the model, serialised.
        config: Triton's configuration.
        card: the model card, written beside the model.
        name: of the model.

    Returns:
        The folder of the version.

    Raises:
        FileExistsError: the version exists.
    """
    folder = repository / name
    target = folder / str(version)
    require_free(repository, version, name)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder))
    try:
        _write_durably(staging / "config.pbtxt", config.encode())
        version_folder = staging / "version"
        version_folder.mkdir()
        version_folder.chmod(0o755)  # the server may run as another user
        _write_durably(version_folder / "model.onnx", graph)
        if card is not None:
            _write_durably(version_folder / "MODEL_CARD.md", card.encode())
        (staging / "config.pbtxt").rename(folder / "config.pbtxt")
        version_folder.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def config_pbtxt(wavelengths: int, name: str = NAME) -> str:
    """Triton's configuration of the model: what goes in and out, and that requests may be batched."""
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 256
input [ {{ name: "structure", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }} ]
output [ {{ name: "spectra", data_type: TYPE_FP32, dims: [ 4, {wavelengths} ] }} ]
dynamic_batching {{ }}
version_policy {{ latest {{ num_versions: 1 }} }}
"""


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)
