"""Validation error of the networks over the structures seen, and over the floating-point operations spent on them.

Draws `docs/figures/training_curves.png` from `docs/training/curves.json` and prints the operations of each network. The file
holds runs: device, time, structures seen before, structures of each data set in a batch, positions at which a structure is
compared, weight of the curvature in the loss; and validation loss and MAE after so many structures, at which learning rate.
Operations counted are those of matrix products and convolutions, forward, two for each multiplication with addition; a training
step is taken as three forward passes.

With `--errors`, also prints the errors of the networks in `training/checkpoints`, predicted in float32 on the CPU.

python benchmarks/training_curves.py [--errors]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from weights_hash import weights_hash

from metaspec_contract.process import Process
from metaspec_simulation.dataset import Samples, load
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.report.evaluation import errors, predict

ROOT = Path(__file__).parents[1]
CURVES = ROOT / "docs" / "training" / "curves.json"
FIGURE = ROOT / "docs" / "figures" / "training_curves.png"
NETWORKS: dict[str, NetworkConfig] = {
    "baseline": DiffractionNetConfig.baseline(),
    "full": DiffractionNetConfig(),
    "full with beam": DiffractionNetConfig(beam=True),
    "field, continued": DiffractionFieldNetConfig(coarse_head=True, beam=True, spectral_basis=48),
    "field, from scratch": DiffractionFieldNetConfig(),
}
"""Settings of the network of each run in the file."""
SPLITS = (("bayer-600nm", "train"), ("bayer-600nm", "validation"), ("bayer-600nm", "test"), ("designs-600nm", "test"))
REACHED_BEFORE = 1.285e-3
"""Validation loss at epoch 49 of an earlier training of DiffractionNet, on 300,000 structures of another data set."""


def forward_operations(network: nn.Module, positions: int) -> int:
    """Floating-point operations of the forward pass of a training step for one structure at so many positions."""
    density = torch.zeros(1, 1, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(network, DiffractionFieldNet):
            network.at(density, torch.zeros(1, positions, 2), torch.ones(1, dtype=torch.bool))
        else:
            network(density)
    return int(counter.get_total_flops())


def draw(runs: list[dict[str, Any]], operations: list[int], path: Path) -> None:
    """Draw loss and MAE over structures and over operations.

    Args:
        runs: runs of the file.
        operations: operations of the training of each run for one structure.
        path: file of the figure.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for run, each in zip(runs, operations, strict=True):
        before = run["structures_before"]
        label = run["name"] + (f" (after some {before:,} structures)" if before else "")
        seen = np.array([before + point["structures"] for point in run["points"]])
        style = "o--" if before else "o-"
        for row, value in zip(axes, ("loss", "mae"), strict=True):
            reached = [point[value] for point in run["points"]]
            for panel, x in zip(row, (seen, seen * each / 1e15), strict=True):
                panel.plot(x, reached, style, ms=8 if len(x) == 1 else 3, label=label)
    for panel, value in zip(axes[:, 0], ("validation loss (2 / 0.1 / 100)", "validation MAE"), strict=True):
        panel.set_ylabel(value)
    for panel, name in zip(axes[1], ("structures", "training, 1e15 floating-point operations"), strict=True):
        panel.set_xlabel(name)
    for panel in axes.flat:
        panel.set(xscale="log", yscale="log")
        panel.grid(which="both", alpha=0.25)
    for panel in axes[0]:
        panel.axhline(REACHED_BEFORE, color="0.4", ls=":", label="an earlier training of DiffractionNet, epoch 49")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def print_errors() -> None:
    """Print the errors of every checkpoint on `SPLITS`; of the train split, on as many as the validation split has."""
    parts: dict[str, Samples] = {f"{name}, {split}": load(ROOT / "datasets" / name).of(split) for name, split in SPLITS}
    train, validation, *_ = parts
    parts[train] = parts[train].take(np.arange(len(parts[validation])))
    columns = " | ".join(f"{name} ({len(part)})" for name, part in parts.items())
    print(f"| checkpoint | weights | {columns} | validation loss x 1000 |\n{'|---' * (len(parts) + 3)}|")
    for file in tqdm(sorted((ROOT / "training" / "checkpoints").glob("*.ckpt")), leave=False):
        network = load_network(file)
        found = {name: errors(predict(network, p.structures), p.spectra, p.process) for name, p in parts.items()}
        maes = " | ".join(f"{each.mae:.5f}" for each in found.values())
        print(f"| {file.stem} | {weights_hash(network)} | {maes} | {1000 * found[validation].loss:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="print errors of the checkpoints on held-out structures")
    arguments = parser.parse_args()

    runs = json.loads(CURVES.read_text())["runs"]
    operations = []
    print("| run | GFLOP forward | structures | PFLOP of training | loss x 1000 | MAE |\n|---|---|---|---|---|---|")
    for run in runs:
        network = NETWORKS[run["name"]].for_process(Process()).build()
        forward, last = forward_operations(network, run["positions"]), run["points"][-1]
        operations.append(3 * forward)
        seen = run["structures_before"] + last["structures"]
        print(
            f"| {run['name']} | {forward / 1e9:.2f} | {seen:,} | {seen * operations[-1] / 1e15:.2f} "
            f"| {1000 * last['loss']:.3f} | {last['mae']:.5f} |"
        )
    draw(runs, operations, FIGURE)
    if arguments.errors:
        print_errors()


if __name__ == "__main__":
    main()
