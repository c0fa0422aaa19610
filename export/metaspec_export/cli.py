"""`metaspec-export`: turn a checkpoint into a verified version in a model repository."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from metaspec_simulation import CHANNELS
from metaspec_simulation.dataset import Samples, load
from metaspec_training.evaluation import errors, predict
from metaspec_training.module import load_network
from torch import nn

from metaspec_export import repository as models
from metaspec_export.card import model_card
from metaspec_export.onnx import forward_graph, weights_sha256
from metaspec_export.parity import TOLERANCE, ParityError, check_parity


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Lightning checkpoint of a run.", exists=True, dir_okay=False)],
    repository: Annotated[Path, typer.Option(help="Model repository to publish to.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Data set that the model was trained on; more than one is possible, the first is evaluated on."
        ),
    ] = [Path("datasets/bayer-600nm")],  # noqa: B006, typer copies it
    version: Annotated[int | None, typer.Option(help="Version number; the next one by default.", min=1)] = None,
) -> None:
    """Export a trained network to ONNX, verify it on real structures, and publish it.

    The repository is as it was if anything fails.
    """
    network = load_network(checkpoint)
    sets = {path.name: load(path) for path in data}
    samples = sets[data[0].name]
    number = version or models.next_version(repository)
    models.require_free(repository, number)
    model = forward_graph(network)
    test = samples.of("test")
    difference = check_parity(network, model.SerializeToString(), test.structures[:64])
    typer.echo(f"ONNX Runtime agrees with PyTorch to {difference:.1e} on {min(64, len(test))} test structures.")
    metadata = _metadata(network, sets, difference) | {"weights_sha256": weights_sha256(model)}
    model.metadata_props.clear()
    entry = model.metadata_props.add()
    entry.key, entry.value = "metaspec", json.dumps(metadata)
    config = models.config_pbtxt(len(samples.process.wavelengths_nm))
    folder = models.publish(repository, number, model.SerializeToString(), config, model_card(metadata))
    size = (folder / "model.onnx").stat().st_size / 2**20
    typer.echo(f"Published {folder} ({size:.1f} MiB).")


def _metadata(network: nn.Module, sets: dict[str, Samples], difference: float) -> dict[str, Any]:
    """What the model will say of itself."""
    measured, samples = {}, next(iter(sets.values()))
    for split in ("validation", "test"):
        part = samples.of(split)
        measured[split] = {
            "count": len(part),
            **asdict(errors(predict(network, part.structures), part.spectra, part.process)),
        }
    return {
        "schema_version": 1,
        "name": models.NAME,
        "kind": "forward",
        "process": samples.process.model_dump(mode="json"),
        "wavelengths_nm": samples.process.wavelengths_nm.tolist(),
        "channels": list(CHANNELS),
        "units": {
            "spectra": "efficiency: power through the detector / power incident on the cell",
            "wavelengths": "nm",
        },
        "input": {"name": "structure", "solid": 1.0, "void": 0.0},
        "training": {
            "network": type(network).__name__,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "data": [
                {
                    "name": name,
                    "structures": len(part.of("train")),
                    **{key: part.attributes[key] for key in ("solver", "made_with")},
                }
                for name, part in sets.items()
            ],
        },
        "metrics": measured,
        "source_revision": _revision(),
        "tolerance": {"allowed": TOLERANCE, "measured": difference, "against": f"torch {torch.__version__}"},
    }


def _revision() -> str:
    """Commit of the source tree, if this is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    """Entry point of the command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(export)
    try:
        app(standalone_mode=True)
    except (ValueError, OSError, ParityError) as error:
        typer.echo(f"metaspec-export: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
