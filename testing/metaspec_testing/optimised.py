"""Folders as `metaspec optimise` writes them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import Process


def write_folder(
    folder: Path,
    structures: NDArray[np.uint8],
    predicted: NDArray[np.float32],
    trajectory: NDArray[np.uint8] | None = None,
    **report: Any,
) -> Path:
    """Designs (N, 128, 128) and spectra (N, 4, W) of them, 5 nm apart; fields of report.json other than the usual ones."""
    folder.mkdir()
    np.save(folder / "designs.npy", structures)
    np.save(folder / "spectra.npy", predicted)
    if trajectory is not None:
        np.save(folder / "trajectory.npy", trajectory)
    usual = {
        "schema_version": 1,
        "url": "http://127.0.0.1:8000",
        "model": "diffractionnet",
        "model_version": "7",
        "objective": "bayer",
        "process": Process().model_dump(mode="json"),
        "period_um": 2.0,
        "pixel_nm": 15.625,
        "wavelengths_nm": list(range(400, 701, 5)),
        "channels": ["R", "G1", "G2", "B"],
        "designs": [{"rank": rank, "start": 0, "predicted": {}} for rank in range(len(structures))],
    }
    (folder / "report.json").write_text(json.dumps(usual | report))
    return folder
