"""Run folder: written by `metaspec optimise` and `metaspec polish`, read and added to by `metaspec-simulate verify`.

designs.npy       uint8 (N, y, x), best first               design_000.npy, .gds, .png, contours_000.gds, spectra_000.png, ...
spectra.npy       float32 (N, channels, wavelengths)        history.csv, history.png, report.html
trajectory.npy    uint8 (M, y, x), as optimised             settings.json, progress.jsonl (a line for each step)
report.json       `RunReport`; written last                 verify.json, verify.png, simulated/ (`VerifyReport`)

While a process works in the folder, it holds `.lock`. `metaspec jobs` adds `job.json` and `job.log`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from metaspec_contract.detectors import CHANNELS, COLOURS
from metaspec_contract.figures_of_merit import colour_efficiency, covered_colours, crosstalk, crosstalk_colours
from metaspec_contract.process import CompleteProcess, Process
from metaspec_contract.validation import first_error

REPORT, SETTINGS, VERIFY = "report.json", "settings.json", "verify.json"
DESIGNS, SPECTRA, TRAJECTORY = "designs.npy", "spectra.npy", "trajectory.npy"
PROGRESS, LOCK, JOB, LOG = "progress.jsonl", ".lock", "job.json", "job.log"

BEFORE = frozenset({LOCK, JOB, LOG})
"""Files that may be in a run folder before its run has begun."""

NARROW_NM = 60.0
"""Width in nm below which features are warned of: the narrowest of the published designs of such devices."""


class ByColour(BaseModel):
    """A number for each colour, if it has one; green is G1 + G2."""

    model_config = ConfigDict(extra="forbid")

    R: FiniteFloat | None = None
    G: FiniteFloat | None = None
    B: FiniteFloat | None = None


class Merit(BaseModel):
    """Figures of merit of one design's spectra. Colours whose band the wavelengths do not reach have none.

    Attributes:
        min_efficiency: smallest of the colour efficiencies, where all three colours have one.
        colour_efficiency: mean over a colour's band of the power in its detectors.
        crosstalk: mean over the other two bands of the power in a colour's detectors.
        spread: mean over wavelengths of the channel "spread", where the model has one.
        energy_error: rms over wavelengths of reflection + transmission - 1, where the spectra are simulated.
        file: file of the simulation, relative to the folder, where the spectra are simulated.
    """

    model_config = ConfigDict(extra="forbid")

    min_efficiency: FiniteFloat | None = None
    colour_efficiency: ByColour
    crosstalk: ByColour
    spread: FiniteFloat | None = None
    energy_error: FiniteFloat | None = None
    file: str | None = None

    @classmethod
    def of(
        cls,
        spectra: NDArray[np.float32],
        wavelengths_nm: NDArray[np.float64],
        channels: Sequence[str] = CHANNELS,
        **known: Any,
    ) -> Self:
        """Figures of merit of spectra.

        Args:
            spectra: efficiencies of one design, (channels, wavelengths).
            wavelengths_nm: wavelengths in nm, (wavelengths,).
            channels: names of the channels.
            **known: fields that do not follow from the spectra.
        """
        colours, both = covered_colours(wavelengths_nm), crosstalk_colours(wavelengths_nm)
        efficiency = colour_efficiency(spectra, wavelengths_nm, channels, colours).tolist()
        leaking = crosstalk(spectra, wavelengths_nm, channels, both).tolist()
        return cls(
            min_efficiency=min(efficiency) if colours == COLOURS else None,
            colour_efficiency=ByColour(**dict(zip(colours, efficiency, strict=True))),
            crosstalk=ByColour(**dict(zip(both, leaking, strict=True))),
            **known,
        )


class DesignFiles(BaseModel):
    """Files of one design, relative to the folder.

    Attributes:
        structure: array.
        layout: layout with exact pixels.
        contours: layout with smooth contours.
        picture: figure of the structure.
        spectra: figure of the spectra.
    """

    model_config = ConfigDict(extra="forbid")

    structure: str
    layout: str
    contours: str | None = None
    picture: str
    spectra: str


class EdgeShift(BaseModel):
    """A design whose edges have moved, as by over- or under-etching.

    Attributes:
        shift_nm: mean distance in nm by which they moved, positive where solid grows.
        predicted: figures of merit by the source of the run.
    """

    model_config = ConfigDict(extra="forbid")

    shift_nm: FiniteFloat
    predicted: Merit


class DesignRules(BaseModel):
    """Largest Euclidian rules that a layout passes in KLayout, as a periodic array; whole numbers of nm.

    Attributes:
        width_nm: width of the solid.
        space_nm: space between solid.
    """

    model_config = ConfigDict(extra="forbid")

    width_nm: int
    space_nm: int


class LayoutRules(BaseModel):
    """What both layouts of a design pass in KLayout.

    Attributes:
        pixels: the layout with exact pixels.
        contours: the layout with smooth contours.
    """

    model_config = ConfigDict(extra="forbid")

    pixels: DesignRules
    contours: DesignRules


class Unpolished(BaseModel):
    """The design that a polished one started from.

    Attributes:
        rank: its rank in the run folder that it is from.
        predicted: figures of merit there, predicted by a model or simulated.
        simulated: figures of merit by the source that polished it, of the same design.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(ge=0)
    predicted: Merit
    simulated: Merit


class Design(BaseModel):
    """One design of a run.

    Attributes:
        rank: row in `designs.npy`, 0 for the best.
        start: number of the start that led to it.
        step: step at which it was found, counted from 0.
        objective: value of the objective, by which designs are ranked.
        predicted: figures of merit of the spectra that the optimiser saw, predicted or simulated.
        eroded: the design with solid eroded, where the run optimised it, too.
        dilated: the design with solid dilated, where the run optimised it, too.
        conditions: values of conditions by name, where each design has its own: those that the run found for it.
        solid_nm: width of the narrowest solid feature in nm, as the package imageruler measures it: in whole pixels, ignoring
            single pixels at the edges of large features.
        void_nm: width of the narrowest void feature in nm, likewise.
        klayout: rules that the layouts pass in KLayout, where that is installed.
        files: files of the design.
        unpolished: the design that it started from, where `metaspec polish` made it.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(ge=0)
    start: int = Field(ge=0)
    step: int = Field(ge=0)
    objective: FiniteFloat
    predicted: Merit
    eroded: EdgeShift | None = None
    dilated: EdgeShift | None = None
    conditions: dict[str, FiniteFloat] | None = None
    solid_nm: FiniteFloat
    void_nm: FiniteFloat
    klayout: LayoutRules | None = None
    files: DesignFiles
    unpolished: Unpolished | None = None


class RunReport(BaseModel):
    """`report.json`: a finished optimisation.

    Attributes:
        schema_version: version of this schema.
        url: URL of the server; null if the source has none.
        model: model whose predictions were optimised, or name of the solver.
        model_version: version of that model or solver.
        objective: name of the objective.
        ranked_by: what designs are ranked by, in words.
        settings: settings of the run.
        conditions: values at which the source computed, beside the structures, by name: a number, or those of a vector; left
            out where there are none. Where the process has a field of a condition's name, it has this value.
        process: device whose spectra the source computes, with every field stated; that of a design with conditions of its own
            has their values instead.
        period_um: side of the unit cell in um, the same as the process's.
        pixel_nm: width of a pixel in nm.
        contour_tolerance_nm: largest distance in nm of the smooth contours from the edges of the pixels.
        wavelengths_nm: wavelengths of `spectra.npy` in nm.
        channels: channels of `spectra.npy`.
        merged_greens: whether G1 and G2 both hold the mean of the two.
        simulated: whether a solver simulated the spectra; otherwise, a model predicted them.
        seed: seed of the random starts, if there was one.
        wall_s: duration in seconds, without interruptions.
        server_calls: number of calls of the source, such as a server.
        structures_evaluated: number of structures whose spectra were computed.
        designs: designs, one for each row of `designs.npy`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    url: str | None = None
    model: str
    model_version: str
    objective: str
    ranked_by: str | None = None
    settings: dict[str, JsonValue]
    conditions: dict[str, FiniteFloat | list[FiniteFloat]] = {}
    process: CompleteProcess
    period_um: FiniteFloat
    pixel_nm: FiniteFloat
    contour_tolerance_nm: FiniteFloat | None = None
    wavelengths_nm: list[FiniteFloat] = Field(min_length=2)
    channels: list[str]
    merged_greens: bool = False
    simulated: bool = False
    seed: int | None
    wall_s: FiniteFloat
    server_calls: int
    structures_evaluated: int
    designs: list[Design] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if missing := [name for name in CHANNELS if self.channels.count(name) != 1]:
            raise ValueError(f"channels must name each of {', '.join(missing)} once, got {self.channels}")
        if abs(self.process.period_um - self.period_um) > 1e-6:
            raise ValueError(f"period_um is {self.period_um}, but that of the process is {self.process.period_um}")
        if abs(self.process.pixel_nm - self.pixel_nm) > 1e-6:
            raise ValueError(f"pixel_nm is {self.pixel_nm}, but that of the process is {self.process.pixel_nm}")
        for before, after in itertools.pairwise(self.wavelengths_nm):
            if after <= before:
                raise ValueError(f"wavelengths_nm must ascend, got {after:g} after {before:g}")
        named = sorted(self.designs[0].conditions or {})
        if both := [name for name in named if name in self.conditions]:
            raise ValueError(f"conditions must not be those of single designs, too, got {both[0]} in both")
        for row, one in enumerate(self.designs):
            if (names := sorted(one.conditions or {})) != named:
                raise ValueError(f"designs.{row}.conditions must have the names of designs.0, {named}, got {names}")
            try:
                self.process_of(one)
            except ValidationError as error:
                raise ValueError(f"designs.{row}.conditions.{first_error(error)}") from None
        if ranks := [(row, one.rank) for row, one in enumerate(self.designs) if one.rank != row]:
            raise ValueError(f"designs.{ranks[0][0]}.rank must be its row, {ranks[0][0]}, got {ranks[0][1]}")
        return self

    def conditions_of(self, design: Design) -> dict[str, float | list[float]]:
        """Values at which the source computed a design, by name: those of all designs, and its own."""
        return self.conditions | (design.conditions or {})

    def process_of(self, design: Design) -> Process:
        """The device of a design: the process, at the conditions that the design has of its own."""
        return self.process.at(design.conditions or {})


class VerifiedDesign(BaseModel):
    """One design, as the optimiser saw it and simulated, or one structure of a file.

    Attributes:
        rank: rank in `report.json`; of structures from files, their number.
        source: file of a structure, and its row where the file holds several.
        conditions: values of the conditions that a design has of its own, by name, as in `report.json`.
        predicted: figures of merit of the spectra that the optimiser saw, predicted or simulated; of a design.
        simulated: figures of merit of the simulated spectra, by the solver's grid cells per period.
        mae: mean absolute difference of those two spectra, on the finest grid; of a design.
        rms: root mean square difference of those two spectra, on the finest grid; of a design.
        grid_difference_rms: rms difference of the spectra on the two finest grids, where there are two.
        non_discreteness: mean of 4 d (1 - d) over the pixels' densities d, where a design has grey pixels.
        thresholded: as `simulated`, of the design thresholded at 1/2, where it has grey pixels.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int
    source: str | None = None
    conditions: dict[str, FiniteFloat] | None = None
    predicted: Merit | None = None
    simulated: dict[str, Merit]
    mae: FiniteFloat | None = None
    rms: FiniteFloat | None = None
    grid_difference_rms: FiniteFloat | None = None
    non_discreteness: FiniteFloat | None = None
    thresholded: dict[str, Merit] | None = None


class VerifyReport(BaseModel):
    """`verify.json`: the designs of a run, or structures of files, simulated.

    Attributes:
        schema_version: version of this schema.
        model: model whose predictions were optimised, or name of the solver; null for structures of files.
        model_version: version of that model or solver, likewise.
        objective: name of the objective, likewise.
        solver: name and version of the solver, and its grids in cells per period.
        process: device that was simulated; a design with conditions of its own, at their values.
        summary: means over the designs, and the best design as simulated.
        designs: designs that were simulated, best predicted first.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    model: str | None = None
    model_version: str | None = None
    objective: str | None = None
    solver: dict[str, JsonValue]
    process: CompleteProcess
    summary: dict[str, Any]
    designs: list[VerifiedDesign]


def read_report(folder: Path, process: Process | None = None) -> RunReport:
    """Read and check the `report.json` of a run folder.

    Args:
        folder: run folder.
        process: device to use instead of the one in the report.

    Raises:
        ValueError: the report is missing, damaged or inconsistent; file and field are named.
    """
    path = folder / REPORT
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if process is not None and isinstance(document, dict):
            document |= {"process": process.model_dump(), "period_um": process.period_um, "pixel_nm": process.pixel_nm}
        report = RunReport.model_validate(document)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: give a folder that `metaspec optimise` has finished") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    device, found = report.process, report.wavelengths_nm
    if process is None and not (device.wavelength_min_nm <= found[0] and found[-1] <= device.wavelength_max_nm):
        raise ValueError(
            f"{path}: wavelengths_nm are from {found[0]:g} to {found[-1]:g} nm, but those of the process from "
            f"{device.wavelength_min_nm:g} to {device.wavelength_max_nm:g} nm"
        )
    return report
