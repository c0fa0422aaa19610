"""The revision of the source code that a model comes from: a clean commit of a clone, or an installed version."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import metaspec_contract
import metaspec_export
import metaspec_simulation
import metaspec_training
from metaspec_export.errors import ExportRefused

_DISTRIBUTION = "metaspec-lab"
_SOURCES = [
    Path(str(package.__file__)).parent
    for package in (metaspec_contract, metaspec_simulation, metaspec_training, metaspec_export)
]
"""Folders of the code that decides what a model computes and what its metadata say."""


class UncleanSource(ExportRefused):
    """Models would come from source code that no commit and no release has. The message says what to do."""


def source_revision(allow_dirty: bool = False) -> str:
    """Revision of the code that this process runs.

    It is "metaspec-lab <version>" where that is installed from a wheel, and the commit in a clone.

    Args:
        allow_dirty: accept uncommitted changes, marked by "-dirty", and source code without a revision, "unknown".

    Raises:
        UncleanSource: the code has uncommitted changes, or no revision, and `allow_dirty` is not set.
    """
    return _wheel() or revision_of(_SOURCES, allow_dirty)


def revision_of(folders: Sequence[Path], allow_dirty: bool = False) -> str:
    """Commit of the clone that folders of source code lie in; changes elsewhere in the clone do not count.

    Args:
        folders: folders of one clone.
        allow_dirty: as for `source_revision`.

    Raises:
        UncleanSource: as for `source_revision`.
    """
    place = folders[-1]
    try:
        revision = _git(place, "describe", "--always", "--abbrev=12", "--exclude=*")
        changed = _git(place, "status", "--porcelain", "--", *map(str, folders)).splitlines()
    except (OSError, subprocess.CalledProcessError):
        if allow_dirty:
            return "unknown"
        raise UncleanSource(
            f"{place} is not in a git clone, so the models would name no revision: install metaspec-lab from a wheel, "
            "work in a clone, or pass --allow-dirty to publish all the same"
        ) from None
    if not changed:
        return revision
    if allow_dirty:
        return f"{revision}-dirty"
    files = f"{changed[0].split(maxsplit=1)[-1]}{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}"
    raise UncleanSource(
        f"the source code has uncommitted changes ({files}), so no revision would name what the models come from: "
        "commit them, or pass --allow-dirty to publish all the same"
    )


def _wheel() -> str | None:
    """Name and version of the installed distribution, unless its code is used in place."""
    try:
        installed = distribution(_DISTRIBUTION)
    except PackageNotFoundError:
        return None
    code = Path(str(installed.locate_file("metaspec_export/__init__.py")))
    if code.exists() and code.samefile(str(metaspec_export.__file__)):
        return f"{_DISTRIBUTION} {installed.version}"
    return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
