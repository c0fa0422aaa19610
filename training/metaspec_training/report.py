"""How good a network is on structures it has never seen: errors, trivial predictors to beat, plots."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from metaspec_simulation import CHANNELS
from metaspec_simulation.dataset import Samples, load
from numpy.typing import NDArray
from torch import nn

from metaspec_training.loss import AdaptiveSpectralLoss
from metaspec_training.module import load_network

matplotlib.use("Agg")
from matplotlib import pyplot

Array = NDArray[np.float32]

_COLOURS = ("tab:red", "tab:green", "yellowgreen", "tab:blue")


@dataclass(frozen=True)
class Errors:
    """Errors of predicted against simulated efficiencies over a split.

    Attributes:
        mae: mean absolute error, over everything. rms: root of the mean square.
        mae_by_detector: R, G1, G2, B.
        r2: share of the variance between structures that is explained.
        loss: with weights 2, 0.1, 100, 0.
    """

    mae: float
    rms: float
    mae_by_detector: dict[str, float]
    r2: float
    loss: float


def errors(prediction: Array, target: Array) -> Errors:
    """Errors of predictions (N, 4, W) against simulations (N, 4, W)."""
    error = prediction - target
    loss = AdaptiveSpectralLoss()(*(torch.from_numpy(x).unflatten(1, (2, 2)) for x in (prediction, target)))
    return Errors(
        mae=float(np.abs(error).mean()),
        rms=float(np.sqrt((error**2).mean())),
        mae_by_detector={name: float(np.abs(error[:, i]).mean()) for i, name in enumerate(CHANNELS)},
        r2=float(1 - (error**2).sum() / ((target - target.mean(axis=0)) ** 2).sum()),
        loss=float(loss.total),
    )


def predict(network: nn.Module, structures: NDArray[np.uint8], batch_size: int = 32) -> Array:
    """Spectra (N, 4, W) of structures (N, 128, 128), in float32."""
    network.eval()
    density = torch.from_numpy(structures[:, None].astype(np.float32))
    with torch.inference_mode():
        parts = [network(batch).flatten(1, 2) for batch in density.split(batch_size)]
    return torch.cat(parts).numpy()


def mean_predictor(train: Samples, test: Samples) -> Array:
    """For every structure, the mean spectrum of the training split."""
    return np.broadcast_to(train.spectra.mean(axis=0), test.spectra.shape).copy()


def nearest_predictor(train: Samples, test: Samples) -> Array:
    """For every structure, the spectrum of the training structure that differs in the fewest pixels."""
    ours, theirs = (2.0 * s.structures.reshape(len(s), -1).astype(np.float32) - 1 for s in (test, train))
    return train.spectra[(ours @ theirs.T).argmax(axis=1)]


def write_report(checkpoint: Path, data: Path, out: Path, split: str = "test") -> None:
    """Evaluate a checkpoint and write `report.json`, `report.md` and `spectra.png`.

    Args:
        checkpoint: Lightning checkpoint of a run.
        data: folder of the data set.
        out: folder to write to.
        split: validation or test.
    """
    network = load_network(checkpoint)
    samples = load(data)
    train, test = samples.of("train"), samples.of(split)
    prediction = predict(network, test.structures)
    results = {
        "network": errors(prediction, test.spectra),
        "mean spectrum": errors(mean_predictor(train, test), test.spectra),
        "nearest training structure": errors(nearest_predictor(train, test), test.spectra),
    }
    out.mkdir(parents=True, exist_ok=True)
    body = {
        "split": split,
        "counts": {"train": len(train), split: len(test)},
        "errors": {name: asdict(result) for name, result in results.items()},
    }
    (out / "report.json").write_text(json.dumps(body, indent=2) + "\n")
    table = _table(results)
    (out / "report.md").write_text(f"{len(test)} structures of the {split} split, {len(train)} to train on.\n\n{table}")
    draw_spectra(prediction, test, out / "spectra.png")
    print(table)


def draw_spectra(prediction: Array, test: Samples, path: Path) -> None:
    """Draw the best, the median and the worst prediction beside their structures and simulated spectra."""
    ranked = np.abs(prediction - test.spectra).mean(axis=(1, 2)).argsort()
    picked = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    wavelength = test.process.wavelengths_nm
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.5), height_ratios=[1, 1.6], layout="constrained")
    for column, (name, n) in enumerate(picked.items()):
        structure, spectra = axes[:, column]
        structure.imshow(test.structures[n], cmap="Greys", extent=(0, 2, 2, 0))
        structure.set(title=f"{name}: {test.family[n]}", xlabel="x (um)", ylabel="y (um)")
        for channel, colour in enumerate(_COLOURS):
            spectra.plot(wavelength, test.spectra[n, channel], color=colour, alpha=0.45, lw=3)
            spectra.plot(wavelength, prediction[n, channel], color=colour, lw=1.2, label=CHANNELS[channel])
        mae = np.abs(prediction[n] - test.spectra[n]).mean()
        spectra.set(title=f"mean absolute error {mae:.4f}", xlabel="wavelength (nm)", xlim=(400, 700), ylim=(0, 0.5))
    axes[1, 0].set_ylabel("efficiency")
    axes[1, 0].legend(title="thick: simulated\nthin: predicted", ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _table(results: dict[str, Errors]) -> str:
    lines = ["| predictor | MAE | rms | " + " | ".join(f"MAE {c}" for c in CHANNELS) + " | R2 | loss |"]
    lines.append("|---" * (len(CHANNELS) + 5) + "|")
    for name, result in results.items():
        detectors = " | ".join(f"{value:.4f}" for value in result.mae_by_detector.values())
        numbers = f"{result.mae:.4f} | {result.rms:.4f} | {detectors} | {result.r2:.3f} | {result.loss:.2e}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"
