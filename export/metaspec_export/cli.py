"""`metaspec-export`: publish a checkpoint as verified models in a repository, and inspect a repository.

What needs PyTorch is imported by the commands, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from metaspec_contract.model import DEFAULT_MODEL
from metaspec_export import __version__
from metaspec_export.errors import ExportRefused

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer's own copy of click, or click

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaspec-export {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Export trained networks to ONNX, and inspect what was exported."""


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a training.", exists=True, dir_okay=False)],
    repository: Annotated[Path, typer.Option(help="Model repository to publish to.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Data set to measure errors on; further ones are held against the checkpoint. By default the first that the "
            "checkpoint was trained on, in the folder datasets. An old checkpoint without that record needs all of them."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model in the repository.")] = DEFAULT_MODEL,
    version: Annotated[int | None, typer.Option(help="Version number; the next one by default.", min=1)] = None,
    precision: Annotated[
        str, typer.Option(help="Precisions to publish, comma-separated: fp32, fp16 (GPU), int8 (CPU).")
    ] = "fp32",
    gradient: Annotated[bool, typer.Option(help="Publish the gradient model, too.")] = True,
    half_weights: Annotated[
        bool,
        typer.Option(
            "--half-weights",
            help="Store weights in float16 and compute in float32: half the size; refused past a change of 1e-4.",
        ),
    ] = False,
    symmetric: Annotated[
        bool,
        typer.Option(
            "--symmetric",
            help="Publish the model over symmetric images, too, which estimates how reliable a prediction is.",
        ),
    ] = False,
    images: Annotated[int, typer.Option(help="Number of symmetric images: 2, 4 or 8.")] = 4,
    limit: Annotated[
        int,
        typer.Option(
            help="Structures of the validation and the test split that errors are measured on, at most.", min=2
        ),
    ] = 2000,
    distance_um: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--distance-um",
            metavar="LOW HIGH",
            help="Range in um of the distance of the detectors, which the models take as a condition; for networks that "
            "predict the field. By default as the checkpoint's settings say.",
        ),
    ] = None,
    tensorrt_engines: Annotated[
        bool, typer.Option("--tensorrt", help="Build TensorRT engines for this machine's GPU, too.")
    ] = False,
    huggingface: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write the network as a Hugging Face model repository: weights as safetensors, settings, model card.",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence of the weights for --huggingface, such as apache-2.0."),
    ] = None,
    allow_dirty: Annotated[
        bool,
        typer.Option("--allow-dirty", help="Publish although the source code has uncommitted changes or no revision."),
    ] = False,
) -> None:
    """Export a trained network to ONNX, verify it on real structures, and publish it.

    The repository is as it was if anything fails.
    """
    import onnx

    from metaspec_export import huggingface as hub
    from metaspec_export import tensorrt
    from metaspec_export.build import Variants, build, require_same_device_as_published
    from metaspec_export.metadata import read
    from metaspec_export.precision import parse_precisions
    from metaspec_export.publish import next_version, publish, require_free
    from metaspec_export.revision import source_revision
    from metaspec_export.source import read_source

    variants = Variants(
        name,
        parse_precisions(precision),
        gradient,
        images if symmetric else None,
        engines=tensorrt_engines,
        half_weights=half_weights,
    )
    number = version or next_version(repository, variants.names)
    require_free(repository, number, variants.names)
    if huggingface is not None:
        hub.require_possible(huggingface, licence, variants.precisions)
    elif licence is not None:
        raise ValueError("--license is that of --huggingface, which is missing")
    revision = source_revision(allow_dirty)
    if tensorrt_engines:
        tensorrt.require_tensorrt()
    source = read_source(checkpoint, data or (), limit, distance_um)
    if source.from_data:
        names = ", ".join(part.name for part in source.provenance.data)
        typer.echo(f"{checkpoint} does not record what it was trained on: taken from --data, {names}.")
    require_same_device_as_published(source, repository, variants.names)
    publications = list(build(source, variants, revision, typer.echo))
    with contextlib.ExitStack() as undone:
        if huggingface is not None and licence is not None:
            (forward,) = (one for one in publications if one.name == name)
            about = read(onnx.load_from_string(forward.files["model.onnx"]))
            undone.enter_context(hub.written(huggingface, source, about, licence))
        published = publish(repository, number, publications)
    for folder in published:
        size = (folder / "model.onnx").stat().st_size / 2**20
        typer.echo(f"Published {folder} ({size:.1f} MiB).")
    if huggingface is not None:
        typer.echo(f"Wrote {huggingface}, a Hugging Face model repository.")


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="Model repository.", exists=True, file_okay=False)],
) -> None:
    """Hold every model of a repository against its metadata, and list the execution providers that run it here.

    The exit status is 1 if a server would refuse one of them, or if its weights have changed since the export.
    """
    from rich.console import Console

    from metaspec_export import inspection

    found = inspection.inspect(repository)
    console = Console(highlight=False)
    console.print(inspection.table(found))
    console.print()
    for line in inspection.remarks(found):
        console.print(line, soft_wrap=True, markup=False)
    if any(model.problem for model in found):
        raise typer.Exit(1)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Unlike the default action, this removes temporary files, and takes back what has been published in part."""
    signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt that
    _say("terminated")
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:] or ["--help"]
    if arguments[0] not in ("inspect", "export", "--help", "--version"):
        arguments = ["export", *arguments]  # exporting is the default command
    try:
        status = app(arguments, prog_name="metaspec-export", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = 130  # which other versions of typer return
    except _UsageError as error:
        _fail(error.format_message() if hasattr(error, "format_message") else str(error))
    except (ExportRefused, ValueError, OSError) as error:
        _fail(str(error))
    if status == 130:
        _say("interrupted")
    raise SystemExit(status or 0)


def _fail(message: str) -> NoReturn:
    _say(" ".join(message.split()))
    raise SystemExit(2)


def _say(message: str) -> None:
    typer.echo(f"metaspec-export: {message}", err=True)


if __name__ == "__main__":
    main()
