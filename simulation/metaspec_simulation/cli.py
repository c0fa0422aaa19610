"""`metaspec-simulate`: make a data set, or go on with one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from dask.distributed import Client, LocalCluster, as_completed, get_worker
from tqdm import tqdm

from metaspec_simulation.dataset import Recipe, missing_shards, open_dataset, read_dataset, write_samples
from metaspec_simulation.process import Process
from metaspec_simulation.solver import Solver

_TOPIC = "simulated"


def simulate(
    count: Annotated[int, typer.Option(help="Samples that the data set shall have in all.", min=1)],
    out: Annotated[Path, typer.Option(help="Folder of the data set. If it exists, only what is missing is simulated.")],
    workers: Annotated[int, typer.Option(help="Processes on this machine, one thread each.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="From which the structures follow.", min=0)] = 0,
    cells: Annotated[int, typer.Option(help="Solver grid cells per period.", min=24, max=512)] = 64,
    process: Annotated[
        Path | None, typer.Option(help="JSON file with a process other than the default.", exists=True, dir_okay=False)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, to use its workers instead of local ones.")
    ] = None,
) -> None:
    """Simulate random structures and write them, with their spectra, to a Zarr data set.

    Killed or interrupted with Ctrl-C, it goes on where it stopped when the same command is given again.
    """
    device = Process.model_validate_json(process.read_text()) if process else Process()
    recipe = Recipe(device, seed=seed, cells=cells)
    group = open_dataset(out, recipe, count)
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


def main() -> None:
    """Entry point of the command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(simulate)
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        typer.echo(f"metaspec-simulate: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
