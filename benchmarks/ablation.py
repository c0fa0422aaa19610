"""Validation error with and without each of the seven improvements, on the same data, in the same number of steps.

Trains the baseline, the full network, the full one without each improvement, and the baseline with each; writes a table and a
plot. Finished runs are kept in OUT/results.jsonl, one per line: repeat the command to resume, or start one process for
each seed at the same time. `--every_nm`, `--channels`, `--width` and `--blocks` make the network, and the time, smaller:
thinned spectra, a narrower encoder, a narrower decoder of fewer blocks.

python benchmarks/ablation.py --out runs/ablation [--epochs 4] [--seeds 0 1] [--limit 512] [--every_nm 4] [--channels 32]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import write_text
from metaspec_contract.process import Process
from metaspec_training.data.augmentation import Batch
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.data.packed import Packed
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.report.evaluation import errors, predict

FULL, BASELINE = DiffractionNetConfig(), DiffractionNetConfig.baseline()
PARTS = {1: "memory_norm", 2: "film_scale", 3: "detector_heads", 6: "decoder_dropout", 7: "fine_tokens"}
NAMES = {
    1: "memory norm",
    2: "FiLM scale",
    3: "detector heads",
    4: "clip 1.0",
    5: "curvature",
    6: "no dropout",
    7: "65 tokens",
}
ALL = frozenset(NAMES)
Run = dict[str, Any]


def variants() -> dict[str, frozenset[int]]:
    """Which improvements are on, by the name of the variant."""
    without = {f"full - {n} {name}": ALL - {n} for n, name in NAMES.items()}
    alone = {f"baseline + {n} {name}": frozenset({n}) for n, name in NAMES.items()}
    return {"baseline": frozenset(), **alone, **without, "full": ALL}


class ThinnedData(SpectraDataModule):
    """Training batches of thinned spectra: every so many wavelengths."""

    def __init__(self, every: int, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.every = every

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Batch:
        expanded = super().on_after_batch_transfer(batch, dataloader_idx)
        return expanded._replace(spectra=expanded.spectra[..., :: self.every])


class GradientNorms(Callback):
    """Collects the norm of every step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.norms.append(float(trainer.callback_metrics["train/gradient_norm"]))


def train(improvements: frozenset[int], seed: int, arguments: argparse.Namespace) -> Run:
    seed_everything(seed, verbose=False)
    every = arguments.every_nm
    process = Process(wavelength_step_nm=every)
    chosen = {name: getattr(FULL, name) for n, name in PARTS.items() if n in improvements}
    shape = {name: getattr(arguments, name) for name in ("channels", "width", "blocks")}
    config = replace(BASELINE, wavelengths=len(process.wavelengths_nm), **shape, **chosen)
    # Differences over wider steps are larger: the terms keep their weights per nm.
    loss = AdaptiveSpectralLoss(w_grad=100.0 / every**2, w_curv=200.0 / every**4 if 5 in improvements else 0.0)
    clip = 1.0 if 4 in improvements else 0.5
    module = SpectraModule(
        config, loss, learning_rate=arguments.learning_rate, clip_norm=clip, optimizer=arguments.optimizer
    )
    paths = [str(path) for path in arguments.data]
    data = ThinnedData(every, paths, batch_size=arguments.batch_size, seed=seed, limit=arguments.limit)
    norms = GradientNorms()
    trainer = Trainer(
        max_epochs=arguments.epochs,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        callbacks=[norms],
    )
    trainer.fit(module, data)
    validation = data.first.of("validation")
    # Back to every nanometre: spectra are smooth, and the errors are then those of any other network.
    spline = CubicSpline(process.wavelengths_nm, predict(module.network, validation.structures), axis=-1)
    prediction = spline(validation.process.wavelengths_nm).astype(np.float32)
    measured = asdict(errors(prediction, validation.spectra, validation.process))
    return measured | {
        "gradient_norm": float(np.median(norms.norms)),
        "clipped": float(np.mean(np.array(norms.norms) > clip)),
    }


def stored(file: Path, budget: dict[str, Any]) -> list[Run]:
    """The finished runs; exits if one of them had another budget."""
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for run in runs:
        if run["budget"] != budget:
            sys.exit(f"{file} was made with {run['budget']}: choose another --out")
    return runs


def keep(file: Path, run: Run) -> None:
    """Add a run to the finished ones, as a whole; other processes wait."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_text(file, (file.read_text() if file.exists() else "") + json.dumps(run) + "\n")
    finally:
        os.close(folder)


def table(results: dict[str, list[Run]]) -> str:
    head = ["variant", "MAE", "loss x 1000", *(f"MAE {c}" for c in CHANNELS), "peak nm", "gradient norm", "clipped"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, runs in results.items():
        detectors = [np.mean([run["mae_by_detector"][c] for run in runs]) for c in CHANNELS]
        losses, errors = [1000 * run["loss"] for run in runs], [run["mae"] for run in runs]
        cells = [
            name,
            f"{np.mean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f})",
            f"{np.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
            *(f"{d:.4f}" for d in detectors),
        ]
        cells += [f"{np.mean([run[key] for run in runs]):.{digits}f}" for key, digits in
                  (("peak_nm", 1), ("gradient_norm", 3), ("clipped", 2))]  # fmt: skip
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def draw(results: dict[str, list[Run]], path: Path) -> None:
    figure = Figure(figsize=(8, 0.32 * len(results) + 1), layout="constrained")
    axes = figure.subplots()
    for row, (name, runs) in enumerate(results.items()):
        losses = [run["loss"] for run in runs]
        axes.plot(losses, [row] * len(losses), "o", color="C0" if "baseline" in name else "C1")
        axes.plot([min(losses), max(losses)], [row, row], "-", color="0.7", zorder=0)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set(xlabel="validation loss (2 / 0.1 / 100), one point for each seed")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parents[1] / "datasets"
    parser.add_argument("--data", type=Path, nargs="+", default=[folder / "bayer-600nm"], help="validated on the first")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--every_nm", type=int, default=1)
    parser.add_argument("--channels", type=int, default=FULL.channels)
    parser.add_argument("--width", type=int, default=FULL.width)
    parser.add_argument("--blocks", type=int, default=FULL.blocks)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--only", nargs="+", help="names of variants")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.jsonl"
    settings = (
        "epochs",
        "limit",
        "batch_size",
        "optimizer",
        "learning_rate",
        "every_nm",
        "channels",
        "width",
        "blocks",
    )
    budget = {"data": [path.name for path in arguments.data]} | {name: getattr(arguments, name) for name in settings}
    finished = {(run["variant"], run["seed"]) for run in stored(file, budget)}
    for seed in arguments.seeds:
        for name, improvements in variants().items():
            if (name, seed) in finished or (arguments.only and name not in arguments.only):
                continue
            print(f"{name}, seed {seed}", flush=True)
            run = {"variant": name, "seed": seed} | train(improvements, seed, arguments) | {"budget": budget}
            keep(file, run)
    runs = stored(file, budget)
    results = {name: [run for run in runs if run["variant"] == name] for name in variants()}
    results = {name: runs for name, runs in results.items() if runs}
    text = table(results)
    (arguments.out / "ablation.md").write_text(text)
    draw(results, arguments.out / "ablation.png")
    print(text)


if __name__ == "__main__":
    main()
