"""What `metaspec optimise` left in a folder: designs, their predicted spectra, and the structures visited on the way.

`report.json` names the process, the wavelengths and the channels; `designs.npy` holds the designs, best first, `spectra.npy`
what was predicted for them, `trajectory.npy` structures of earlier steps. They may come from another machine: all of it is
checked before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import read_array
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Structure
from metaspec_simulation.data.families import distinct


class _Design(BaseModel):
    rank: int


class Report(BaseModel):
    """The part of `report.json` that a simulation needs.

    Attributes:
        model, model_version, objective: whose predictions were optimised, and for what.
        process: the device as the server described it; what it does not say is as in the default `Process`.
        period_um: side of the unit cell.
        wavelengths_nm: of the predicted spectra.
        channels: names of the predicted spectra; others than `CHANNELS` are left out.
        designs: one for each row of `designs.npy`.
    """

    schema_version: Literal[1]
    model: JsonValue = None
    model_version: JsonValue = None
    objective: JsonValue = None
    process: dict[str, Any] = {}
    period_um: FiniteFloat
    wavelengths_nm: list[FiniteFloat] = Field(min_length=2)
    channels: list[str]
    designs: list[_Design] = Field(min_length=1)


@dataclass(frozen=True)
class Designs:
    """The result of an optimisation.

    Attributes:
        folder: where it lies.
        report: `report.json`.
        process: the device, at the wavelengths that its server names.
        structures: the designs, best first, uint8 (N, 128, 128).
        predicted: their spectra, R, G1, G2, B, float32 (N, 4, W).
        trajectory: structures visited on the way, uint8 (M, 128, 128); empty where there is no such file.
    """

    folder: Path
    report: Report
    process: Process
    structures: Structure
    predicted: NDArray[np.float32]
    trajectory: Structure

    @property
    def ranks(self) -> list[int]:
        """The number by which the report calls each design."""
        return [design.rank for design in self.report.designs]


def read_designs(folder: Path, process: Process | None = None) -> Designs:
    """Read and check the files of an optimisation.

    Args:
        folder: that `metaspec optimise` wrote.
        process: the device, instead of the one that the report names.

    Raises:
        ValueError: a file is missing or damaged, or two of them do not fit together.
    """
    report = _read_report(folder / "report.json")
    structures = _read_structures(folder / "designs.npy")
    if len(structures) != len(report.designs):
        raise ValueError(
            f"{folder}: designs.npy has {len(structures)} rows but report.json lists {len(report.designs)}"
        )
    path = folder / "spectra.npy"
    spectra = read_array(path)
    shape = (len(structures), len(report.channels), len(report.wavelengths_nm))
    if spectra.shape != shape or spectra.dtype.kind != "f":
        raise ValueError(f"{path}: expected floats of shape {shape}, got {spectra.dtype} of shape {spectra.shape}")
    if not np.isfinite(spectra).all():
        raise ValueError(f"{path} holds values that are not finite")
    detectors = [report.channels.index(name) for name in CHANNELS]
    trajectory = folder / "trajectory.npy"
    return Designs(
        folder=folder,
        report=report,
        process=process or _process(report, folder / "report.json"),
        structures=structures,
        predicted=spectra[:, detectors].astype(np.float32),
        trajectory=_read_structures(trajectory, may_be_empty=True) if trajectory.exists() else structures[:0],
    )


def process_of_spectra(designs: Designs) -> Process:
    """The process at the wavelengths of the predicted spectra.

    Raises:
        ValueError: they are not evenly spaced.
    """
    wavelengths = np.array(designs.report.wavelengths_nm)
    step = (wavelengths[-1] - wavelengths[0]) / (len(wavelengths) - 1)
    if step <= 0 or not np.allclose(np.diff(wavelengths), step, rtol=0, atol=1e-3):
        raise ValueError(f"{designs.folder / 'report.json'}: wavelengths_nm must ascend in equal steps")
    band = {
        "wavelength_min_nm": wavelengths[0],
        "wavelength_max_nm": wavelengths[-1],
        "wavelength_step_nm": step,
    }
    return Process.model_validate(designs.process.model_dump() | band)


def candidates(results: list[Designs], limit: int | None = None) -> Structure:
    """Structures worth simulating: all designs, then what was visited on the way to them, without copies by symmetry.

    Args:
        results: of several optimisations.
        limit: take at most so many: designs first, then structures of the trajectories, evenly spaced over them. Which ones
            does not depend on what has been simulated, so that asking again asks for the same.

    Returns:
        uint8 (N, 128, 128), distinct.
    """
    ends = np.concatenate([one.structures for one in results])
    everything = np.concatenate([ends, *(one.trajectory for one in results)])
    rows = distinct(everything)
    if limit is not None and len(rows) > limit:
        first, visited = rows[rows < len(ends)][:limit], rows[rows >= len(ends)]
        picked = np.linspace(0, len(visited) - 1, limit - len(first)).round().astype(int)
        rows = np.concatenate([first, visited[picked]])
    return everything[rows]


def _read_report(path: Path) -> Report:
    try:
        report = Report.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: give a folder that `metaspec optimise` has finished") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None
    missing = [name for name in CHANNELS if report.channels.count(name) != 1]
    if missing:
        raise ValueError(f"{path}: channels must name each of {', '.join(CHANNELS)} once, got {report.channels}")
    return report


def _process(report: Report, path: Path) -> Process:
    """The process that a report names; raises `ValueError` where it is no process, or does not fit the period."""
    try:
        process = Process.model_validate(report.process)
    except ValidationError as error:
        raise ValueError(f"{path}: process: {_first(error)}. Give --process FILE to say what to simulate") from None
    if abs(process.period_um - report.period_um) > 1e-6:
        raise ValueError(f"{path}: period_um is {report.period_um}, but that of the process is {process.period_um}")
    return process


def _read_structures(path: Path, may_be_empty: bool = False) -> Structure:
    """Binary structures of a file, uint8 (N, 128, 128)."""
    array = read_array(path)
    if array.shape[1:] != (PIXELS, PIXELS) or array.dtype not in (np.uint8, np.bool_):
        raise ValueError(
            f"{path}: expected uint8 of shape (N, {PIXELS}, {PIXELS}), got {array.dtype} of shape {array.shape}"
        )
    if not len(array) and not may_be_empty:
        raise ValueError(f"{path} holds no structures")
    if array.size and array.max() > 1:
        raise ValueError(f"{path}: structures must be binary, 0 for void and 1 for solid, got a value of {array.max()}")
    return array.astype(np.uint8)


def _first(error: ValidationError) -> str:
    """The first of what pydantic has to say, in one line."""
    found = error.errors()[0]
    field = ".".join(str(part) for part in found["loc"])
    return f"{field}: {found['msg']}" if field else found["msg"]
