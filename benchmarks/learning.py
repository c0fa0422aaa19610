"""Validation error of variants of network, recipe and data, over training time, data and time of a prediction.

Each variant is `training/train.py` with some settings changed; all are shown the same number of structures, that of `--epochs`
epochs over the data set. Writes a table and a figure: validation error over training time (of averaged weights, which lag
behind), and of the weights at the end over the number of different structures and over the time that ONNX Runtime needs for
a structure (one thread, batches of 8, all networks taking turns), with the bundled networks beside them. Finished variants
are kept in OUT: repeat the command to resume.

python benchmarks/learning.py --out runs/learning [--epochs 5] [--only recipe data width ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from weights_hash import weights_hash

from metaspec_export.graph.forward import forward_graph
from metaspec_simulation.dataset import Samples, load
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.report.evaluation import Errors, errors, predict

ROOT = Path(__file__).parents[1]
FINE, COARSE = (ROOT / "datasets" / name for name in ("bayer-600nm", "bayer-600nm-coarse"))
BATCH = 16


def shape(width: int, blocks: int, stem: int = 32, beam: bool = False, splines: int = 32) -> list[str]:
    sizes = {"width": width, "blocks": blocks, "stem": stem, "beam": beam, "spectral_basis": splines}
    return [str(part) for name, size in sizes.items() for part in (f"--model.config.init_args.{name}", size)]


FIELD, FULL = (["--config", f"training/configs/{name}.yaml"] for name in ("field", "full"))
SMALL = [*FIELD, *shape(96, 2)]
VARIANTS = {
    "recipe: AdamW, 1 position": [*FIELD, "--model.optimizer", "adamw", "--data.positions", "1"],
    "recipe: AdamW, 8 positions": [*FIELD, "--model.optimizer", "adamw"],
    "recipe: Muon, 8 positions": FIELD,
    "recipe: full DiffractionNet, AdamW": FULL,
    "recipe: full DiffractionNet, Muon": [*FULL, "--model.optimizer", "muon"],
    "width 64, 2 blocks": [*FIELD, *shape(64, 2)],
    "width 96, 2 blocks": SMALL,
    "width 96, 2 blocks, stem 64": [*FIELD, *shape(96, 2, stem=64)],
    "width 96, 2 blocks, beam": [*FIELD, *shape(96, 2, beam=True)],
    "width 96, 2 blocks, beam, batches of 8": [*FIELD, *shape(96, 2, beam=True), "--data.batch_size", "8"],
    "width 96, 2 blocks, beam, batches of 8, 48 splines": [
        *FIELD,
        *shape(96, 2, beam=True, splines=48),
        "--data.batch_size",
        "8",
    ],
    "width 128, 4 blocks": [*FIELD, *shape(128, 4)],
    "width 160, 4 blocks": [*FIELD, *shape(160, 4)],
    "width 224, 4 blocks": [*FIELD, *shape(224, 4)],
    "width 160, 8 blocks": [*FIELD, *shape(160, 8)],
    "data: 150 structures": SMALL,
    "data: 600 structures": SMALL,
    "data: 12000 structures": SMALL,
}
DIFFERENT = {
    "data: 150 structures": 150,
    "data: 600 structures": 600,
    "width 96, 2 blocks": 2391,  # all of the fine data set, as every variant that is not listed
    "data: 12000 structures": 12000,
}


@dataclass(frozen=True)
class Result:
    """A trained network and its validation errors.

    Attributes:
        minutes: time of each validation since the first step, in minutes.
        mae: validation error at these times, of averaged weights, which lag behind by some hundred steps.
        final: validation errors of the weights at the end, not averaged.
        network: network with these weights.
    """

    minutes: list[float]
    mae: list[float]
    final: Errors
    network: nn.Module


def train(name: str, settings: list[str], shown: int, out: Path, validation: Samples) -> Result:
    """Train a variant on `shown` structures, or resume it."""
    different = DIFFERENT.get(name, 2391)
    data = [str(FINE)] if different <= 2391 else [str(FINE), str(COARSE)]
    epochs = max(1, round(shown / different))
    every = max(1, epochs // 8)  # validated as often in every variant, and at the end
    epochs -= epochs % every
    common = {
        "--data.batch_size": BATCH,
        "--data.path": data,
        "--data.limit": different,
        "--trainer.default_root_dir": out,
        "--trainer.max_epochs": epochs,
        "--trainer.check_val_every_n_epoch": every,
    }
    flags = [str(part) for flag in common.items() for part in flag]
    config, preset, *own = settings  # a variant's own settings come last: they win
    if not (out / "done").exists():
        print(name, flush=True)
        saved = [last for run in _runs(out) if (last := run / "checkpoints" / "last.ckpt").exists()]
        resume = ["--ckpt_path", str(saved[-1])] if saved else []
        command = [sys.executable, "training/train.py", config, preset, *flags, *own, *resume]
        subprocess.run(command, cwd=ROOT, check=True)
        (out / "done").touch()
    log = EventAccumulator(str(_runs(out)[-1]))
    log.Reload()
    start = log.Scalars("train/loss")[0].wall_time
    mae = log.Scalars("validation/mae")
    network = _last_weights(_runs(out)[-1] / "checkpoints" / "last.ckpt")
    return Result(
        minutes=[(event.wall_time - start) / 60 for event in mae],
        mae=[event.value for event in mae],
        final=errors(predict(network, validation.structures), validation.spectra, validation.process),
        network=network,
    )


def _runs(out: Path) -> list[Path]:
    return sorted(out.glob("lightning_logs/version_*"), key=lambda path: int(path.name.partition("_")[2]))


def _last_weights(checkpoint: Path) -> nn.Module:
    """The network with the weights of the last step, where `load_network` has their moving average."""
    network = load_network(checkpoint)
    last = torch.load(checkpoint, map_location="cpu", weights_only=True)["current_model_state"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in last.items()})
    return network


def milliseconds(networks: list[nn.Module]) -> list[float]:
    """Time of one structure in ONNX Runtime, one thread, batch 8: median of rounds in which all take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    models = [forward_graph(network).SerializeToString() for network in networks]
    sessions = [onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for model in models]
    batch = np.random.default_rng(0).integers(0, 2, (8, 1, 128, 128)).astype(np.float32)
    times = np.empty((12, len(sessions)))
    for turn in times:
        for i, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(None, {"structure": batch})
            turn[i] = (time.perf_counter() - started) / len(batch)
    return [1000 * float(t) for t in np.median(times, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of variants")
    arguments = parser.parse_args()

    chosen = {name: settings for name, settings in VARIANTS.items() if name.startswith(tuple(arguments.only))}
    validation = load(FINE).of("validation")
    results: dict[str, Result] = {}
    for name, settings in chosen.items():
        folder = arguments.out.absolute() / "".join(c if c.isalnum() else "-" for c in name)
        results[name] = train(name, settings, arguments.epochs * 2391, folder, validation)
    for bundled in ("fast", "field"):
        network = load_network(ROOT / "training" / "checkpoints" / f"{bundled}.ckpt")
        final = errors(predict(network, validation.structures), validation.spectra, validation.process)
        results[f"bundled: {bundled}"] = Result([], [], final, network)
        print(f"Weights SHA-256 of the bundled {bundled}: {weights_hash(network)}")

    costs = milliseconds([result.network for result in results.values()])
    figure = Figure(figsize=(19, 4.5), layout="constrained")
    curves, sizes, front = figure.subplots(1, 3)
    print("| variant | validation MAE | loss x 1000 | minutes | ms per structure |\n|---|---|---|---|---|")
    for (name, result), cost in zip(results.items(), costs, strict=True):
        minutes = f"{result.minutes[-1]:.1f}" if result.minutes else ""
        print(f"| {name} | {result.final.mae:.4f} | {1000 * result.final.loss:.3f} | {minutes} | {cost:.1f} |")
        if name in DIFFERENT:
            sizes.plot(DIFFERENT[name], result.final.mae, "o", color="C0")
        if result.minutes and not name.startswith("data"):
            curves.plot(result.minutes, result.mae, label=name)
        if not name.startswith(("data", "recipe")):
            front.plot(cost, result.final.mae, "*" if name.startswith("bundled") else "o", ms=9, label=name)
    curves.set(title="while training", xlabel="minutes", ylabel="validation MAE", yscale="log")
    curves.legend(fontsize=7)
    sizes.set(title="the same number of steps", xlabel="different structures", xscale="log")
    sizes.axhline(0, color="0.8")  # the scale begins there
    front.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    front.set(title="after training", xlabel="ms per structure, one thread", yscale="log")
    figure.savefig(arguments.out / "learning.png", dpi=110)


if __name__ == "__main__":
    main()
