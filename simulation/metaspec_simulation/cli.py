"""`metaspec-simulate`: make, resume or import a data set, and verify the designs of an optimiser."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from tqdm import tqdm

from metaspec_contract.drawings import ENDINGS
from metaspec_contract.files import read_array, replacing, write_json
from metaspec_contract.gdsii import Layer
from metaspec_contract.layouts import parse_layer
from metaspec_contract.process import Process
from metaspec_contract.report_page import PAGE, refresh_page
from metaspec_contract.run_folder import REPORT, VERIFY
from metaspec_simulation.croissant import write_croissant
from metaspec_simulation.data.damage import finished
from metaspec_simulation.data.designs import candidates, read_designs
from metaspec_simulation.data.levels import as_structure
from metaspec_simulation.data.lock import exclusive
from metaspec_simulation.data.recipe import Recipe, given_levels, given_recipe
from metaspec_simulation.dataset import (
    Group,
    add_structures,
    check,
    mend,
    missing_shards,
    open_dataset,
    read_dataset,
    summary,
    write_samples,
    write_together,
)
from metaspec_simulation.import_command import import_files
from metaspec_simulation.jobs import Function, Job, Progress, run_here, run_on_cluster
from metaspec_simulation.physics.run import DECAY, LONGEST
from metaspec_simulation.physics.solver import Solver
from metaspec_simulation.process_option import print_process, read_stated
from metaspec_simulation.simulated import Task, simulations, tasks
from metaspec_simulation.structure_files import check_folder, read_structures, structure_tasks, write_results
from metaspec_simulation.verify import as_report, compare, table

_FROM = "--from-designs"

_PROCESS_FILE = typer.Option(
    help="JSON file with the fields of the process that differ from the default.", exists=True, dir_okay=False
)
_PROCESS_FILE_INSTEAD = typer.Option(
    help="JSON file with the process to simulate, instead of the one in report.json. Fields that it does not have are "
    "those of the default.",
    exists=True,
    dir_okay=False,
)
_CELLS = typer.Option(help="Solver grid cells per period.", min=24, max=512)
_WORKERS = typer.Option(help="Processes on this machine, one thread each.", min=1)
_SCHEDULER = typer.Option(help="Address of a Dask scheduler, to use its workers instead of local ones.")
_GPU = typer.Option("--gpu", help="Simulate on an NVIDIA GPU instead, hundreds of structures side by side.")
_ORDERS = typer.Option("--orders", help="Keep the Fourier orders of the field under the patterned layer, too.")
_RUN_FOLDER = typer.Argument(help="Folder written by `metaspec optimise`.", exists=True, file_okay=False)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make data sets of simulated structures. Options without a command are those of `run`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaspec-simulate {version('metaspec-lab')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command("run")
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the data set. If it exists, only what is missing is simulated.")],
    count: Annotated[int | None, typer.Option(help="Number of samples in the finished data set.", min=1)] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            help="Simulate these structures or densities instead of random ones: a .npy file (N, y, x).",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    workers: Annotated[int, _WORKERS] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random structures.", min=0)] = 0,
    cells: Annotated[int, _CELLS] = 64,
    longest: Annotated[
        float, typer.Option(help="Time at which a simulation ends even if light is left, um/c.", min=1, max=1e5)
    ] = LONGEST,
    orders: Annotated[bool, _ORDERS] = False,
    process: Annotated[Path | None, _PROCESS_FILE] = None,
    scheduler: Annotated[str | None, _SCHEDULER] = None,
    gpu: Annotated[bool, _GPU] = False,
) -> None:
    """Simulate structures and write them, with their spectra, to a Zarr data set.

    Killed or interrupted with Ctrl-C, it resumes when the same command is given again.
    """
    means = _means(workers, scheduler, gpu)
    device = Process() if process is None else read_stated(process)
    given = None
    if structures is not None:
        if count is not None:
            raise ValueError("--count and --structures exclude each other")
        given = as_structure(given_levels(read_array(structures), device, f"{structures}: structures"))
        recipe, count = given_recipe(device, cells, given, orders, longest), len(given)
    elif count is not None:
        recipe = Recipe(device, seed=seed, cells=cells, longest=longest, orders=orders)
    else:
        raise ValueError("give --count, the number of samples, or --structures, a file of them")
    with exclusive(out):
        group = open_dataset(out, recipe, count, given)
        for damage in mend(out, group, recipe, given):
            typer.echo(f"{damage.file} was damaged: its samples are simulated again.")
        _simulate_missing(out, group, recipe, means)


@app.command("from-designs")
def simulate_designs(
    folders: Annotated[list[Path], _RUN_FOLDER],
    out: Annotated[Path, typer.Option(help="Folder of the data set. If it exists, the structures are appended.")],
    cells: Annotated[int, _CELLS] = 80,
    limit: Annotated[int | None, typer.Option(help="Largest number of structures to take.", min=1)] = None,
    orders: Annotated[bool, _ORDERS] = False,
    workers: Annotated[int, _WORKERS] = 1,
    process: Annotated[Path | None, _PROCESS_FILE_INSTEAD] = None,
    scheduler: Annotated[str | None, _SCHEDULER] = None,
    gpu: Annotated[bool, _GPU] = False,
) -> None:
    """Simulate the structures that optimisers designed or visited on the way, and append them to a data set.

    Of structures that are translations, rotations or mirror images of each other, one is taken, and none that the data set
    already has. Given again, the command resumes where it was interrupted, and adds nothing twice.
    """
    means = _means(workers, scheduler, gpu)
    override = None if process is None else read_stated(process)
    found = [read_designs(folder, override) for folder in folders]
    for other in found[1:]:
        if difference := found[0].process.difference(other.process):
            raise ValueError(
                f"{found[0].folder} and {other.folder} hold designs for different processes: {difference}. "
                "Make a data set of each"
            )
    if override is None:
        print_process(found[0].process, found[0].folder / REPORT)
    wanted = candidates(found, limit)
    with exclusive(out):
        recipe, new = add_structures(out, found[0].process, cells, wanted, orders)
        seen = sum(len(one.structures) + len(one.trajectory) for one in found)
        typer.echo(f"{seen} structures found, {len(wanted)} of them taken, {new} new to {out}.")
        group = read_dataset(out, mode="r+")
        for damage in mend(out, group, recipe):
            typer.echo(f"{damage.file} was damaged: its samples are simulated again.")
        _simulate_missing(out, group, recipe, means)


_Means = Callable[[Path, Group, Recipe, list[tuple[int, int]], "tqdm[Any]"], None]
"""Simulates shards of a data set, and counts them on a bar."""


def _means(workers: int, scheduler: str | None, gpu: bool) -> _Means:
    """What simulates, as options say.

    Raises:
        ValueError: options exclude each other, or there is no GPU.
    """
    if not gpu:
        return functools.partial(_in_processes, workers=workers, scheduler=scheduler)
    if workers > 1 or scheduler is not None:
        raise ValueError("--gpu and --workers or --scheduler exclude each other")
    from metaspec_simulation.physics.cuda import require_gpu  # slow to import, and needed here only

    require_gpu("--gpu")
    return _on_gpu


def _simulate_missing(out: Path, group: Group, recipe: Recipe, means: _Means) -> None:
    """Simulate what is missing in a data set, with a progress bar; Ctrl-C stops it cleanly."""
    shards = missing_shards(group)
    total, missing = group["complete"].shape[0], sum(stop - start for start, stop in shards)
    if not missing:
        typer.echo(f"{out} already has {total} samples: nothing to do. {summary(group)}")
        return
    with tqdm(total=total, initial=total - missing, unit="structure") as bar:
        try:
            means(out, group, recipe, shards, bar)
        except KeyboardInterrupt:
            bar.close()
            done = int(finished(group).sum())
            typer.echo(f"\nInterrupted with {done} of {total} samples written. Repeat the command to resume.")
            raise typer.Exit(130) from None
    typer.echo(f"{out} has {total} samples. {summary(group)}")


def _in_processes(
    out: Path,
    group: Group,
    recipe: Recipe,
    shards: list[tuple[int, int]],
    bar: tqdm[Any],
    workers: int,
    scheduler: str | None,
) -> None:
    jobs = [(str(out.absolute()), recipe, start, stop) for start, stop in shards]
    _run(_simulate_shard, jobs, [stop - start for start, stop in shards], bar, workers, scheduler)


def _on_gpu(out: Path, group: Group, recipe: Recipe, shards: list[tuple[int, int]], bar: tqdm[Any]) -> None:
    from metaspec_simulation.physics.many import ManySolver

    solver = _solver(recipe.process, recipe.cells, recipe.decay, recipe.longest)
    write_together(group, recipe, ManySolver(solver), shards, bar.update)


def _run(
    function: Function[Job],
    jobs: list[Job],
    sizes: list[int],
    bar: tqdm[Any],
    workers: int,
    scheduler: str | None = None,
) -> None:
    progress = Progress(bar, sizes)
    if scheduler is None:
        run_here(function, jobs, workers, progress)
    else:
        run_on_cluster(function, jobs, scheduler, progress)


@functools.cache
def _solver(process: Process, cells: int, decay: float = DECAY, longest: float = LONGEST) -> Solver:
    return Solver(process, cells, decay, longest)


def _simulate_shard(job: tuple[str, Recipe, int, int], report: Callable[[], object]) -> None:
    out, recipe, start, stop = job
    solver = _solver(recipe.process, recipe.cells, recipe.decay, recipe.longest)
    write_samples(read_dataset(Path(out), mode="r+"), recipe, solver, start, stop, report)


@app.command("check")
def check_datasets(
    folders: Annotated[list[Path], typer.Argument(help="Folders of data sets.", exists=True, file_okay=False)],
    checksums: Annotated[
        Path | None,
        typer.Option(
            help="File with a line for each data set: SHA-256 of its structures, and its name. It must agree."
        ),
    ] = None,
) -> None:
    """Read all files of data sets, and compare their structures with checksums.

    Without --checksums, prints the lines of such a file.
    """
    expected = None if checksums is None else _read_checksums(checksums)
    for folder in folders:
        samples, total, checksum = check(folder)
        name = folder.resolve().name
        if expected is None:
            typer.echo(f"{checksum}  {name}")
            continue
        if name not in expected:
            raise ValueError(f"{checksums} has no line for {name}")
        if checksum != expected[name]:
            raise ValueError(
                f"{folder} holds other structures than {checksums} says: {checksum} instead of {expected[name]}"
            )
        typer.echo(f"{folder} is intact: {samples} of {total} samples. {summary(read_dataset(folder))}")


def _read_checksums(file: Path) -> dict[str, str]:
    """Checksums by name."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(line) != 2 for line in lines):
        raise ValueError(f"{file} must hold lines of a checksum and a name")
    return {name: checksum for checksum, name in lines}


@app.command("verify")
def verify_designs(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER | FILE...",
            help=f"Folder written by `metaspec optimise`, or files of structures ({', '.join(ENDINGS)}).",
            exists=True,
        ),
    ],
    cells: Annotated[
        list[int],
        typer.Option(help="Solver grid cells per period. Repeat it to check convergence.", min=24, max=512),
    ] = [80],  # noqa: B006  (typer copies it)
    best: Annotated[
        int | None, typer.Option(help="Number of designs to verify, best first; all by default.", min=1)
    ] = None,
    workers: Annotated[int, _WORKERS] = 1,
    process: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the process to simulate, instead of that in report.json, or of the default for files. Fields "
            "that it does not have are those of the default.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of files.  [default: FILE-verified, such as a.gds-verified, of a single file]"
        ),
    ] = None,
    cell: Annotated[str | None, typer.Option(help="Cell of layouts.  [default: the top cell]")] = None,
    layer: Annotated[str, typer.Option(help="Layer and datatype of the solid in layouts.")] = "1/0",
) -> None:
    """Simulate designs of an optimiser and compare their spectra with the predicted ones, or structures of any files.

    Structures with grey pixels are simulated as they are and thresholded at 1/2.

    Prints a table and writes `verify.json` into FOLDER, with `verify.png` and a new `report.html`, or into the folder of --out.
    Simulations are kept there: given again, the command resumes where it was interrupted, and nothing is simulated twice.
    """
    device = None if process is None else read_stated(process)
    if all(path.is_dir() for path in paths):
        if len(paths) > 1 or out is not None or cell is not None or layer != "1/0":
            raise ValueError("a run folder is verified alone, without --out, --cell and --layer")
        _verify_folder(paths[0], cells, best, workers, device)
    elif any(path.is_dir() for path in paths):
        raise ValueError("give one run folder, or files, got both")
    else:
        _verify_files(
            paths,
            cells,
            best,
            workers,
            device or Process(),
            _results_of(paths, out),
            cell,
            parse_layer(layer, "--layer"),
        )


def _verify_folder(folder: Path, cells: list[int], best: int | None, workers: int, process: Process | None) -> None:
    designs = read_designs(folder, process)
    if process is None:
        print_process(designs.process, folder / REPORT)
    todo = tasks(designs, cells, best)
    _simulate_tasks(todo, workers)
    from metaspec_simulation.figures import draw_verification  # matplotlib: slow to import, and needed here only

    result = compare(designs, todo)
    typer.echo(table(result))
    with replacing(folder / "verify.png") as partial:
        draw_verification(result).savefig(partial, dpi=110)
    write_json(folder / VERIFY, as_report(result).model_dump(mode="json", exclude_none=True))
    also = f", and {PAGE} shows them" if refresh_page(folder) else ""
    typer.echo(f"\nDetails are in {folder / VERIFY} and verify.png{also}.")


def _results_of(files: list[Path], out: Path | None) -> Path:
    """The folder for the results of files."""
    if out is None:
        if len(files) > 1:
            raise ValueError(f"--out is needed for {len(files)} files")
        out = files[0].with_name(f"{files[0].name}-verified")
    check_folder(out, files)
    return out


def _verify_files(
    files: list[Path],
    cells: list[int],
    best: int | None,
    workers: int,
    process: Process,
    out: Path,
    cell: str | None,
    layer: Layer,
) -> None:
    found = read_structures(files, process, cell, layer).first(best)
    for remark in found.remarks:
        typer.echo(remark)
    todo = structure_tasks(found, process, out, cells)
    _simulate_tasks(todo, workers)
    typer.echo(f"\n{write_results(found, todo, out)}\n\nDetails are in {out / VERIFY}.")


def _simulate_tasks(todo: list[list[Task]], workers: int) -> None:
    """Simulate what is missing of tasks, with a progress bar; Ctrl-C stops it cleanly."""
    every = simulations(todo)
    missing = [task for task in every if task.done is None]
    if missing:
        with tqdm(total=len(every), initial=len(every) - len(missing), unit="simulation") as bar:
            try:
                _run(_simulate_task, missing, [1] * len(missing), bar, workers)
            except KeyboardInterrupt:
                bar.close()
                done = sum(task.done is not None for task in every)
                typer.echo(f"\nInterrupted with {done} of {len(every)} simulations done. Repeat the command to resume.")
                raise typer.Exit(130) from None


def _simulate_task(task: Task, report: Callable[[], object]) -> None:
    task.simulate(_solver(task.process, task.cells))


app.command("import")(import_files)
app.command("croissant")(write_croissant)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Unlike the default action, this removes temporary files."""
    signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt that
    typer.echo("metaspec-simulate: terminated", err=True)
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of the command."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        _run_command()
    finally:
        signal.signal(signal.SIGTERM, before)  # for a program that calls this function


def _run_command() -> NoReturn:
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("--") and arguments[0] not in ("--help", "--version"):
        # Simulating is what the command is for.
        arguments = ["from-designs" if _FROM in arguments else "run", *(one for one in arguments if one != _FROM)]
    try:
        # typer itself prints the help where there are no arguments.
        status = app(arguments, prog_name="metaspec-simulate", standalone_mode=not arguments)
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error: not all versions of typer export its class
            raise
        _fail(" ".join(error.format_message().split()))
    raise SystemExit(status)


def _fail(message: str) -> NoReturn:
    typer.echo(f"metaspec-simulate: {message}", err=True)
    raise SystemExit(2)
