"""`metaspec`: spectra of a file of structures, and inverse design of colour routers, from a server or another source."""

from __future__ import annotations

import math
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType, ModuleType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from tqdm import tqdm

from metaspec import objectives, optimise
from metaspec._cli import bulk, display, runs
from metaspec._cli.conditions import ConditionOption, Distance, FreeOption, read_free
from metaspec._cli.jobs import jobs
from metaspec._cli.mcp import mcp
from metaspec._cli.polish import polish
from metaspec._cli.sources import (
    LONGEST_WAIT,
    SURROGATE,
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
from metaspec._cli.starts import (
    StartCell,
    StartFiles,
    StartLayer,
    read_starts,
    start_settings,
    starting,
    starting_conditions,
    starts_on,
)
from metaspec._design.features import import_imageruler
from metaspec._design.filters import RADIUS_NM
from metaspec._run_progress import recorded
from metaspec._surrogate.base import DEFAULT_URL
from metaspec._version import __version__
from metaspec.optimise.free_conditions import STEPPING, varies_conditions
from metaspec.optimise.stopping import Patience
from metaspec.topology import Parameterisation
from metaspec_contract.detectors import SPREAD
from metaspec_contract.files import read_array, replacing
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.source import SourceError
from metaspec_contract.spectra import MERGED_GREENS, Spectra

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Spectra and designs of metasurface colour routers, from a MetaSpec server or the solver.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaspec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def predict(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=".npy file of structures, (y, x) or (N, y, x), 1 = solid.")],
    source: SourceOption = SURROGATE,
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    cells: Cells = None,
    workers: Workers = None,
    process: ProcessFile = None,
    condition: ConditionOption = None,
    distance_um: Distance = None,
    wait: Wait = LONGEST_WAIT,
    out: Annotated[Path | None, typer.Option(help="Write the spectra to this .npy or .csv file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the spectra of the best structure (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Predict spectra and print the colour efficiencies.

    Files may be larger than memory. After Ctrl-C, the same command resumes.
    """
    if out is not None and out.suffix not in (".npy", ".csv"):
        raise ValueError(f"--out must end in .npy or .csv, got {out}")
    if out is not None and out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"--out would replace the structures in {file}: give another file")
    if plot is not None:
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {plot}")
        _figures()  # needed at the end
    for name, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: folder {path.parent} does not exist")
    chosen = choose_source(context, source)
    with chosen.open() as origin, tempfile.TemporaryDirectory() as scratch:
        read_array(file, mmap_mode="r")  # what is not a file of numbers is refused before a server is asked
        structures = bulk.open_structures(file, origin.metadata().pixels)
        partial = Path(scratch) / "spectra.npy" if out is None else out.with_name(f"{out.name}.partial")
        finished = 0
        bar = tqdm(total=len(structures), unit="structure", disable=None, leave=False)

        def advance(count: int) -> None:
            nonlocal finished
            finished += count
            bar.update(count)

        def where() -> str:
            return f" with {finished} of {len(structures)} structures done" if finished else ""

        def tell(notice: str) -> None:
            if bar.disable:
                typer.echo(notice, err=True)
            else:
                bar.set_postfix_str(notice)

        with runs.resumable(where, out is not None), bar, display.notices(tell):
            spectra = bulk.predict_to_file(origin, structures, partial, advance)
        best = 0
        if spectra.colours:
            efficiency = bulk.colour_efficiency(spectra)
            Console(highlight=False).print(display.efficiencies(spectra, efficiency))
            best = int(efficiency.min(axis=1).argmax())
        else:
            typer.echo(
                f"No colour has its band between {spectra.wavelengths_nm[0]:g} and {spectra.wavelengths_nm[-1]:g} nm."
            )
        if plot is not None:
            _plot_best(spectra, best, plot)
        if out is not None:
            if out.suffix == ".csv":
                bulk.write_csv(spectra, out)
                partial.unlink()
            else:
                bulk.finish(partial, out)
            typer.echo(f"{out} holds the spectra, {' x '.join(map(str, spectra.values.shape))}.")


def _figures() -> ModuleType:
    """The module that draws, which needs the extra "optimise"; the ImportError names it."""
    from metaspec import figures

    return figures


def _plot_best(spectra: Spectra, best: int, path: Path) -> None:
    verb = "simulated" if spectra.simulated else "predicted"
    title = f"structure {best} of {len(spectra)}, {verb} by {spectra.label}"
    with replacing(path) as partial:
        _figures().draw_spectra(spectra[best], title=title).savefig(partial, dpi=110)
    typer.echo(f"{path} shows the spectra of structure {best}.")


@app.command("optimise")
def design(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run folder. An interrupted run in it is resumed.")],
    objective: Annotated[str, typer.Option(help=f"{', '.join(objectives.NAMES)}.")] = "bayer",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 200,
    starts: Annotated[
        int,
        typer.Option(
            help="Starts, in one batch, or size of the population. With --start, those of the files only, unless this is "
            "given: then random ones are added to them, up to this number.",
            min=1,
        ),
    ] = 16,
    start: StartFiles = None,
    start_cell: StartCell = None,
    start_layer: StartLayer = "1/0",
    patience: Annotated[
        int, typer.Option(help="End a stage of the steepness after this many steps without a gain; 0 for never.", min=0)
    ] = 0,
    min_gain: Annotated[
        float, typer.Option(help="Smallest rise of the objective that --patience counts as a gain.", min=0)
    ] = 1e-3,
    optimiser: Annotated[str, typer.Option(help=f"{', '.join(optimise.NAMES)}.")] = "adam",
    radius_nm: Annotated[
        float, typer.Option(help="Radius of the density filter, which sets the length scale.")
    ] = RADIUS_NM,
    symmetry: Annotated[str, typer.Option(help="diagonal or none.")] = "none",
    robust_delta: Annotated[
        float,
        typer.Option(help="Optimise the worst of eroded, nominal and dilated structure, thresholded at 0.5 +- this."),
    ] = 0.0,
    spread_penalty: Annotated[
        float,
        typer.Option(
            help="Weight of the model's channel spread, its uncertainty, subtracted from the objective.", min=0
        ),
    ] = 0.0,
    min_feature_nm: Annotated[
        float, typer.Option(help="Minimum width of solid and void, kept in the optimisation; 0 for any.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random starts.", min=0)] = 0,
    gds_layer: runs.GdsLayer = "1/0",
    gds_unit_nm: runs.GdsUnit = None,
    contour_tolerance_nm: runs.Tolerance = None,
    source: SourceOption = SURROGATE,
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    cells: Cells = None,
    workers: Workers = None,
    process: ProcessFile = None,
    condition: ConditionOption = None,
    distance_um: Distance = None,
    free: FreeOption = None,
    wait: Wait = LONGEST_WAIT,
    check: runs.Check = False,
) -> None:
    """Design colour routers from random or given starts, all in one batch.

    A server that goes away is waited for. After Ctrl-C or the final loss of the server, the same command resumes and ends with
    the same designs.
    """
    from metaspec.designs import shifted_edges, write_designs  # needs the extra "optimise"

    goal = objectives.by_name(objective)
    Patience(patience or None, min_gain)  # refused before anything is asked or written
    Parameterisation(radius_nm, None if symmetry == "none" else symmetry)
    stop_rule: dict[str, Any] = {"patience": patience, "min_gain": min_gain} if patience else {}
    layer = runs.solid_layer(gds_layer)
    drawings = read_starts(start, start_cell, start_layer)
    kind = optimise.find(optimiser, starts)
    if not getattr(kind, "needs_gradient", True) and drawings:
        raise ValueError(f"--start needs an optimiser with gradients, got --optimiser {optimiser}")
    starts = _number_of_starts(context, starts, sum(drawing.count for drawing in drawings))
    chosen = choose_source(context, source)
    bounds = read_free(free, chosen.conditions)
    if bounds and not varies_conditions(kind):
        raise ValueError(f"--free needs an optimiser of single gradient steps, {STEPPING}, got --optimiser {optimiser}")
    settings = {
        **runs.run_settings(
            objective=objective,
            steps=steps,
            stop_rule=stop_rule,
            starts=starts,
            optimiser=optimiser,
            radius_nm=radius_nm,
            symmetry=symmetry,
            robust_delta=robust_delta,
            spread_penalty=spread_penalty,
            min_feature_nm=min_feature_nm,
            seed=seed,
            gds_layer=gds_layer,
        ),
        **runs.layout_settings(gds_unit_nm, contour_tolerance_nm),
        **start_settings(drawings, start_cell, start_layer),
        **chosen.settings,
        **({"free": {name: list(ends) for name, ends in bounds.items()}} if bounds else {}),
    }
    if check or runs.is_done(out, settings):
        return
    import_imageruler()  # first needed at the end of the run
    console = Console(highlight=False)
    with chosen.open(cache=out / runs.CACHE) as origin:
        info = origin.metadata()
        if not 0 <= spread_penalty < math.inf:
            raise ValueError(f"--spread-penalty must be a finite number of at least 0, got {spread_penalty}")
        if spread_penalty:
            if SPREAD not in info.channels:
                raise ValueError(
                    f"--spread-penalty: {info.name} has no channel {SPREAD}, only {', '.join(info.channels)}"
                )
            goal = goal - spread_penalty * objectives.Spread()
        runs.check_objective(objective, goal, info)
        parameterisation = runs.parameterisation_for(
            info, radius_nm, None if symmetry == "none" else symmetry, min_feature_nm
        )
        problem = optimise.Problem(origin, goal, parameterisation, robust_delta=robust_delta, free=bounds)
        runs.check_layouts(info.process, gds_unit_nm, contour_tolerance_nm)
        given = starts_on(drawings, info.process, parameterisation) if drawings else None
        method, structure = starting(optimiser, starts, seed, info, parameterisation, given)
        runs.check_answers(origin, method.needs_gradient)
        context.with_resource(runs.working_in(out, settings))
        checkpoint = out / runs.CHECKPOINT
        verb = "Resuming" if checkpoint.exists() else "Optimising"
        address = f" at {url}" if source == SURROGATE else ""
        rows = len(method.ask())
        varied = "".join(f", {name} free from {low:g} to {high:g}" for name, (low, high) in bounds.items())
        typer.echo(
            f"{verb} objective {objective}, {rows} starts, {optimiser}; {info.label}{address}{chosen.stated}{varied}"
        )
        for remark in [] if given is None else given.remarks:
            typer.echo(remark)
        if info.merged_greens:
            typer.echo(f"{MERGED_GREENS}.")
        shown = display.RunDisplay(console, problem, steps)
        with runs.resumable(shown.where):
            with shown:
                result = optimise.run(
                    problem,
                    method,
                    steps,
                    structure=structure,
                    conditions=None if given is None else starting_conditions(problem, rows, len(given.structure)),
                    checkpoint=checkpoint,
                    callback=recorded(out, shown),
                    progress=False,
                    **stop_rule,
                )
            if left := steps - len(result.history.value):
                typer.echo(
                    f"{left} of {steps} steps left out: no gain of {min_gain:g} in {patience} steps before them."
                )
            with console.status(f"Measuring, drawing and writing {len(result.structure)} designs ..."):
                report = write_designs(
                    out,
                    result,
                    origin,
                    objective=objective,
                    settings=settings,
                    seed=seed,
                    gds_layer=layer,
                    gds_unit_nm=gds_unit_nm,
                    contour_tolerance_nm=contour_tolerance_nm,
                    shifted=shifted_edges(problem, result),
                    ranked_by=runs.ranked_by(objective, robust_delta, spread_penalty),
                )
    advice = (
        f"They are simulated by {info.label}: metaspec-simulate verify {out} --cells N checks them on another grid."
        if info.simulated
        else f"These are predictions: metaspec-simulate verify {out} checks them with the solver, metaspec polish {out} "
        "improves them there."
    )
    runs.end(out, console, result, report, advice)


def _number_of_starts(context: typer.Context, starts: int, given: int) -> int:
    """Number of starts of a run: with given structures, these only, unless --starts asks for more."""
    asked = context.get_parameter_source("starts")
    if not given or (asked is not None and asked.name == "COMMANDLINE"):
        if starts < given:
            raise ValueError(f"--starts must be at least the {given} structures of --start, got {starts}")
        return starts
    return given


app.command()(polish)
app.command()(mcp)
app.command()(jobs)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unlike the default action, this runs cleanup code


def run_command() -> None:
    """Run the command with the arguments of the process; an error is one line on stderr and exit status 2."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    try:
        # typer itself prints the help where there are no arguments.
        status = app(arguments, prog_name="metaspec", standalone_mode=not arguments)
    except (ValueError, OSError, ImportError, SourceError) as error:
        _fail(str(error))
    except typer.Abort:
        typer.echo("Interrupted.", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error: not all versions of typer export its class
            raise
        _fail(" ".join(error.format_message().split()))
    raise SystemExit(status)


def _fail(message: str) -> NoReturn:
    typer.echo(f"metaspec: {message}", err=True)
    raise SystemExit(2)
