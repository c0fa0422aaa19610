"""`metaspec-simulate`: make a data set, go on with one, import one, and check the designs of an optimiser."""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from dask.distributed import Client, Future, LocalCluster, as_completed, get_worker
from tqdm import tqdm

from metaspec_contract.files import read_array
from metaspec_contract.process import Process
from metaspec_simulation import verify as truth
from metaspec_simulation.data.importer import find_pairs, import_pairs
from metaspec_simulation.data.recipe import Recipe, given_recipe
from metaspec_simulation.dataset import (
    Group,
    add_structures,
    missing_shards,
    open_dataset,
    read_dataset,
    write_samples,
)
from metaspec_simulation.designs import candidates, read_designs
from metaspec_simulation.physics.solver import Solver

_TOPIC = "simulated"
_FROM = "--from-designs"

_PROCESS = Annotated[
    Path | None, typer.Option(help="JSON file with a process other than the default.", exists=True, dir_okay=False)
]


_OTHER_PROCESS = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with the process, instead of the one that report.json names.", exists=True, dir_okay=False
    ),
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
        given = read_array(structures)
        recipe, count = given_recipe(device, cells, given), len(given)
    elif count is not None:
        recipe = Recipe(device, seed=seed, cells=cells)
    else:
        raise ValueError("give --count, the number of samples, or --structures, a file of them")
    _simulate_missing(out, open_dataset(out, recipe, count, given), recipe, workers, scheduler)


@app.command("from-designs")
def simulate_designs(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Written by `metaspec optimise`.", exists=True, file_okay=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set. If it exists, the structures are appended.")],
    cells: Annotated[int, typer.Option(help="Solver grid cells per period.", min=24, max=512)] = 80,
    limit: Annotated[int | None, typer.Option(help="Take at most so many structures.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine, one thread each.", min=1)] = 1,
    process: _OTHER_PROCESS = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, to use its workers instead of local ones.")
    ] = None,
) -> None:
    """Simulate what optimisers designed and visited on the way, and append it to a data set of given structures.

    Of structures that are translations, rotations or mirror images of each other, one is taken, and none of which the data set
    has one already. Given again, the command goes on where it was interrupted, and adds nothing twice.
    """
    override = None if process is None else _read_process(process)
    found = [read_designs(folder, override) for folder in folders]
    if any(one.process != found[0].process for one in found):
        raise ValueError("the folders hold designs for different processes: make a data set of each")
    wanted = candidates(found, limit)
    recipe, new = add_structures(out, found[0].process, cells, wanted)
    seen = sum(len(one.structures) + len(one.trajectory) for one in found)
    typer.echo(f"{seen} structures found, {len(wanted)} of them taken, {new} new to {out}.")
    _simulate_missing(out, read_dataset(out, mode="r+"), recipe, workers, scheduler)


def _simulate_missing(out: Path, group: Group, recipe: Recipe, workers: int, scheduler: str | None) -> None:
    """Simulate what is still missing in a data set, with a progress bar; Ctrl-C stops it in good order."""
    shards = missing_shards(group)
    total, missing = group["complete"].shape[0], sum(stop - start for start, stop in shards)
    if not missing:
        typer.echo(f"{out} already has {total} samples: nothing to do.")
        return
    with _workers(workers, scheduler) as client, tqdm(total=total, initial=total - missing, unit="structure") as bar:
        client.subscribe_topic(_TOPIC, lambda event: bar.update(1))
        jobs = [client.submit(_simulate_shard, str(out.absolute()), recipe, *shard, pure=False) for shard in shards]
        if not _finish(client, jobs):
            left = sum(stop - start for start, stop in missing_shards(read_dataset(out)))
            typer.echo(f"\nInterrupted with {total - left} of {total} samples written. Repeat the command to go on.")
            raise typer.Exit(130)
    typer.echo(f"{out} has {total} samples.")


@contextmanager
def _workers(count: int, scheduler: str | None = None) -> Iterator[Client]:
    """Processes of one thread each: threads would fight over a core, and numba compiles for a process once."""
    cluster = None
    if scheduler is None:
        # Ctrl-C reaches all processes of a terminal. Only this one shall answer it, so the workers inherit not to.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            cluster = LocalCluster(
                n_workers=count, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
            )
        finally:
            signal.signal(signal.SIGINT, handler)
    with Client(scheduler or cluster) as client:
        try:
            yield client
        finally:
            if cluster is not None:
                client.shutdown()


def _finish(client: Client, jobs: list[Future], report: Callable[[], object] = lambda: None) -> bool:
    """Wait for jobs, calling `report()` after each; cancels what is left and returns False on Ctrl-C."""
    try:
        for job in as_completed(jobs):
            job.result()
            job.release()
            report()
    except KeyboardInterrupt:
        client.cancel(jobs, force=True)
        return False
    return True


@functools.cache
def _solver(process: Process, cells: int, tail: float) -> Solver:
    return Solver(process, cells, tail)


def _simulate_shard(out: str, recipe: Recipe, start: int, stop: int) -> None:
    worker = get_worker()
    solver = _solver(recipe.process, recipe.cells, recipe.tail)
    group = read_dataset(Path(out), mode="r+")
    write_samples(group, recipe, solver, start, stop, report=lambda: worker.log_event(_TOPIC, 1))


@app.command("verify")
def verify_designs(
    folder: Annotated[Path, typer.Argument(help="Written by `metaspec optimise`.", exists=True, file_okay=False)],
    cells: Annotated[
        list[int],
        typer.Option(
            help="Solver grid cells per period. Give it several times to see that it converges.", min=24, max=512
        ),
    ] = [80],  # noqa: B006  (typer copies it)
    best: Annotated[int | None, typer.Option(help="Only the first so many designs.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine, one thread each.", min=1)] = 1,
    process: _OTHER_PROCESS = None,
) -> None:
    """Simulate the designs of an optimiser and compare their spectra with the predicted ones.

    Prints a table and writes `verify.json` and `verify.png` into FOLDER. Simulations are kept in FOLDER/simulated: given again,
    the command goes on where it was interrupted, and nothing is simulated twice.
    """
    designs = read_designs(folder, None if process is None else _read_process(process))
    todo = truth.tasks(designs, cells, best)
    from metaspec_simulation.figures import draw_verification  # matplotlib: slow to import, and needed here only

    every = [task for row in todo for task in row]
    missing = [task for task in every if task.done is None]
    if missing:
        with (
            _workers(workers) as client,
            tqdm(total=len(every), initial=len(every) - len(missing), unit="simulation") as bar,
        ):
            jobs = [client.submit(_simulate_task, task, pure=False) for task in missing]
            if not _finish(client, jobs, lambda: bar.update(1)):
                done = sum(task.done is not None for task in every)
                typer.echo(f"\nInterrupted with {done} of {len(every)} simulations done. Repeat the command to go on.")
                raise typer.Exit(130)
    result = truth.compare(designs, todo)
    typer.echo(truth.table(result))
    draw_verification(result).savefig(folder / "verify.png", dpi=110)
    (folder / "verify.json").write_text(json.dumps(truth.as_json(result), indent=2) + "\n", encoding="utf-8")
    typer.echo(f"\n{folder / 'verify.json'} and verify.png have it all.")


def _simulate_task(task: truth.Task) -> None:
    task.simulate(_solver(task.process, task.cells, 25.0))


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
        # Simulating is what the command is for.
        arguments = ["from-designs" if _FROM in arguments else "run", *(one for one in arguments if one != _FROM)]
    try:
        app(arguments)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"metaspec-simulate: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
