"""`metaspec`: predict spectra of a file of structures, and design colour routers, both through a server."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from tqdm import tqdm

from metaspec import objectives, optimise
from metaspec._cli import bulk, display
from metaspec._errors import MetaSpecError
from metaspec._surrogate.base import DEFAULT_URL
from metaspec._surrogate.client import Surrogate
from metaspec.designs import begin, is_finished, mended, pixel_nm, write_designs
from metaspec.figures import draw_spectra
from metaspec.gds import check_layer
from metaspec.topology import Parameterisation, without_small_features
from metaspec_contract.files import replacing

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Spectra and designs of metasurface colour routers from a MetaSpec server.",
)

_BATCH = 32  # structures in a request: small enough to be answered in seconds by a server without a GPU

_URL = Annotated[str, typer.Option(help="Address of the server.")]
_MODEL = Annotated[str, typer.Option(help="Model to ask.")]
_API_KEY = Annotated[
    str | None, typer.Option(help="For a server that wants one.", envvar="METASPEC_API_KEY", show_envvar=True)
]


@app.command()
def predict(
    file: Annotated[Path, typer.Argument(help=".npy file of structures, (128, 128) or (N, 128, 128), 1 = solid.")],
    url: _URL = DEFAULT_URL,
    model: _MODEL = "diffractionnet",
    api_key: _API_KEY = None,
    out: Annotated[Path | None, typer.Option(help="Write the spectra to this .npy or .csv file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the spectra of the best structure (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Predict spectra, print the colour efficiencies.

    Files larger than memory work. Interrupted with Ctrl-C, the same command goes on where it stopped.
    """
    if out is not None and out.suffix not in (".npy", ".csv"):
        raise ValueError(f"--out must end in .npy or .csv, got {out}")
    for name, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: there is no folder {path.parent}")
    with _surrogate(url, model, api_key) as surrogate, tempfile.TemporaryDirectory() as scratch:
        structures = bulk.open_structures(file, surrogate.metadata().pixels)
        partial = Path(scratch) / "spectra.npy" if out is None else out.with_name(f"{out.name}.partial")
        with tqdm(total=len(structures), unit="structure", disable=None, leave=False) as bar:
            try:
                spectra = bulk.predict_to_file(surrogate, structures, partial, bar.update)
            except KeyboardInterrupt:
                again = "" if out is None else " Repeat the command to go on."
                typer.echo(f"\nInterrupted with {bar.n} of {len(structures)} structures predicted.{again}", err=True)
                raise typer.Exit(130) from None
        efficiency = bulk.colour_efficiency(spectra)
        Console(highlight=False).print(display.efficiencies(spectra, efficiency))
        if plot is not None:
            best = int(efficiency.min(axis=1).argmax())
            title = f"structure {best} of {len(structures)}, predicted by {spectra.model} version {spectra.version}"
            with replacing(plot) as path:
                draw_spectra(spectra[best], title=title).savefig(path, dpi=110)
            typer.echo(f"{plot} shows the spectra of structure {best}.")
        if out is not None:
            if out.suffix == ".csv":
                bulk.write_csv(spectra, out)
                partial.unlink()
            else:
                partial.replace(out)
            typer.echo(f"{out} has the spectra, {' x '.join(map(str, spectra.values.shape))}.")


@app.command("optimise")
def design(
    out: Annotated[
        Path, typer.Option(help="Folder for the designs. If it holds a run that was interrupted, it goes on.")
    ],
    objective: Annotated[str, typer.Option(help="bayer, min, red, green, blue or colour-matrix.")] = "bayer",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 200,
    starts: Annotated[int, typer.Option(help="Random starts, one batch; or the size of a population.", min=1)] = 16,
    optimiser: Annotated[str, typer.Option(help=f"{', '.join(optimise.NAMES)}.")] = "adam",
    radius_nm: Annotated[float, typer.Option(help="Radius of the filter that sets the length scale.")] = 80.0,
    symmetry: Annotated[str, typer.Option(help="diagonal or none.")] = "none",
    robust_delta: Annotated[
        float, typer.Option(help="Optimise the worst of eroded, nominal and dilated; 0.5 +- this is the threshold.")
    ] = 0.0,
    spread_penalty: Annotated[
        float, typer.Option(help="Subtract this times the model's spread, where it tells how unsure it is.", min=0)
    ] = 0.0,
    min_feature_nm: Annotated[
        float, typer.Option(help="Mend narrower features of the designs at the end.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the random starts.", min=0)] = 0,
    gds_layer: Annotated[str, typer.Option(help="Layer and datatype of the solid in the layouts.")] = "1/0",
    url: _URL = DEFAULT_URL,
    model: _MODEL = "diffractionnet",
    api_key: _API_KEY = None,
) -> None:
    """Design colour routers from random starts, all starts as one batch.

    Interrupted with Ctrl-C or by a server that is gone, the same command goes on where it stopped, to the same designs.
    """
    goal = objectives.by_name(objective)
    layer = _layer(gds_layer)
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
        "model": model,
    }
    if is_finished(out, settings):
        typer.echo(f"{out} is finished, there is nothing to do: see {out / 'report.html'}")
        return
    console = Console(highlight=False)
    with _surrogate(url, model, api_key) as surrogate:
        info = surrogate.metadata()
        if spread_penalty:
            if "spread" not in info.channels:
                raise ValueError(f"--spread-penalty: {model} has no channel spread, only {', '.join(info.channels)}")
            goal = goal - spread_penalty * objectives.Spread()
        parameterisation = Parameterisation(radius_nm, None if symmetry == "none" else symmetry, pixel_nm(info))
        method = optimise.by_name(optimiser, starts, seed, shape=info.pixels)
        problem = optimise.Problem(surrogate, goal, parameterisation, robust_delta=robust_delta)
        if min_feature_nm:  # a width that cannot be had is said now, not after the run
            without_small_features(np.zeros(info.pixels), min_feature_nm, pixel_nm(info))
        begin(out, settings)
        checkpoint = out / "checkpoint.npz"
        verb = "Going on with" if checkpoint.exists() else "Optimising"
        typer.echo(
            f"{verb} objective {objective}, {starts} starts, {optimiser}; {model} version {info.version} at {url}"
        )
        shown = display.RunDisplay(console, problem, steps)
        try:
            with shown:
                result = optimise.run(problem, method, steps, checkpoint=checkpoint, callback=shown, progress=False)
            with console.status(f"Measuring, drawing and writing {len(result.structure)} designs ..."):
                if min_feature_nm:
                    result = mended(result, problem, min_feature_nm)
                report = write_designs(
                    out,
                    result,
                    surrogate,
                    objective=objective,
                    settings=settings,
                    seed=seed,
                    gds_layer=layer,
                )
        except (KeyboardInterrupt, MetaSpecError) as error:
            failed = isinstance(error, MetaSpecError)
            why = f"metaspec: {error}\nStopped" if failed else "Interrupted"
            where = f" after step {shown.step} of {steps}" if shown.step else ""
            typer.echo(f"{why}{where}. Repeat the command to go on.", err=True)
            raise typer.Exit(2 if failed else 130) from None
        checkpoint.unlink()
    console.print(display.designs(report))
    typer.echo(
        f"{result.structures_evaluated:,} structures in {result.wall_s:.0f} s. {out / 'report.html'} shows the designs.\n"
        f"These are predictions: metaspec-simulate verify {out} checks them with the solver."
    )


def _surrogate(url: str, model: str, api_key: str | None) -> Surrogate:
    return Surrogate(url, model=model, api_key=api_key, batch_size=_BATCH, timeout=120, progress=False)


def _layer(text: str) -> tuple[int, int]:
    layer, _, datatype = text.partition("/")
    try:
        numbers = int(layer), int(datatype)
    except ValueError:
        raise ValueError(f"--gds-layer must be two numbers, LAYER/DATATYPE, got {text!r}") from None
    check_layer(numbers)
    return numbers


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unlike the default, this cleans up on the way out


def run_command() -> None:
    """Run the command with the arguments of the process; errors are one line, with exit status 2."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(prog_name="metaspec")
    except (ValueError, OSError, ImportError, MetaSpecError) as error:
        typer.echo(f"metaspec: {error}", err=True)
        raise SystemExit(2) from None
