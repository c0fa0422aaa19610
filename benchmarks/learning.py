"""What learns fastest, and what does a prediction cost? Several networks and recipes, same data, same number of epochs.

Each variant is `training/train.py` with some settings changed. Writes a table and two plots: validation error over training
time, and final error over the time ONNX Runtime needs for a structure (one thread, batches of 8). Finished variants are kept
in OUT: repeat the command to go on.

python benchmarks/learning.py --out runs/learning [--epochs 10] [--only recipe width ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import onnxruntime
from metaspec_export.onnx import forward_graph
from metaspec_training.module import load_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]


def shape(width: int, blocks: int) -> list[str]:
    return ["--model.config.init_args.width", str(width), "--model.config.init_args.blocks", str(blocks)]


FIELD = ["--config", "training/configs/field.yaml"]
VARIANTS = {
    "recipe: AdamW, 1 position": [*FIELD, "--model.optimizer", "adamw", "--data.positions", "1"],
    "recipe: AdamW, 8 positions": [*FIELD, "--model.optimizer", "adamw"],
    "recipe: Muon, 8 positions": FIELD,
    "recipe: full DiffractionNet, AdamW": ["--config", "training/configs/full.yaml", "--data.batch_size", "16"],
    "recipe: full DiffractionNet, Muon": [
        *["--config", "training/configs/full.yaml", "--data.batch_size", "16", "--model.optimizer", "muon"]
    ],
    "width 64, 2 blocks": [*FIELD, *shape(64, 2)],
    "width 96, 2 blocks": [*FIELD, *shape(96, 2)],
    "width 128, 4 blocks": [*FIELD, *shape(128, 4)],
    "width 224, 4 blocks": [*FIELD, *shape(224, 4)],
    "width 160, 8 blocks": [*FIELD, *shape(160, 8)],
}


def train(name: str, settings: list[str], epochs: int, data: Path, out: Path) -> Path:
    """Train a variant, or go on with it; returns the folder of its last run."""
    runs = sorted(out.glob("lightning_logs/version_*"), key=lambda path: int(path.name.partition("_")[2]))
    if not runs or not (out / "done").exists():
        print(name, flush=True)
        resume = [*(["--ckpt_path", str(runs[-1] / "checkpoints" / "last.ckpt")] if runs else [])]
        command = [sys.executable, "training/train.py", *settings, "--data.path", str(data), *resume]
        where = ["--trainer.default_root_dir", str(out), "--trainer.max_epochs", str(epochs)]
        subprocess.run([*command, *where], cwd=ROOT, check=True)
        (out / "done").touch()
        runs = sorted(out.glob("lightning_logs/version_*"), key=lambda path: int(path.name.partition("_")[2]))
    return runs[-1]


def milliseconds(checkpoint: Path) -> float:
    """Time of one structure in ONNX Runtime, one thread, batch 8."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = forward_graph(load_network(checkpoint)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).integers(0, 2, (8, 1, 128, 128)).astype(np.float32)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        session.run(None, {"structure": batch})
        times.append((time.perf_counter() - started) / len(batch))
    return 1000 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", type=Path, default=ROOT / "datasets" / "bayer-600nm")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of variants")
    arguments = parser.parse_args()

    figure, (curves, front) = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    print("| variant | validation MAE | loss x 1000 | minutes | ms per structure |\n|---|---|---|---|---|")
    for name, settings in VARIANTS.items():
        if not name.startswith(tuple(arguments.only)):
            continue
        folder = arguments.out.absolute() / "".join(c if c.isalnum() else "-" for c in name)
        run = train(name, settings, arguments.epochs, arguments.data, folder)
        log = EventAccumulator(str(run))
        log.Reload()
        mae, loss = log.Scalars("validation/mae"), log.Scalars("validation/loss")
        start = log.Scalars("train/loss")[0].wall_time
        minutes = [(event.wall_time - start) / 60 for event in mae]
        cost = milliseconds(run / "checkpoints" / "last.ckpt")
        curves.plot(minutes, [event.value for event in mae], label=name)
        front.plot(cost, mae[-1].value, "o", label=name)
        front.annotate(name, (cost, mae[-1].value), fontsize=7, xytext=(4, 4), textcoords="offset points")
        print(
            f"| {name} | {mae[-1].value:.4f} | {1000 * loss[-1].value:.3f} | {minutes[-1]:.1f} | {cost:.1f} |",
            flush=True,
        )
    curves.set(title="while training", xlabel="minutes", ylabel="validation MAE", yscale="log")
    curves.legend(fontsize=7)
    front.set(title="after training", xlabel="ms per structure, one thread", ylabel="validation MAE")
    figure.savefig(arguments.out / "learning.png", dpi=110)


if __name__ == "__main__":
    main()
