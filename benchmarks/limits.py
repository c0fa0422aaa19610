"""Contributions to the error of the bundled network: data, labels, the output layer, learning.

Prints measurements, each of which rules something out or in:
- errors on structures of the train split and on others: a gap would mean that more data help;
- how much labels change when the simulation grid is moved under the structure, which no network can know;
- error of the output layer on the simulated field, by the number of splines over frequency;
- error of the output layer when the field is fitted freely to the labels of a few structures;
- the share of the error that the smaller bundled network has, too, and that averaging over input positions removes.

python benchmarks/limits.py [--structures 289]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from weights_hash import weights_hash

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation import Solver
from metaspec_simulation.dataset import Samples, load
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.data.packed import PackedSpectra
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.propagation import GRID, Propagation, common_phase, spline_basis
from metaspec_training.report.evaluation import predict

ROOT = Path(__file__).parents[1]
DATA = ROOT / "datasets" / "bayer-600nm"
FITTED, POSITIONS, STEPS = 6, 48, 250
SHIFTS = ((0, 0), (4, 4), (2, 6), (6, 2))
"""Positions of a pattern within the 8 x 8 pixels that the network's field map has a point for."""


def mean_abs(error: NDArray[np.floating] | torch.Tensor) -> float:
    return float(np.abs(np.asarray(error)).mean())


def moved_grid(samples: Samples) -> list[float]:
    """Labels of the first structures, simulated 1 and 3 pixels away and moved back, against those in the data set."""
    solver = Solver(Process(), cells=int(samples.attributes["solver"]["cells"]))
    differences = []
    for n in tqdm(range(4), desc="simulating", leave=False):
        for shift in (1, 3):
            moved = solver.simulate(np.roll(samples.structures[n], (shift, shift), axis=(0, 1)))
            back = shifted_basis(np.array([-shift]), np.array([-shift]))[0] @ moved.harmonics
            differences.append(mean_abs(back - samples.spectra[n]))
    return differences


def output_layer(samples: Samples, splines: int) -> float:
    """Error of the spectra that the simulated field gives when it is put on the network's points and splines."""
    process, solver = Process(), Solver(Process(), cells=48)
    layer = Propagation(process, splines, DiffractionFieldNetConfig().wavelength_nodes)
    position = (np.arange(GRID) * (PIXELS // GRID) + 0.5) / PIXELS
    wave = np.exp(2j * np.pi * np.outer(position, np.arange(-7, 8)))
    frequency = 1000 / process.wavelengths_nm
    common = np.exp(1j * common_phase(process, process.wavelengths_nm))[:, None, None]
    basis = spline_basis(frequency, splines)
    errors = []
    for structure in tqdm(samples.structures[:FITTED], desc="simulating", leave=False):
        field = wave @ (solver.orders(structure) / common) @ wave.T  # (2, 2, W, 16, 16)
        parts = np.stack([field.real, field.imag], axis=2)
        maps = np.einsum("sw,pcdwyx->pcdsyx", np.linalg.pinv(basis), parts).reshape(1, -1, GRID, GRID)
        with torch.inference_mode():
            spectra = layer(torch.from_numpy(maps).float())[0].numpy()
        errors.append(mean_abs(spectra - solver.simulate(structure).spectra))
    return float(np.mean(errors))


def fitted_field(network: DiffractionFieldNet) -> tuple[float, float]:
    """Error over many positions of a few training structures, with the predicted field and with one fitted to them."""
    torch.manual_seed(0)
    data = SpectraDataModule(str(DATA), positions=POSITIONS)
    packed = PackedSpectra(data.train_samples(), (0, 0), POSITIONS)
    batch = data.expansion(packed[range(FITTED)])
    target = batch.spectra.flatten(2, 3)
    with torch.no_grad():
        maps = network.maps(batch.density)
    maps.requires_grad_()
    optimizer = torch.optim.Adam([maps], lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    first = 0.0
    for step in tqdm(range(STEPS), desc="fitting", leave=False):
        error = network.propagation.at(maps, batch.shift) - target
        first = first if step else mean_abs(error.detach())
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
        schedule.step()
    return first, mean_abs(error.detach())


def at_position(network: DiffractionFieldNet, samples: Samples, shift: tuple[int, int]) -> NDArray[np.float32]:
    """Spectra (N, 4, W) of structures, predicted from the same structures moved by `shift`."""
    density = torch.from_numpy(samples.structures[:, None].astype(np.float32))
    with torch.inference_mode():
        parts = [
            network.at(part.roll(shift, (2, 3)), -torch.tensor(shift).expand(len(part), 1, 2).float())
            for part in torch.split(density, 32)
        ]
    spectra: NDArray[np.float32] = torch.cat(parts)[:, 0].flatten(1, 2).numpy()
    return spectra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=289, help="number of structures from each split")
    count = parser.parse_args().structures
    field, fast = (load_network(ROOT / "training" / "checkpoints" / f"{name}.ckpt") for name in ("field", "fast"))
    assert isinstance(field, DiffractionFieldNet)
    print(f"Weights SHA-256: field {weights_hash(field)}, fast {weights_hash(fast)}")
    samples = load(DATA)
    splits = {name: samples.of(name) for name in ("train", "validation")}
    splits = {name: split.take(np.arange(min(count, len(split)))) for name, split in splits.items()}

    error = {name: predict(field, split.structures) - split.spectra for name, split in splits.items()}
    for name, split in splits.items():
        print(f"MAE on {len(split)} structures of the {name} split: {mean_abs(error[name]):.4f}")
    print(f"Labels on a moved grid differ by {np.mean(moved_grid(splits['validation'])):.4f} (mean absolute).")
    for splines in (32, 48):
        lost = output_layer(splits["train"], splines)
        print(
            f"The simulated field of {FITTED} structures in {splines} splines, through the output layer: MAE {lost:.4f}"
        )
    print(
        "Field predicted, then fitted freely, for {} structures at {} positions: MAE {:.4f}, {:.4f}".format(
            FITTED, POSITIONS, *fitted_field(field)
        )
    )
    split = splits["validation"]
    first, second = error["validation"], predict(fast, split.structures) - split.spectra
    shared = (first * second).mean() / np.sqrt((first**2).mean() * (second**2).mean())
    print(
        f"MAE of the two networks: {mean_abs(first):.4f}, {mean_abs(second):.4f}; correlation of their errors {shared:.2f}"
    )
    moved = np.stack([at_position(field, split, shift) for shift in SHIFTS])
    print(
        f"MAE of the mean over {len(SHIFTS)} positions on the input grid: {mean_abs(moved.mean(axis=0) - split.spectra):.4f}"
    )


if __name__ == "__main__":
    main()
