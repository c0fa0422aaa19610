"""The run folder: what `metaspec optimise` writes, `metaspec-simulate verify` reads and adds to.

designs.npy       uint8 (N, 128, 128), best first           design_000.npy, .gds, .png, spectra_000.png, ...
spectra.npy       float32 (N, channels, wavelengths)        history.csv, history.png, report.html
trajectory.npy    uint8 (M, 128, 128), visited on the way   settings.json
report.json       `RunReport`; written last                 verify.json, verify.png, simulated/ (`VerifyReport`)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process, complete_process

REPORT, SETTINGS, VERIFY = "report.json", "settings.json", "verify.json"
DESIGNS, SPECTRA, TRAJECTORY = "designs.npy", "spectra.npy", "trajectory.npy"

_CompleteProcess = Annotated[
    Process, BeforeValidator(lambda value: complete_process(value) if isinstance(value, Mapping) else value)
]


class ByColour(BaseModel):
    """A number for each colour; green counts G1 + G2."""

    model_config = ConfigDict(extra="forbid")

    R: FiniteFloat
    G: FiniteFloat
    B: FiniteFloat


class Merit(BaseModel):
    """Figures of merit of one design's spectra.

    Attributes:
        min_efficiency: smallest of the colour efficiencies.
        colour_efficiency: mean over a colour's band of the power in its detectors.
        crosstalk: mean over the other two bands of the power in a colour's detectors.
        spread: mean over wavelengths of the channel "spread", where the model has one.
        energy_error: rms over wavelengths of reflection + transmission - 1, where the spectra are simulated.
        file: file of the simulation, relative to the folder, where the spectra are simulated.
    """

    model_config = ConfigDict(extra="forbid")

    min_efficiency: FiniteFloat
    colour_efficiency: ByColour
    crosstalk: ByColour
    spread: FiniteFloat | None = None
    energy_error: FiniteFloat | None = None
    file: str | None = None


class DesignFiles(BaseModel):
    """Files of one design, relative to the folder."""

    model_config = ConfigDict(extra="forbid")

    structure: str
    layout: str
    picture: str
    spectra: str


class Design(BaseModel):
    """One design of a run.

    Attributes:
        rank: its row in `designs.npy`, 0 for the best.
        start: number of the start that it comes from.
        step: step in which it was found.
        objective: value of the objective.
        predicted: figures of merit of its predicted spectra.
        solid_nm: narrowest solid feature in nm.
        void_nm: narrowest void feature in nm.
        files: its files.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(ge=0)
    start: int = Field(ge=0)
    step: int = Field(ge=0)
    objective: float
    predicted: Merit
    solid_nm: float
    void_nm: float
    files: DesignFiles


class RunReport(BaseModel):
    """`report.json`: a finished optimisation.

    Attributes:
        schema_version: version of this schema.
        url: server that was asked.
        model: model whose predictions were optimised.
        model_version: version of that model.
        objective: name of the objective.
        settings: settings of the run.
        process: device that the model predicts, every field of it stated.
        period_um: side of the unit cell in um; that of the process.
        pixel_nm: width of a pixel in nm.
        wavelengths_nm: wavelengths of `spectra.npy` in nm.
        channels: channels of `spectra.npy`.
        merged_greens: whether G1 and G2 both hold the mean of the two.
        seed: seed of the random starts, if there was one.
        wall_s: seconds spent, interruptions not counted.
        server_calls: calls of the server.
        structures_evaluated: structures that were predicted.
        designs: the designs, one for each row of `designs.npy`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    url: str
    model: str
    model_version: str
    objective: str
    settings: dict[str, JsonValue]
    process: _CompleteProcess
    period_um: FiniteFloat
    pixel_nm: FiniteFloat
    wavelengths_nm: list[FiniteFloat] = Field(min_length=2)
    channels: list[str]
    merged_greens: bool = False
    seed: int | None
    wall_s: float
    server_calls: int
    structures_evaluated: int
    designs: list[Design] = Field(min_length=1)


class VerifiedDesign(BaseModel):
    """One design, predicted and simulated.

    Attributes:
        rank: its rank in `report.json`.
        predicted: figures of merit of its predicted spectra.
        simulated: those of its simulated spectra, by the solver's grid cells per period.
        mae: mean absolute error of the predicted spectra.
        rms: root mean square error of the predicted spectra.
        grid_difference_rms: rms difference of the spectra on the two finest grids, where there are two.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int
    predicted: Merit
    simulated: dict[str, Merit]
    mae: FiniteFloat
    rms: FiniteFloat
    grid_difference_rms: FiniteFloat | None = None


class VerifyReport(BaseModel):
    """`verify.json`: the designs of a run, simulated.

    Attributes:
        schema_version: version of this schema.
        model: model whose predictions were optimised.
        model_version: version of that model.
        objective: name of the objective.
        solver: name and version of the solver, and its grids in cells per period.
        process: device that was simulated.
        summary: means over the designs, and which is the best one when simulated.
        designs: the designs that were simulated, best predicted first.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    model_version: str
    objective: str
    solver: dict[str, JsonValue]
    process: _CompleteProcess
    summary: dict[str, Any]
    designs: list[VerifiedDesign]


def read_report(folder: Path, process: Process | None = None) -> RunReport:
    """Read and check the `report.json` of a run folder.

    Args:
        folder: run folder.
        process: device to take instead of the one that the report names, whatever it names.

    Raises:
        ValueError: it is missing, damaged, or contradicts itself. The file and the field are named.
    """
    path = folder / REPORT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if process is not None and isinstance(document, dict):
            document |= {"process": process.model_dump(), "period_um": process.period_um}
        report = RunReport.model_validate(document)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: give a folder that `metaspec optimise` has finished") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None
    if missing := [name for name in CHANNELS if report.channels.count(name) != 1]:
        raise ValueError(f"{path}: channels must name each of {', '.join(missing)} once, got {report.channels}")
    if abs(report.process.period_um - report.period_um) > 1e-6:
        raise ValueError(
            f"{path}: period_um is {report.period_um}, but that of the process is {report.process.period_um}"
        )
    return report


def _first(error: ValidationError) -> str:
    """The first of what pydantic has to say, in one line."""
    found = error.errors()[0]
    reason = re.sub("^(Value|Assertion) error, ", "", found["msg"])
    field = ".".join(str(part) for part in found["loc"])
    return f"{field}: {reason}" if field else reason
