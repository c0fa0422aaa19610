"""Answers of the MCP tools, whose JSON schemas clients are given: small, the arrays themselves go to files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from metaspec.topology import feature_size
from metaspec_contract.run_folder import ByColour, Design, Merit, RunReport, VerifiedDesign, VerifyReport
from metaspec_contract.spectra import Spectra

_DIGITS = 4
_DESIGNS = 5  # designs of a run that are listed


class Served(BaseModel):
    """A version of a model on the server."""

    name: str
    version: str
    ready: bool
    reason: str = Field(default="", description="Why it takes no requests, or why its newest file is not served.")


class Models(BaseModel):
    """What this server of tools has: models, device, objectives, limits."""

    url: str
    models: list[Served]
    model: str = Field(description="Model that the tools use by default; the fields below describe it.")
    version: str
    pixels: list[int] = Field(description="Rows and columns of a structure.")
    period_um: float
    pixel_nm: float
    device: str
    channels: list[str]
    wavelengths_nm: list[float] = Field(description="First and last wavelength.")
    merged_greens: bool = Field(description="Whether G1 and G2 both hold the mean of the two.")
    conditions: list[str]
    objectives: list[str]
    optimisers: list[str]
    solver: bool = Field(description="Whether `verify` works: the laboratory (metaspec-lab) is installed.")
    folder: str = Field(description="Working folder; all names of files are relative to it.")
    limits: dict[str, float]


class Thinned(BaseModel):
    """Spectra of one structure at some of the wavelengths."""

    wavelengths_nm: list[float]
    channels: dict[str, list[float]] = Field(description="Efficiency at each wavelength, by channel.")


class Predicted(BaseModel):
    """One structure: its figures of merit and its geometry."""

    row: int
    min_efficiency: float | None = Field(description="Smallest of the three colour efficiencies.")
    efficiency: ByColour = Field(description="Mean over a colour's band of the power in its detectors.")
    crosstalk: ByColour = Field(description="Mean over the other two bands of the power in a colour's detectors.")
    spread: float | None = Field(description="The model's uncertainty, where it has one.")
    fill: float = Field(description="Share of the cell that is solid.")
    solid_nm: float | None = Field(description="Narrowest solid feature; null for a grey structure.")
    void_nm: float | None = Field(description="Narrowest void feature; null for a grey structure.")
    spectra: Thinned | None = None


class Prediction(BaseModel):
    """Predicted spectra of structures, best first by the smallest efficiency."""

    model: str
    version: str
    structures: list[Predicted]
    saved: str | None = Field(default=None, description="File of the whole spectra, (N, channels, wavelengths).")


class Tile(BaseModel):
    """A tile of the cell, and what a small change in it is worth."""

    rows: list[int] = Field(description="First row, and the row after the last.")
    columns: list[int]
    gain: float = Field(description="First-order gain of the objective for the whole tile.")


class Slope(BaseModel):
    """The gradient at one structure."""

    row: int
    value: float = Field(description="Value of the objective.")
    norm: float = Field(description="Euclidian norm of the gradient over all pixels.")
    tiles: list[list[float]] = Field(description="Sum of the gradient in each tile, rows from the top.")
    fill_next: list[Tile] = Field(description="Tiles whose void, filled with solid, would raise the objective most.")
    clear_next: list[Tile] = Field(description="Tiles whose solid, cleared, would raise the objective most.")


class Gradient(BaseModel):
    """Gradients of an objective with respect to the density of every pixel, summed over tiles."""

    model: str
    version: str
    objective: str
    structures: list[Slope]
    saved: str | None = Field(default=None, description="File of the whole gradient, float32 (N, y, x).")


class Routed(BaseModel):
    """One design of a run."""

    rank: int
    objective: float
    min_efficiency: float | None
    efficiency: ByColour
    conditions: dict[str, float] | None = Field(
        default=None, description="Values of the conditions that each design has of its own."
    )
    solid_nm: float
    void_nm: float
    structure: str = Field(description="File of the structure.")
    layout: str = Field(description="GDSII layout.")
    picture: str


class Run(BaseModel):
    """An optimisation, as far as it came."""

    folder: str
    finished: bool = Field(description="If not, the same call again resumes.")
    step: int
    steps: int
    best: float | None = Field(description="Objective of the best binary structure so far.")
    designs: list[Routed] = Field(description="The best designs of a finished run.")
    count: int = Field(description="Number of all designs of a finished run.")
    report: str | None = Field(default=None, description="Page that shows the finished run.")
    advice: str


class Checked(BaseModel):
    """A structure as it was predicted and as the solver simulates it."""

    rank: int
    predicted_min: float | None = Field(description="Smallest efficiency as predicted; null without a run.")
    simulated_min: float | None
    simulated: ByColour = Field(description="Simulated efficiency on the finest grid.")
    rms: float | None = Field(description="Rms difference of predicted and simulated spectra.")


class Verification(BaseModel):
    """Simulations by the solver, as far as they came."""

    folder: str = Field(description="Folder of `verify.json` and of the simulations.")
    finished: bool = Field(description="If not, the same call again resumes.")
    simulated: int = Field(description="Simulations done.")
    simulations: int = Field(description="Simulations asked for.")
    cells: int
    designs: list[Checked]


def prediction(
    spectra: Spectra, density: NDArray[np.float32], pixel_nm: float, rows: Sequence[int], thinned: int
) -> Prediction:
    """The answer for predicted spectra.

    Args:
        spectra: spectra of N structures.
        density: densities, (N, y, x).
        pixel_nm: width of a pixel in nm.
        rows: rows of the structures in their file.
        thinned: number of wavelengths of the spectra in the answer; 0 for none.
    """
    from metaspec.designs import predicted

    found = []
    for n, row in enumerate(rows):
        merit, one = predicted(spectra[n]), density[n]
        grey = not np.isin(one, (0, 1)).all()
        solid, void = (None, None) if grey else feature_size(one.astype(np.uint8), pixel_nm)
        found.append(
            Predicted(
                row=row,
                min_efficiency=_rounded(merit.min_efficiency),
                efficiency=_by_colour(merit.colour_efficiency),
                crosstalk=_by_colour(merit.crosstalk),
                spread=_rounded(merit.spread),
                fill=round(float(one.mean()), _DIGITS),
                solid_nm=solid,
                void_nm=void,
                spectra=_thinned(spectra[n], thinned) if thinned else None,
            )
        )
    found.sort(key=lambda one: -1.0 if one.min_efficiency is None else -one.min_efficiency)
    return Prediction(model=spectra.model, version=spectra.version, structures=found)


def slope(value: float, gradient: NDArray[np.float32], density: NDArray[np.float32], row: int, tiles: int) -> Slope:
    """The answer for one gradient, (y, x), summed over tiles x tiles tiles."""
    edges = [np.linspace(0, side, tiles + 1).round().astype(int) for side in gradient.shape]

    def sums(array: NDArray[np.float32]) -> NDArray[np.float64]:
        total = np.zeros((array.shape[0] + 1, array.shape[1] + 1))
        total[1:, 1:] = array.cumsum(0, np.float64).cumsum(1)
        corners = total[np.ix_(edges[0], edges[1])]
        summed: NDArray[np.float64] = np.diff(np.diff(corners, axis=0), axis=1)
        return summed

    def best(gain: NDArray[np.float64]) -> list[Tile]:
        order = np.argsort(-gain, axis=None)[:_DESIGNS]
        places = [divmod(int(place), tiles) for place in order if gain.flat[place] > 0]
        return [
            Tile(
                rows=[int(edges[0][y]), int(edges[0][y + 1])],
                columns=[int(edges[1][x]), int(edges[1][x + 1])],
                gain=significant(gain[y, x]),
            )
            for y, x in places
        ]

    return Slope(
        row=row,
        value=significant(value),
        norm=significant(np.linalg.norm(gradient)),
        tiles=[[significant(one) for one in line] for line in sums(gradient)],
        fill_next=best(sums(gradient * (1 - density))),
        clear_next=best(sums(-gradient * density)),
    )


def run_of(report: RunReport, folder: str, page: str, steps: int, advice: str) -> Run:
    """The answer for a finished run."""
    return Run(
        folder=folder,
        finished=True,
        step=steps,
        steps=steps,
        best=significant(report.designs[0].objective),
        designs=[_routed(design, folder) for design in report.designs[:_DESIGNS]],
        count=len(report.designs),
        report=page,
        advice=advice,
    )


def verification(report: VerifyReport, folder: str, cells: int) -> Verification:
    """The answer for a finished verification on one grid."""
    designs = [_checked(design, str(cells)) for design in report.designs]
    count = len(designs)
    return Verification(folder=folder, finished=True, simulated=count, simulations=count, cells=cells, designs=designs)


def _checked(design: VerifiedDesign, grid: str) -> Checked:
    simulated = design.simulated[grid]
    return Checked(
        rank=design.rank,
        predicted_min=None if design.predicted is None else _rounded(design.predicted.min_efficiency),
        simulated_min=_rounded(simulated.min_efficiency),
        simulated=_by_colour(simulated.colour_efficiency),
        rms=_rounded(design.rms),
    )


def _routed(design: Design, folder: str) -> Routed:
    merit: Merit = design.predicted
    return Routed(
        rank=design.rank,
        objective=significant(design.objective),
        min_efficiency=_rounded(merit.min_efficiency),
        efficiency=_by_colour(merit.colour_efficiency),
        conditions=design.conditions,
        solid_nm=design.solid_nm,
        void_nm=design.void_nm,
        structure=f"{folder}/{design.files.structure}",
        layout=f"{folder}/{design.files.layout}",
        picture=f"{folder}/{design.files.picture}",
    )


def _thinned(spectra: Spectra, count: int) -> Thinned:
    wavelengths = spectra.wavelengths_nm
    chosen = np.unique(np.linspace(0, len(wavelengths) - 1, count).round().astype(int))
    values = {name: spectra.channel(name)[0, chosen] for name in spectra.channels}
    return Thinned(
        wavelengths_nm=wavelengths[chosen].tolist(),
        channels={name: [round(float(one), _DIGITS) for one in row] for name, row in values.items()},
    )


def _by_colour(found: ByColour) -> ByColour:
    return ByColour(R=_rounded(found.R), G=_rounded(found.G), B=_rounded(found.B))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def significant(value: float | np.floating) -> float:
    """A number in four significant digits."""
    return float(f"{float(value):.4g}")
