"""`metaspec`: spectra of a file of structures, and inverse design of colour routers, from a server or another source."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType, ModuleType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from tqdm import tqdm

from metaspec import objectives, optimise
from metaspec._cli import bulk, display, runs
from metaspec._cli.polish import polish
from metaspec._cli.sources import (
    SURROGATE,
    ApiKey,
    Cells,
    Model,
    ProcessFile,
    SourceOption,
    Url,
    Workers,
    choose_source,
)
from metaspec._design.features import import_imageruler
from metaspec._surrogate.base import DEFAULT_URL
from metaspec._version import __version__
from metaspec_contract.detectors import SPREAD
from metaspec_contract.files import replacing
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
    file: Annotated[Path, typer.Argument(help=".npy file of structures, (128, 128) or (N, 128, 128), 1 = solid.")],
    source: SourceOption = SURROGATE,
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    cells: Cells = None,
    workers: Workers = None,
    process: ProcessFile = None,
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
    if plot is not None:
        _figures()  # needed at the end
    for name, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: folder {path.parent} does not exist")
    chosen = choose_source(context, source)
    with chosen.open() as origin, tempfile.TemporaryDirectory() as scratch:
        structures = bulk.open_structures(file)
        partial = Path(scratch) / "spectra.npy" if out is None else out.with_name(f"{out.name}.partial")
        with tqdm(total=len(structures), unit="structure", disable=None, leave=False) as bar:
            try:
                spectra = bulk.predict_to_file(origin, structures, partial, bar.update)
            except KeyboardInterrupt:
                again = "" if out is None else " Repeat the command to resume."
                typer.echo(f"\nInterrupted with {bar.n} of {len(structures)} structures done.{again}", err=True)
                raise typer.Exit(130) from None
        efficiency = bulk.colour_efficiency(spectra)
        Console(highlight=False).print(display.efficiencies(spectra, efficiency))
        if plot is not None:
            _plot_best(spectra, int(efficiency.min(axis=1).argmax()), plot)
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
    objective: Annotated[str, typer.Option(help="bayer, balanced, min, red, green, blue or colour-matrix.")] = "bayer",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 200,
    starts: Annotated[int, typer.Option(help="Random starts, in one batch; or size of the population.", min=1)] = 16,
    optimiser: Annotated[str, typer.Option(help=f"{', '.join(optimise.NAMES)}.")] = "adam",
    radius_nm: Annotated[float, typer.Option(help="Radius of the density filter, which sets the length scale.")] = 80.0,
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
    source: SourceOption = SURROGATE,
    url: Url = DEFAULT_URL,
    model: Model = DEFAULT_MODEL,
    api_key: ApiKey = None,
    cells: Cells = None,
    workers: Workers = None,
    process: ProcessFile = None,
) -> None:
    """Design colour routers from random starts, all in one batch.

    After Ctrl-C or the loss of the server, the same command resumes and ends with the same designs.
    """
    from metaspec.designs import begin, write_designs  # needs the extra "optimise"

    goal = objectives.by_name(objective)
    layer = runs.read_layer(gds_layer)
    chosen = choose_source(context, source)
    settings = {
        "objective": objective,
        "steps": steps,
        "starts": starts,
        "optimiser": optimiser,
        "radius_nm": radius_nm,
        "symmetry": symmetry,
        "robust_delta": robust_delta,
        "spread_penalty": spread_penalty,
        "min_feature_nm": min_feature_nm,
        "seed": seed,
        "gds_layer": gds_layer,
        **chosen.settings,
    }
    if runs.is_done(out, settings):
        return
    import_imageruler()  # first needed at the end of the run
    method = optimise.by_name(optimiser, starts, seed)
    console = Console(highlight=False)
    with chosen.open(cache=out / runs.CACHE) as origin:
        info = origin.metadata()
        if spread_penalty:
            if SPREAD not in info.channels:
                raise ValueError(
                    f"--spread-penalty: {info.name} has no channel {SPREAD}, only {', '.join(info.channels)}"
                )
            goal = goal - spread_penalty * objectives.Spread()
        parameterisation = runs.parameterisation_for(
            info, radius_nm, None if symmetry == "none" else symmetry, min_feature_nm
        )
        problem = optimise.Problem(origin, goal, parameterisation, robust_delta=robust_delta)
        begin(out, settings)
        checkpoint = out / runs.CHECKPOINT
        verb = "Resuming" if checkpoint.exists() else "Optimising"
        address = f" at {url}" if source == SURROGATE else ""
        typer.echo(f"{verb} objective {objective}, {starts} starts, {optimiser}; {info.label}{address}")
        if info.merged_greens:
            typer.echo(f"{MERGED_GREENS}.")
        shown = display.RunDisplay(console, problem, steps)
        with runs.resumable(shown, steps):
            with shown:
                result = optimise.run(problem, method, steps, checkpoint=checkpoint, callback=shown, progress=False)
            with console.status(f"Measuring, drawing and writing {len(result.structure)} designs ..."):
                report = write_designs(
                    out,
                    result,
                    origin,
                    objective=objective,
                    settings=settings,
                    seed=seed,
                    gds_layer=layer,
                )
    advice = (
        f"They are simulated by {info.label}: metaspec-simulate verify {out} --cells N checks them on another grid."
        if info.simulated
        else f"These are predictions: metaspec-simulate verify {out} checks them with the solver, metaspec polish {out} "
        "improves them there."
    )
    runs.end(out, console, result, report, advice)


app.command()(polish)


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
