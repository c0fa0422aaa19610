"""Checkpoints: one npz file, replaced at once, read without pickle, recognised as what it is."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from metaspec.optimise.base import Array

_FORMAT = "metaspec optimise checkpoint 1"


def save(path: Path, settings: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a checkpoint; whoever reads meanwhile, or after a crash, finds the old one or the new one.

    Args:
        path: of the file; its folder is made if need be.
        settings: of the run, as JSON.
        arrays: its state, of numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            header = {"format": np.array(_FORMAT), "settings": np.array(json.dumps(settings))}
            np.savez(file, allow_pickle=False, **(header | arrays))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path, settings: dict[str, Any]) -> dict[str, Array]:
    """The arrays of a checkpoint of a run with these settings.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or is one of a run with other settings; it says which.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if str(arrays.pop("format")) != _FORMAT:
            raise ValueError("it has another format")
        found = json.loads(str(arrays.pop("settings")))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no checkpoint of this program, or is damaged ({error}): move it away") from error
    expected = json.loads(json.dumps(settings))
    for name, value in _flat(expected).items():
        other = _flat(found).get(name)
        if other != value:
            raise ValueError(
                f"{path} is the checkpoint of another run: {name} was {other}, is {value}. "
                "Use the same settings to go on, or another file to start anew"
            )
    return arrays


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
