"""`metaspec polish`: the designs of a run folder improved on the solver."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from metaspec import objectives, optimise
from metaspec._cli import display
from metaspec._cli.runs import (
    CACHE,
    CHECKPOINT,
    Check,
    GdsLayer,
    GdsUnit,
    Tolerance,
    check_answers,
    check_layouts,
    check_objective,
    end,
    is_done,
    layout_settings,
    parameterisation_for,
    resumable,
    solid_layer,
    working_in,
)
from metaspec._cli.sources import (
    LONGEST_WAIT,
    ApiKey,
    Cells,
    Model,
    ProcessFile,
    SourceOption,
    Url,
    Wait,
    Workers,
    choose_source,
)
from metaspec._design.features import import_imageruler
from metaspec._design.filters import RADIUS_NM
from metaspec._run_progress import recorded
from metaspec._source import predict_at
from metaspec._surrogate.base import DEFAULT_URL
from metaspec_contract.files import read_array
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.report_page import refresh_page
from metaspec_contract.run_folder import DESIGNS, REPORT, RunReport, Unpolished, read_report
from metaspec_contract.structures import Structure, check_binary

_SEARCH = {"decay": 1e-3}  # share of the light left in the grid while designs change: faster, and as good a gradient
_SHARPER = {"bayer": "balanced"}  # objectives that polishing replaces by one that balances the colours better


def polish(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Run folder of `metaspec optimise`.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Run folder for the polished designs.  [default: FOLDER/polished]")
    ] = None,
    best: Annotated[int, typer.Option(help="Number of designs to polish, best first.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps, each of one gradient of every design.", min=1)] = 90,
    objective: Annotated[
        str | None, typer.Option(help="As for optimise.  [default: that of FOLDER; balanced for bayer]")
    ] = None,
    radius_nm: Annotated[float, typer.Option(help="Radius of the density filter.")] = RADIUS_NM,
    min_feature_nm: Annotated[
        float | None,
        typer.Option(help="Minimum width of solid and void; 0 for any.  [default: that of FOLDER]", min=0),
    ] = None,
    gds_layer: GdsLayer = "1/0",
    gds_unit_nm: GdsUnit = None,
    contour_tolerance_nm: Tolerance = None,
    source: SourceOption = "solver",
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    cells: Cells = None,
    workers: Workers = None,
    process: ProcessFile = None,
    wait: Wait = LONGEST_WAIT,
    check: Check = False,
) -> None:
    """Improve the best designs of a run on the solver, keeping the minimum feature size.

    Writes the same kind of folder, whose report compares prediction and simulation before and after. After Ctrl-C, the same
    command resumes.
    """
    from metaspec.designs import predicted, write_designs  # needs the extra "optimise"

    found = read_report(folder)
    designs, own = _read_designs(folder, found)[:best], _own_conditions(found, best)
    name = _SHARPER.get(found.objective, found.objective) if objective is None else objective
    goal = objectives.by_name(name)
    layer = solid_layer(gds_layer)
    width = _width_of(folder, found) if min_feature_nm is None else min_feature_nm
    symmetry = "diagonal" if (designs == designs.transpose(0, 2, 1)).all() else None
    chosen = choose_source(context, source, process=found.process, conditions=found.conditions)
    out = folder / "polished" if out is None else out
    settings = {
        "polishes": hashlib.sha256(designs.tobytes()).hexdigest()[:16],
        "objective": name,
        "steps": steps,
        "best": len(designs),
        "radius_nm": radius_nm,
        "min_feature_nm": width,
        "gds_layer": gds_layer,
        **layout_settings(gds_unit_nm, contour_tolerance_nm),
        **chosen.settings,
        **({"each_at": own} if own else {}),
    }
    if check or is_done(out, settings):
        return
    import_imageruler()  # first needed after the first gradient
    console = Console(highlight=False)
    cache, checkpoint = out / CACHE, out / CHECKPOINT
    with chosen.open(cache=cache) as exact, chosen.open(cache=cache, **_SEARCH) as origin:
        info = origin.metadata()
        if difference := found.process.difference(info.process):
            raise ValueError(f"{folder} holds designs for another process than that of {info.label}: {difference}")
        check_objective(name, goal, info)
        check_layouts(info.process, gds_unit_nm, contour_tolerance_nm)
        parameterisation = parameterisation_for(info, radius_nm, symmetry, width)
        problem = optimise.Problem(origin, goal, parameterisation)
        check_answers(origin)
        context.with_resource(working_in(out, settings))
        verb = "Resuming" if checkpoint.exists() else "Polishing"
        each = "".join(f", each at its {condition}" for condition in own)
        typer.echo(f"{verb} {len(designs)} designs of {folder}, objective {name}; {info.label}{chosen.stated}{each}")
        shown = display.RunDisplay(console, problem, steps)
        with resumable(shown.where):
            with shown:
                result = optimise.polish(
                    problem,
                    designs,
                    steps,
                    conditions=own,
                    checkpoint=checkpoint,
                    callback=recorded(out, shown),
                    progress=False,
                )
            origin.close()  # its worker processes
            with console.status("Simulating, measuring, drawing and writing the designs ..."):
                before = predict_at(exact, designs, own)
                after = predict_at(exact, result.structure, result.conditions)
                unpolished = [
                    Unpolished(rank=rank, predicted=found.designs[rank].predicted, simulated=predicted(before[rank]))
                    for rank in range(len(designs))
                ]
                report = write_designs(
                    out,
                    result.judged_again(result.structure, goal(after)[0], after),
                    exact,
                    objective=name,
                    settings=settings,
                    gds_layer=layer,
                    gds_unit_nm=gds_unit_nm,
                    contour_tolerance_nm=contour_tolerance_nm,
                    unpolished=unpolished,
                )
                refresh_page(folder)
    end(out, console, result, report, f"metaspec-simulate verify {out} --cells N checks them on another grid.")


def _width_of(folder: Path, report: RunReport) -> float:
    """The minimum feature size of a run in nm, 0 for none.

    Raises:
        ValueError: the report names one that is not a number of at least 0.
    """
    width = report.settings.get("min_feature_nm", 0)
    if isinstance(width, bool) or not isinstance(width, int | float) or width < 0:
        raise ValueError(f"{folder / REPORT}: settings.min_feature_nm must be a number of at least 0, got {width!r}")
    return float(width)


def _own_conditions(report: RunReport, best: int) -> dict[str, list[float]]:
    """Values of the conditions of which each design has its own, of the best designs, by name."""
    first = [design.conditions or {} for design in report.designs[:best]]
    return {name: [one[name] for one in first] for name in first[0]}


def _read_designs(folder: Path, report: RunReport) -> Structure:
    """The designs of a run folder, best first.

    Raises:
        ValueError: the file is missing, damaged or contradicts the report.
    """
    path = folder / DESIGNS
    structures = check_binary(read_array(path), report.process.structure_shape, f"{path}: structures")
    if len(structures) != len(report.designs):
        raise ValueError(f"{path} has {len(structures)} rows but the report lists {len(report.designs)} designs")
    return structures
