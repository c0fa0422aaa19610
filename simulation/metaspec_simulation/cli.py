"""`metaspec-simulate`: make a data set, go on with one, or import one."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from dask.distributed import Client, LocalCluster, as_completed, get_worker
from tqdm import tqdm

from metaspec_simulation.dataset import (
    Recipe,
    given_recipe,
    missing_shards,
    open_dataset,
    read_dataset,
    write_samples,
)
from metaspec_simulation.importer import find_pairs, import_pairs
from metaspec_simulation.process import Process
from metaspec_simulation.solver import Solver

_TOPIC = "simulated"

_PROCESS = Annotated[
    Path | None, typer.Option(help="JSON file with a process other than the default.", exists=True, dir_okay=False)
]


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make data sets of simulated structures. Options without a command are those of `run`.",
)


@app.command("run")
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the data set. If it exists, only what is missing is simulated.")],
    count: Annotated[int | None, typer.Option(help="Samples that the data set shall have in all.", min=1)] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            help="Simulate these instead of random ones: a .npy file (N, 128, 128).", exists=True, dir_okay=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine, one thread each.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="From which the structures follow.", min=0)] = 0,
    cells: Annotated[int, typer.Option(help="Solver grid cells per period.", min=24, max=512)] = 64,
    process: _PROCESS = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, to use its workers instead of local ones.")
    ] = None,
) -> None:
    """Simulate structures and write them, with their spectra, to a Zarr data set.

    Killed or interrupted with Ctrl-C, it goes on where it stopped when the same command is given again.
    """
    device = _read_process(process)
    given = None
    if structures is not None:
        if count is not None:
            raise ValueError("--count and --structures exclude each other")
        given = np.load(structures, allow_pickle=False)
        recipe, count = given_recipe(device, cells, given), len(given)
    elif count is not None:
        recipe = Recipe(device, seed=seed, cells=cells)
    else:
        raise ValueError("give --count, the number of samples, or --structures, a file of them")
    group = open_dataset(out, recipe, count, given)
    shards = missing_shards(group)
    total, missing = group["structure"].shape[0], sum(stop - start for start, stop in shards)
    if not missing:
        typer.echo(f"{out} already has {total} samples: nothing to do.")
        return
    # Threads of a worker would fight over its core, and numba compiles for it once.
    cluster = None if scheduler else LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with Client(scheduler or cluster) as client, tqdm(total=total, initial=total - missing, unit="structure") as bar:
        client.subscribe_topic(_TOPIC, lambda event: bar.update(1))
        futures = [client.submit(_simulate_shard, str(out.absolute()), recipe, *shard, pure=False) for shard in shards]
        try:
            for future in as_completed(futures):
                future.result()
                future.release()
        except KeyboardInterrupt:
            client.cancel(futures, force=True)
            left = sum(stop - start for start, stop in missing_shards(read_dataset(out)))
            typer.echo(f"\nInterrupted with {total - left} of {total} samples written. Repeat the command to go on.")
            raise typer.Exit(130) from None
        finally:
            if cluster is not None:
                client.shutdown()
    typer.echo(f"{out} has {total} samples.")


@functools.cache
def _solver(process: Process, cells: int, tail: float) -> Solver:
    return Solver(process, cells, tail)


def _simulate_shard(out: str, recipe: Recipe, start: int, stop: int) -> None:
    worker = get_worker()
    solver = _solver(recipe.process, recipe.cells, recipe.tail)
    group = read_dataset(Path(out), mode="r+")
    write_samples(group, recipe, solver, start, stop, report=lambda: worker.log_event(_TOPIC, 1))


@app.command("import")
def import_files(
    folder: Annotated[Path, typer.Argument(help="Folder of the .npy files.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")],
    process: _PROCESS = None,
) -> None:
    """Make a data set of simulations done elsewhere.

    FOLDER holds pairs of files, binary_dataset_128_<k>.npy with structures and spectra_latest_<k>.npy with their spectra.
    """
    device = _read_process(process)
    pairs = find_pairs(folder, device)
    with tqdm(total=sum(pair.rows for pair in pairs), unit="row") as bar:
        result = import_pairs(pairs, out, device, bar.update)
    typer.echo(str(result))


def _read_process(path: Path | None) -> Process:
    return Process.model_validate_json(path.read_text()) if path else Process()


def main() -> None:
    """Entry point of the command."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments = ["run", *arguments]  # simulating is what the command is for
    try:
        app(arguments)
    except (ValueError, OSError) as error:
        typer.echo(f"metaspec-simulate: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
