"""Checkpoints: one npz file with a format tag, replaced atomically, read without pickle."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from metaspec.optimise.base import Array
from metaspec_contract.files import replacing

_FORMAT = "metaspec optimise checkpoint 1"


def save(path: Path, settings: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a checkpoint; concurrent readers, and those after a crash, find the old or the new one.

    Args:
        path: path of the file; its folder is created if necessary.
        settings: configuration fingerprint of the run, as JSON.
        arrays: numeric arrays of its state.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": np.array(_FORMAT), "settings": np.array(json.dumps(settings))}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **(header | arrays))


def load(path: Path, settings: dict[str, Any]) -> dict[str, Array]:
    """The arrays of a checkpoint of a run with this configuration fingerprint.

    Raises:
        ValueError: the file is damaged, is not a checkpoint, or belongs to a run with other settings, which are named.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if str(arrays.pop("format")) != _FORMAT:
            raise ValueError("it has another format")
        found = json.loads(str(arrays.pop("settings")))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint of this program ({error}): move it away") from error
    before, now = _flat(found), _flat(json.loads(json.dumps(settings)))
    for name in {**now, **before}:
        other, value = before.get(name), now.get(name)
        if other != value:
            raise ValueError(
                f"{path} is the checkpoint of another run: {name} was {other}, is {value}. "
                "Use the same settings to resume, or another file to start over"
            )
    return arrays


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
