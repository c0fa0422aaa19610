"""Publishing to a model repository in Triton's layout: all models of a version, or nothing of it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaspec_export.precision import Precision

NAME = "diffractionnet"


def model_name(
    precision: Precision = "fp32", gradient: bool = False, symmetric: bool = False, network: str = NAME
) -> str:
    """Folder of a model: the network, "_symmetric" over images, the precision if not float32, "_vjp" for the gradient.

    Raises:
        ValueError: a name that is not made of lower-case letters, digits and underscores, or that ends like a suffix.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", network):
        raise ValueError(f"name must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got {network!r}")
    for suffix in ("_symmetric", "_fp16", "_int8", "_vjp"):
        if network.endswith(suffix):
            raise ValueError(f"name must not end with {suffix}, as the names of its variants do, got {network!r}")
    suffixes = ("_symmetric" if symmetric else "", "" if precision == "fp32" else f"_{precision}")
    return network + "".join(suffixes) + ("_vjp" if gradient else "")


@dataclass(frozen=True)
class Publication:
    """One version of one model, ready to be written.

    Attributes:
        name: folder of the model.
        config: Triton's configuration, `config.pbtxt`.
        files: what goes into the version's folder, by relative path.
    """

    name: str
    config: str
    files: dict[str, bytes]


def next_version(repository: Path, names: Sequence[str] = (NAME,)) -> int:
    """One more than the newest version of any of these models in the repository, or 1."""
    folders = [repository / name for name in names]
    versions = [
        int(path.name) for folder in folders if folder.is_dir() for path in folder.iterdir() if path.name.isdigit()
    ]
    return max(versions, default=0) + 1


def require_free(repository: Path, version: int, names: Sequence[str] = (NAME,)) -> None:
    """Refuse a version that is there already: published versions never change.

    Raises:
        FileExistsError: it is.
    """
    for name in names:
        target = repository / name / str(version)
        if target.exists():
            raise FileExistsError(f"{target} exists already: choose another --version, or none for the next one")


def publish(repository: Path, version: int, models: Sequence[Publication]) -> list[Path]:
    """Write one version of several models. Each appears by an atomic rename; if anything fails, none of them stays.

    Args:
        repository: folder of the repository, made if there is none.
        version: number that is still free.
        models: in the order in which they should appear.

    Returns:
        The folders of the version, one for each model.

    Raises:
        FileExistsError: the version exists.
        OSError: a file could not be written; the repository is as it was.
    """
    require_free(repository, version, [model.name for model in models])
    made = _make_folder(repository)
    try:
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=repository) as folder:
            staging = Path(folder)
            for model in models:
                _write_durably(staging / model.name / "config.pbtxt", model.config.encode())
                for relative, content in model.files.items():
                    _write_durably(staging / model.name / str(version) / relative, content)
            return _reveal(staging, repository, version, models)
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise


def _make_folder(path: Path) -> Path | None:
    """Make a folder; returns the topmost one that did not exist before, or None."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing[-1] if missing else None


def _reveal(staging: Path, repository: Path, version: int, models: Sequence[Publication]) -> list[Path]:
    """Rename what was staged to its place, undoing all of it if one rename fails."""
    undo: list[tuple[Path, str | None]] = []
    targets = []
    try:
        for model in models:
            staged, folder = staging / model.name, repository / model.name
            target = folder / str(version)
            if folder.exists():
                config = folder / "config.pbtxt"
                undo.append((config, config.read_text() if config.exists() else None))
                (staged / "config.pbtxt").replace(config)
                undo.append((target, None))
                (staged / str(version)).rename(target)
            else:
                undo.append((folder, None))
                staged.rename(folder)
            _sync_folder(folder)
            targets.append(target)
        _sync_folder(repository)
    except BaseException:
        for path, before in reversed(undo):
            if before is not None:
                path.write_text(before)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        raise
    return targets


def _write_durably(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)  # the server may run as another user


def _sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
