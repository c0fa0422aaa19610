"""Publishing to a model repository in Triton's layout: all models of a version, or none of them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaspec_contract.files import sync_folder, write_bytes
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_export.precision import PRECISIONS, Precision

_SYMMETRIC_SUFFIX = "_symmetric"
_CONFIG = "config.pbtxt"


def model_name(
    precision: Precision = "fp32", gradient: bool = False, symmetric: bool = False, network: str = DEFAULT_MODEL
) -> str:
    """Folder of a model: network, "_symmetric" over images, precision if not float32, "_vjp" for the gradient.

    Raises:
        ValueError: the network's name is not of lower-case letters, digits and underscores, or ends like a suffix.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", network):
        raise ValueError(f"--name must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got {network!r}")
    for suffix in (_SYMMETRIC_SUFFIX, *(f"_{p}" for p in PRECISIONS if p != "fp32"), gradient_model("")):
        if network.endswith(suffix):
            raise ValueError(f"--name must not end with {suffix}, as the names of its variants do, got {network!r}")
    name = network + (_SYMMETRIC_SUFFIX if symmetric else "") + ("" if precision == "fp32" else f"_{precision}")
    return gradient_model(name) if gradient else name


@dataclass(frozen=True)
class Publication:
    """One version of one model, ready to be written.

    Attributes:
        name: folder of the model.
        config: Triton's configuration, `config.pbtxt`.
        files: contents of the version's folder, by relative path.
    """

    name: str
    config: str
    files: dict[str, bytes]


def next_version(repository: Path, names: Sequence[str] = (DEFAULT_MODEL,)) -> int:
    """One more than the newest version of any of these models in the repository, or 1."""
    folders = [repository / name for name in names]
    versions = [
        int(path.name) for folder in folders if folder.is_dir() for path in folder.iterdir() if path.name.isdecimal()
    ]
    return max(versions, default=0) + 1


def require_free(repository: Path, version: int, names: Sequence[str] = (DEFAULT_MODEL,)) -> None:
    """Refuse a version that exists: published versions never change.

    Raises:
        FileExistsError: one of the models has that version.
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
        models: models in the order in which they should appear.

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
                files = {_CONFIG: model.config.encode()}
                files |= {f"{version}/{relative}": content for relative, content in model.files.items()}
                for relative, content in files.items():
                    path = staging / model.name / relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(path, content)
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
    """Rename what was staged to its place, and undo all of it if one step fails; undoing takes no disk space."""
    undo: list[tuple[Path, Path | None]] = []  # what has appeared, and the file that it took the place of
    targets = []
    try:
        for model in models:
            staged, folder = staging / model.name, repository / model.name
            target = folder / str(version)
            if folder.exists():
                config, before = folder / _CONFIG, staging / f"{model.name}.before"
                if config.exists():
                    shutil.copy2(config, before)
                undo.append((config, before if config.exists() else None))
                (staged / _CONFIG).replace(config)
                undo.append((target, None))
                (staged / str(version)).rename(target)
            else:
                undo.append((folder, None))
                staged.rename(folder)
            sync_folder(folder)
            targets.append(target)
        sync_folder(repository)
    except BaseException:
        for path, before_it in reversed(undo):
            if before_it is not None:
                before_it.replace(path)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        raise
    return targets
