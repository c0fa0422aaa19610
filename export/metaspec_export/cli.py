"""`metaspec-export`: turn a checkpoint into verified models in a repository, and look at what is in one."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from rich.console import Console

from metaspec_export import inspection, tensorrt
from metaspec_export import publish as models
from metaspec_export import triton_config as triton
from metaspec_export.card import model_card
from metaspec_export.graph.forward import forward_graph
from metaspec_export.graph.gradient import gradient_graph
from metaspec_export.graph.operators import OperatorError, require_portable
from metaspec_export.metadata import attach, describe_training, measure, read
from metaspec_export.parity import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    ParityError,
    check_gradient_parity,
    check_parity,
    run,
    session,
)
from metaspec_export.precision import (
    TOLERANCES,
    DeviationError,
    Precision,
    deviation,
    parse_precisions,
    reduce,
    require_within,
)
from metaspec_export.tensorrt import TensorRTUnavailable
from metaspec_simulation.dataset import Samples, load
from metaspec_training.fit.module import load_network
from metaspec_training.networks.symmetric import DEFAULT_IMAGES, SymmetricNetwork

COMPARED = 64
"""Structures that graphs are compared on."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Lightning checkpoint of a run.", exists=True, dir_okay=False)],
    repository: Annotated[Path, typer.Option(help="Model repository to publish to.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Data set that the model was trained on; more than one is possible, the first is evaluated on."
        ),
    ] = [Path("datasets/bayer-600nm")],  # noqa: B006, typer copies it
    name: Annotated[str, typer.Option(help="What the model is called in the repository.")] = models.NAME,
    version: Annotated[int | None, typer.Option(help="Version number; the next one by default.", min=1)] = None,
    precision: Annotated[
        str, typer.Option(help="Precisions to publish, comma-separated: fp32, fp16 (GPU), int8 (CPU).")
    ] = "fp32",
    gradient: Annotated[bool, typer.Option(help="Publish the gradient model, too.")] = True,
    symmetric: Annotated[
        bool,
        typer.Option(
            "--symmetric", help="Publish the model over symmetric images, too: it tells how far to trust a prediction."
        ),
    ] = False,
    images: Annotated[int, typer.Option(help="How many images it takes: 2, 4 or 8.")] = DEFAULT_IMAGES,
    tensorrt_engines: Annotated[
        bool, typer.Option("--tensorrt", help="Build TensorRT engines for this machine's GPU, too.")
    ] = False,
) -> None:
    """Export a trained network to ONNX, verify it on real structures, and publish it.

    The repository is as it was if anything fails.
    """
    precisions = parse_precisions(precision)
    kinds = (True, False) if gradient else (False,)  # the gradient model first: who sees the other will look for it
    variants = (False, True) if symmetric else (False,)
    names = [models.model_name(p, kind, variant, name) for variant in variants for kind in kinds for p in precisions]
    number = version or models.next_version(repository, names)
    models.require_free(repository, number, names)
    if tensorrt_engines:
        tensorrt.require_tensorrt()
    network = load_network(checkpoint)
    networks = [SymmetricNetwork(network, images) if variant else network for variant in variants]
    sets = {path.name: load(path) for path in data}
    samples = sets[data[0].name]
    publications = []
    for variant, served in zip(variants, networks, strict=True):
        common = describe_training(served, sets)
        for kind in kinds:
            typer.echo(
                f"Tracing {models.model_name('fp32', kind, variant, name)}{', about a minute' if kind else ''} ..."
            )
            graph, tolerance = _trace(served, samples, gradient=kind)
            for chosen in precisions:
                model, metadata = _in_precision(graph, chosen, samples, common | {"tolerance": tolerance})
                identity = {"name": models.model_name(chosen, kind, variant, name), "precision": chosen}
                attach(model, metadata | identity | {"kind": "vjp" if kind else "forward"})
                publications.append(_publication(model, tensorrt_engines))
    for folder in models.publish(repository, number, publications):
        size = (folder / "model.onnx").stat().st_size / 2**20
        typer.echo(f"Published {folder} ({size:.1f} MiB).")


def _trace(network: torch.nn.Module, samples: Samples, gradient: bool) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float32 graph, proven, and how exact it is."""
    compared = samples.of("test").structures[:COMPARED]
    graph = gradient_graph(network) if gradient else forward_graph(network)
    require_portable(graph)
    if not gradient:
        difference = check_parity(network, graph.SerializeToString(), compared)
        typer.echo(f"ONNX Runtime agrees with PyTorch to {difference:.1e} on {len(compared)} test structures.")
        return graph, _tolerance(difference)
    parity = check_gradient_parity(network, graph.SerializeToString(), compared[:16])
    typer.echo(
        f"The gradient agrees with torch.autograd to {parity.autograd:.1e}, with finite differences to "
        f"{parity.finite_differences:.1e} of its largest element."
    )
    measured = {"measured": parity.autograd, "finite_differences": parity.finite_differences}
    return graph, _tolerance(parity.spectra) | {"gradient": {"allowed": GRADIENT_TOLERANCE, **measured}}


def _tolerance(difference: float) -> dict[str, Any]:
    return {"allowed": TOLERANCE, "measured": difference, "against": f"torch {torch.__version__}"}


def _in_precision(
    graph: onnx.ModelProto, precision: Precision, samples: Samples, metadata: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph in a precision, within its tolerance, and its metadata with the errors that it has itself."""
    train, validation = samples.of("train").structures[:COMPARED], samples.of("validation").structures[:COMPARED]
    model = reduce(graph, precision, train)
    served = session(model.SerializeToString())
    if precision != "fp32":
        cotangent = None
        if len(graph.graph.input) > 1:
            shape = (len(validation), len(metadata["channels"]), len(metadata["wavelengths_nm"]))
            cotangent = np.random.default_rng(0).standard_normal(shape, np.float32)
        expected = run(session(graph.SerializeToString()), validation, cotangent)
        measured = deviation(tuple(run(served, validation, cotangent)), tuple(expected), samples.process)
        require_within(measured, precision)
        allowed = TOLERANCES[precision]
        typer.echo(
            f"{precision} deviates from fp32 by {measured.mean_abs:.1e} in the mean, {measured.max_abs:.1e} at most"
            + (f", the gradient by {100 * measured.gradient:.2g} %." if measured.gradient is not None else ".")
        )
        tolerance = {"allowed": allowed.max_abs, "measured": measured.max_abs, "against": "fp32"}
        if measured.gradient is not None:
            tolerance["gradient"] = {"allowed": allowed.gradient, "measured": measured.gradient}
        metadata = metadata | {"tolerance": tolerance, "deviation": asdict(measured)}
    return model, metadata | {"metrics": measure(served, samples)}


def _publication(model: onnx.ModelProto, engines: bool) -> models.Publication:
    """The files of a model's version."""
    metadata = read(model)
    name, wanted = metadata["name"], triton.signature(metadata)
    graph = model.SerializeToString()
    files = {"model.onnx": graph, "MODEL_CARD.md": model_card(metadata).encode()}
    if metadata["precision"] != "int8":
        files["tensorrt.json"] = triton.to_json(triton.tensorrt_options(wanted))
        if engines:
            typer.echo(f"Building TensorRT engines of {name} ...")
            files |= tensorrt.build_engines(graph, wanted)
    return models.Publication(name, triton.config_pbtxt(metadata), files)


@app.command()
def inspect(
    repository: Annotated[Path, typer.Argument(help="Model repository.", exists=True, file_okay=False)],
) -> None:
    """Print what a repository holds, verify the weights' SHA-256, and try which execution providers run it here."""
    found = inspection.inspect(repository)
    console = Console(highlight=False)
    console.print(inspection.table(found))
    for line in inspection.remarks(found):
        console.print(line)
    if any(model.problem for model in found):
        raise typer.Exit(1)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unlike the default, this cleans up on the way out


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("inspect", "export", "--help"):
        arguments = ["export", *arguments]  # exporting is what the command is for
    try:
        app(arguments)
    except (
        ValueError,
        OSError,
        ParityError,
        DeviationError,
        OperatorError,
        TensorRTUnavailable,
    ) as error:
        typer.echo(f"metaspec-export: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
