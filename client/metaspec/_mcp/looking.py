"""Tools that look at structures: models, predictions, gradients, drawings."""

from __future__ import annotations

import importlib.metadata
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from mcp.server.mcpserver import Image
from pydantic import Field

from metaspec import objectives, optimise
from metaspec._cli.runs import check_objective
from metaspec._mcp import answers
from metaspec._mcp.folder import STRUCTURES
from metaspec._mcp.tools import Tools
from metaspec.conditions import at_conditions
from metaspec.figures import draw_spectra, draw_structure
from metaspec_contract.files import write_array, write_bytes
from metaspec_contract.model import is_gradient_model
from metaspec_contract.report_page import in_words
from metaspec_contract.run_folder import Merit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Structures = Annotated[str, Field(description=STRUCTURES)]
Rows = Annotated[list[int] | None, Field(description="Rows of the structures in their file, from 0; all by default.")]
Model = Annotated[str | None, Field(description="Name of the model; the server's default if left out.")]
Conditions = Annotated[
    dict[str, float | list[float]] | None,
    Field(
        description="Values of the model's conditions by name, for all structures; list_models states them and defaults."
    ),
]
Save = Annotated[str | None, Field(description="File in the working folder for the whole array, ending in .npy.")]
Objective = Annotated[str, Field(description=f"One of {', '.join(objectives.NAMES)}.")]

_DPI = 80  # of a picture in an answer: about 720 x 390 pixels


def laboratory() -> str | None:
    """Package of the command `metaspec-simulate`, which `python -m` runs; None where it is not installed."""
    for point in importlib.metadata.entry_points(group="console_scripts", name="metaspec-simulate"):
        return point.module.partition(".")[0]
    return None


class Looking(Tools):
    """The tools that look at structures; see `Tools`."""

    def list_models(self) -> answers.Models:
        """List the models of the server, the device they are for, the objectives, the limits, and the working folder."""
        surrogate = self._models.get(None)
        info = surrogate.metadata()
        process, wavelengths = info.process, info.wavelengths_nm
        return answers.Models(
            url=self._models.url,
            models=[answers.Served(**one._asdict()) for one in surrogate.models() if not is_gradient_model(one.name)],
            model=info.name,
            version=info.version,
            pixels=list(info.pixels),
            period_um=process.period_um,
            pixel_nm=process.pixel_nm,
            device=f"{process.solid.name} on {process.substrate.name}, thickness {process.thickness_um:g} um, "
            f"detectors {process.distance_um:g} um below",
            channels=list(info.channels),
            wavelengths_nm=[float(wavelengths[0]), float(wavelengths[-1])],
            merged_greens=info.merged_greens,
            conditions=[str(condition) for condition in info.conditions],
            objectives=list(objectives.NAMES),
            optimisers=list(optimise.NAMES),
            solver=laboratory() is not None,
            folder=str(self._folder.path),
            limits=asdict(self._limits),
        )

    def predict(
        self,
        structures: Structures,
        rows: Rows = None,
        model: Model = None,
        conditions: Conditions = None,
        wavelengths: Annotated[
            int,
            Field(description="Number of wavelengths of the spectra in the answer; 0 for no spectra.", ge=0, le=301),
        ] = 0,
        save: Save = None,
    ) -> answers.Prediction:
        """Predict the spectra of structures: efficiency and crosstalk of each colour, fill, narrowest features; best first."""
        path = None if save is None else self._folder.new_file(save, "save", ".npy")
        source = at_conditions(self._models.get(model), conditions)
        process = source.metadata().process
        given = self._folder.read(structures, rows, process, self._limits.structures)
        spectra = source.predict(given.density)
        answer = answers.prediction(spectra, given.density, process.pixel_nm, given.rows, wavelengths)
        if path is not None:
            write_array(path, spectra.values)
            answer.saved = self._folder.relative(path)
        return answer

    def gradient(
        self,
        structures: Structures,
        objective: Objective = "bayer",
        rows: Rows = None,
        model: Model = None,
        conditions: Conditions = None,
        tiles: Annotated[
            int, Field(description="Tiles along each side that the gradient is summed over.", ge=1, le=16)
        ] = 8,
        save: Save = None,
    ) -> answers.Gradient:
        """The gradient of an objective with respect to the density of each pixel: where more solid, or less, would raise it."""
        path = None if save is None else self._folder.new_file(save, "save", ".npy")
        goal = objectives.by_name(objective)
        source = at_conditions(self._models.get(model), conditions)
        info = source.metadata()
        check_objective(objective, goal, info)
        given = self._folder.read(structures, rows, info.process, self._limits.structures)
        value, gradient, spectra = source.predict_and_gradient(given.density, goal)
        answer = answers.Gradient(
            model=spectra.model,
            version=spectra.version,
            objective=objective,
            structures=[
                answers.slope(float(value[n]), gradient[n], given.density[n], row, tiles)
                for n, row in enumerate(given.rows)
            ],
        )
        if path is not None:
            write_array(path, gradient)
            answer.saved = self._folder.relative(path)
        return answer

    def draw(
        self,
        structures: Structures,
        row: Annotated[int, Field(description="Row of the structure in its file.", ge=0)] = 0,
        show: Literal["structure", "spectra", "both"] = "both",
        model: Model = None,
        conditions: Conditions = None,
        save: Annotated[
            str | None,
            Field(
                description="File in the working folder, .png; with both pictures, the names get -structure and -spectra."
            ),
        ] = None,
    ) -> list[str | Image]:
        """Draw a structure, its predicted spectra over the bands of the colours, or both: PNG pictures, and a line of text."""
        path = None if save is None else self._folder.new_file(save, "save", ".png")
        source = at_conditions(self._models.get(model), conditions)
        process = source.metadata().process
        given = self._folder.read(structures, [row], process, 1)
        spectra = source.predict(given.density)
        merit = in_words(Merit.of(spectra.values[0], spectra.wavelengths_nm, spectra.channels))
        name = f"{given.name}, row {row}"
        figures: dict[str, Figure] = {}
        if show != "spectra":
            figures["structure"] = draw_structure(given.density[0], period_um=process.period_um, title=name)
        if show != "structure":
            figures["spectra"] = draw_spectra(spectra, title=f"{name}, predicted by {spectra.label}")
        pictures = {kind: _png(figure) for kind, figure in figures.items()}
        text = f"{name}: predicted {merit or 'spectra'}, {100 * np.mean(given.density):.0f} % solid."
        if path is not None:
            for kind, picture in pictures.items():
                file = path if len(pictures) == 1 else path.with_stem(f"{path.stem}-{kind}")
                write_bytes(file, picture)
                text += f" {self._folder.relative(file)} is the picture of the {kind}."
        return [text, *(Image(data=picture, format="png") for picture in pictures.values())]


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
