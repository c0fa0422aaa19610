"""`--start`: structures of the user's files that an optimisation begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from metaspec import optimise
from metaspec.optimise.free_conditions import spread
from metaspec.topology import Parameterisation, without_small_features
from metaspec_contract.drawings import ENDINGS, Drawing, read_drawing
from metaspec_contract.layouts import parse_layer
from metaspec_contract.process import Process
from metaspec_contract.source import SourceInfo

_DIFFERING = 0.5  # per cent of the pixels: more that a filter loses is said to be lost
_CHANGED = 1.0  # per cent of the cell: a larger change of the solid by thresholding is warned of

StartFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--start",
        help=f"Start from the structures of this file ({', '.join(ENDINGS)}). Repeatable; more --starts add random ones.",
        metavar="FILE",
    ),
]
StartCell = Annotated[str | None, typer.Option(help="Cell of layouts given by --start.  [default: the top cell]")]
StartLayer = Annotated[str, typer.Option(help="Layer and datatype of the solid in layouts given by --start.")]


class Starts(NamedTuple):
    """Given starts of a run.

    Attributes:
        structure: binary structures, uint8 (M, y, x), that keep the minimum feature size of the run.
        latent: their latents, (M, y, x).
        remarks: a line for each file, on what became of it.
    """

    structure: NDArray[np.uint8]
    latent: NDArray[np.float64]
    remarks: list[str]


def read_starts(files: Sequence[Path] | None, cell: str | None, layer: str) -> list[Drawing]:
    """The files of `--start`.

    Raises:
        ValueError: a file cannot be read, or a cell is named where there is no file.
    """
    numbers = parse_layer(layer, "--start-layer")
    if not files:
        if cell is not None:
            raise ValueError("--start-cell needs --start FILE")
        return []
    return [read_drawing(file, cell=cell, layer=numbers) for file in files]


def start_settings(drawings: Sequence[Drawing], cell: str | None, layer: str) -> dict[str, Any]:
    """Settings of a run that depend on the given files: their names, and hashes of their contents."""
    if not drawings:
        return {}
    files = [
        f"{drawing.path.name} ({hashlib.sha256(drawing.path.read_bytes()).hexdigest()[:16]})" for drawing in drawings
    ]
    return {"start": files, **({} if cell is None else {"start_cell": cell}), "start_layer": layer}


def starts_on(drawings: Sequence[Drawing], process: Process, parameterisation: Parameterisation) -> Starts:
    """The structures of files on the pixels of a process, and the latents that give them back.

    Densities from area averages are thresholded at 1/2, and features that are too small for the run are repaired.

    Raises:
        ValueError: a layout has another period, or a structure does not have the symmetry of the run.
    """
    structures, latents, remarks = [], [], []
    for drawing in drawings:
        densities = drawing.densities(process)
        given = (densities > 0.5).astype(np.uint8)
        if parameterisation.symmetry is not None and (given != given.transpose(0, 2, 1)).any():
            raise ValueError(f"{drawing.path}: the structure is not symmetric about the diagonal: leave out --symmetry")
        width = parameterisation.min_feature_nm
        kept = given
        if width is not None:
            kept = np.stack([without_small_features(one, width, process.pixel_nm) for one in given])
        latent = parameterisation.latent(kept)
        lost = 100 * (parameterisation.binary(latent) != kept).mean()
        said = [drawing.remark(process), f"{100 * kept.mean():.1f} % solid"]
        before, after = 100 * densities.mean(), 100 * given.mean()
        if grey := 100 * ((densities > 0) & (densities < 1)).mean():
            said.append(f"{grey:.3g} % of the pixels grey, thresholded at 1/2 ({before:.1f} % solid before)")
        if (kept != given).any():
            said.append(f"repaired to {width:g} nm in {100 * (kept != given).mean():.2g} % of the pixels")
        said.append(
            f"the filter of {parameterisation.radius_nm:g} nm loses {lost:.2g} % of the pixels"
            + (": give a smaller --radius-nm to keep its features" if lost > _DIFFERING else "")
        )
        count = f"{len(given)} structures, " if len(given) > 1 else ""
        remarks.append(f"Start {drawing.path}: {count}{', '.join(part for part in said if part)}.")
        if abs(after - before) > _CHANGED:
            remarks.append(
                f"Warning: {drawing.path}: thresholding its grey pixels at 1/2 changes the solid from {before:.1f} % to "
                f"{after:.1f} % of the cell."
            )
        structures.append(kept)
        latents.append(latent)
    return Starts(np.concatenate(structures), np.concatenate(latents), remarks)


def starting_conditions(problem: optimise.Problem, starts: int, given: int) -> dict[str, NDArray[np.float64]]:
    """Where free conditions start, (starts,) by name: given structures at the default or the nearest bound, others spread.

    Args:
        problem: problem of the run.
        starts: number of starts.
        given: number of given structures, which are the first starts.
    """
    values = spread(problem.free, starts)
    for condition in problem.source.metadata().conditions:
        if condition.name in values:
            values[condition.name][:given] = np.clip(condition.defaults[0], *problem.free[condition.name])
    return values


def starting(
    name: str,
    starts: int,
    seed: int,
    info: SourceInfo,
    parameterisation: Parameterisation,
    given: Starts | None,
) -> tuple[optimise.Optimiser, NDArray[np.uint8] | None]:
    """The optimiser, and the binary structures of its starts where some were given: the result is never worse than they.

    Args:
        name: name of the optimiser.
        starts: number of starts, at least that of the given ones; the others are random.
        seed: seed of the random number generator.
        info: description of the source.
        parameterisation: parameterisation of the run.
        given: given starts, if there are any.

    Raises:
        ValueError: see `metaspec.optimise.by_name`.
    """
    shape, pixel_nm = info.pixels, info.process.pixel_nm
    if given is None:
        return optimise.by_name(name, starts, seed, shape=shape, pixel_nm=pixel_nm), None
    method = optimise.by_name(name, starts, seed, shape=shape, pixel_nm=pixel_nm, latents=given.latent)
    structure = parameterisation.binary(method.ask())
    structure[: len(given.structure)] = given.structure
    return method, structure
