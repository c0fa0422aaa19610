"""Run folders as `metaspec optimise` writes them, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import write_array, write_json
from metaspec_contract.process import Process
from metaspec_contract.run_folder import (
    DESIGNS,
    REPORT,
    SPECTRA,
    TRAJECTORY,
    ByColour,
    Design,
    DesignFiles,
    Merit,
    RunReport,
)

PROCESS = Process(wavelength_step_nm=5)
"""Process of the reports that name no other one: the default device at 61 wavelengths."""


def write_run_folder(
    folder: Path,
    structures: NDArray[Any],
    predicted: NDArray[np.floating],
    trajectory: NDArray[np.uint8] | None = None,
    process: Process = PROCESS,
    **changes: JsonValue,
) -> Path:
    """Write a new run folder with a complete report, in which all figures of merit are 0.

    Args:
        folder: folder to create.
        structures: designs, (N, 128, 128), or densities, which `metaspec optimise` does not write.
        predicted: their spectra, (N, channels, W).
        trajectory: structures visited on the way, (M, 128, 128); no such file by default.
        process: process that the report names; its wavelengths are those of the spectra.
        changes: fields of `report.json` with other values, valid or not.
    """
    folder.mkdir()
    write_array(folder / DESIGNS, structures)
    write_array(folder / SPECTRA, predicted)
    if trajectory is not None:
        write_array(folder / TRAJECTORY, trajectory)
    report = RunReport(
        url="http://127.0.0.1:8000",
        model="diffractionnet",
        model_version="7",
        objective="bayer",
        settings={},
        process=process,
        period_um=process.period_um,
        pixel_nm=process.pixel_nm,
        wavelengths_nm=process.wavelengths_nm.tolist(),
        channels=list(CHANNELS),
        seed=0,
        wall_s=1.0,
        server_calls=1,
        structures_evaluated=len(structures),
        designs=[_design(rank) for rank in range(len(structures))],
    )
    write_json(folder / REPORT, report.model_dump(mode="json", exclude_none=True) | changes)
    return folder


def _design(rank: int) -> Design:
    zero = ByColour(R=0, G=0, B=0)
    name = f"design_{rank:03d}"
    return Design(
        rank=rank,
        start=rank,
        step=0,
        objective=0.0,
        predicted=Merit(min_efficiency=0, colour_efficiency=zero, crosstalk=zero),
        solid_nm=80.0,
        void_nm=80.0,
        files=DesignFiles(
            structure=f"{name}.npy", layout=f"{name}.gds", picture=f"{name}.png", spectra=f"spectra_{rank:03d}.png"
        ),
    )
