"""Validation error of a network trained on spectra and on the field under the structures, or on spectra alone.

Spectra do not determine the field that caused them. Simulates the Fourier orders of the field under some structures of the
training split, at 48 cells, and trains the same network on these structures with the spectra (of 80 cells) alone, and with
the orders as additional labels for its `coarse_head`. Prints the validation error of both during training, and the distance
of each network's field, and of the bundled network's, from the simulated one, up to a common phase. Simulated orders are kept
in OUT: repeat the command to resume.

python benchmarks/orders.py --out runs/orders [--structures 600] [--steps 745]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm
from weights_hash import weights_hash

from metaspec_contract.files import read_array, write_array
from metaspec_contract.structures import PIXELS, Symmetry, symmetries
from metaspec_simulation import Solver
from metaspec_simulation.dataset import Samples, load
from metaspec_training.data.augmentation import Batch
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.data.packed import Packed, PackedSpectra
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.propagation import common_phase
from metaspec_training.report.evaluation import errors, predict

ROOT = Path(__file__).parents[1]
DATA = ROOT / "datasets" / "bayer-600nm"
CELLS, BATCH, POSITIONS, RATE = 48, 16, 8, 2e-3
WEIGHT = 0.2
"""Weight, beside the loss of the spectra, of the power of the field's error in units of the incident power."""


def simulate(samples: Samples, out: Path, nodes: NDArray[np.intp]) -> NDArray[np.float16]:
    """Orders without the phase that `Propagation` removes, (N, polarisation, component, part, node, ky, kx)."""
    process = samples.process
    solver = Solver(process, cells=CELLS)
    common = np.exp(1j * common_phase(process, process.wavelengths_nm))[nodes, None, None]
    labels = []
    for n, structure in enumerate(tqdm(samples.structures, desc="simulating", unit="structure")):
        file = out / f"orders_{n}.npy"
        if not file.exists():
            orders = solver.orders(structure)[:, :, nodes] / common
            write_array(file, np.stack([orders.real, orders.imag], axis=2).astype(np.float16))
        labels.append(read_array(file))
    return np.stack(labels)


def moved(label: Tensor, shift: Tensor, symmetry: Symmetry) -> Tensor:
    """Orders (2, 2, 2, nodes, ky, kx) of the structure after a shift, then a symmetry of the square."""
    order = torch.arange(-7, 8)
    phase = -2 * torch.pi / PIXELS * (shift[0] * order[:, None] + shift[1] * order)
    real, imag = label.unbind(2)
    label = torch.stack([real * phase.cos() - imag * phase.sin(), real * phase.sin() + imag * phase.cos()], dim=2)
    if symmetry.transpose:  # exchanges x and y in the incident light, in the field, and in the orders
        label = label.flip(0, 1).transpose(-1, -2)
    crossed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[..., None, None, None, None]
    for axis, flip in ((-2, symmetry.flip_rows), (-1, symmetry.flip_columns)):
        if flip:
            label = label.flip(axis) * crossed
    return label


def field(network: DiffractionFieldNet, maps: Tensor) -> Tensor:
    """Orders of a predicted field, in the shape of the labels: (B, 2, 2, 2, nodes, ky, kx)."""
    return torch.stack(network.propagation.orders(maps), dim=3)


def propagating(network: DiffractionFieldNet) -> Tensor:
    return (network.propagation.phase_cos**2 + network.propagation.phase_sin**2 > 0.5).float()


def train(samples: Samples, labels: NDArray[np.float16] | None, steps: int) -> DiffractionFieldNet:
    """The network after `steps` steps; the same structures, shifted and turned the same way, with and without labels."""
    torch.manual_seed(0)
    network = DiffractionFieldNetConfig(width=96, blocks=2, beam=True, coarse_head=True).build()
    features: list[Tensor] = []  # the input of both heads
    network.head[-1].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    assert network.coarse_head is not None
    optimizer = MuonAdamW(list(network.parameters()), RATE, weight_decay=2e-2)
    warm = max(1, steps // 20)
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / steps)) for step in range(steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, cosine[step]))
    loss_of, module = AdaptiveSpectralLoss(), SpectraDataModule(str(DATA), positions=POSITIONS)
    validation = load(DATA).of("validation")
    elements, mask = list(symmetries()), propagating(network)
    rng = np.random.default_rng(0)
    queue: list[int] = []
    epoch = 0
    for step in tqdm(range(1, steps + 1), desc="training", unit="step"):
        if len(queue) < BATCH:
            epoch += 1
            queue = rng.permutation(len(samples.packed)).tolist()
            drawn = PackedSpectra(samples, (0, epoch), POSITIONS)
        chosen, queue = queue[:BATCH], queue[BATCH:]
        packed: Packed = default_collate([drawn[index] for index in chosen])
        batch: Batch = module.expansion(packed)
        with torch.autocast("cpu", torch.bfloat16):
            maps = network.maps(batch.density).float()
            low_fidelity = maps + network.coarse_head(features[-1]).float()
            features.clear()
        spectra = network.propagation.at(maps, batch.shift).unflatten(2, (2, 2))  # type: ignore[no-untyped-call]
        loss = torch.as_tensor(loss_of(spectra, batch.spectra).total)
        if labels is not None:
            target = torch.stack(
                [
                    moved(torch.from_numpy(labels[index]).float(), shift, elements[int(element)])
                    for index, shift, element in zip(chosen, packed.shift[:, 0], packed.symmetry, strict=True)
                ]
            )
            difference = (field(network, low_fidelity) - target).square() * mask
            loss = loss + WEIGHT * difference.sum(dim=(2, 3, 5, 6)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0 or step == steps:
            network.eval()
            of = errors(predict(network, validation.structures), validation.spectra, validation.process)
            features.clear()
            tqdm.write(f"step {step}: validation MAE {of.mae:.5f}, loss x 1000 {1000 * of.loss:.3f}")
            network.train()
    return network.eval()


def distance(network: DiffractionFieldNet, samples: Samples, labels: NDArray[np.float16]) -> str:
    """Power of predicted minus simulated field over the power of the simulated one: in total, and by order."""
    density = torch.from_numpy(samples.structures[:48].astype(np.float32)).unsqueeze(1)
    with torch.no_grad():
        predicted = field(network, network.maps(density, torch.ones(len(density))))
    true = torch.from_numpy(labels[:48]).float()
    true, predicted = (torch.view_as_complex(one.movedim(3, -1).contiguous()) for one in (true, predicted))
    mask = propagating(network)
    common = (predicted * true.conj() * mask).sum(dim=(2, 4, 5), keepdim=True)
    away = ((predicted * common.conj() / common.abs() - true).abs().square() * mask).mean(dim=(0, 1, 3)).sum(dim=0)
    power = (true.abs().square() * mask).mean(dim=(0, 1, 3)).sum(dim=0)
    order = torch.arange(-7, 8).abs()
    highest = torch.maximum(order[:, None], order)
    shells = [f"{float(away[highest == n].sum() / power[highest == n].sum()):.2f}" for n in range(8)]
    return f"{float(away.sum() / power.sum()):.2f}; by highest order, 0 to 7: {' '.join(shells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=600)
    parser.add_argument("--steps", type=int, default=745)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = load(DATA).of("train").take(np.arange(arguments.structures))
    arguments.out.mkdir(parents=True, exist_ok=True)
    nodes = np.arange(0, 301, 4)  # where the network's physics is computed
    labels = simulate(samples, arguments.out, nodes)
    networks = {}
    for name, given in (("spectra and orders", labels), ("spectra", None)):
        print(name, flush=True)
        networks[f"trained on {name}"] = train(samples, given, arguments.steps)
    bundled = load_network(ROOT / "training" / "checkpoints" / "field.ckpt")
    assert isinstance(bundled, DiffractionFieldNet)
    print("Distance of the predicted field from the simulated one, up to a common phase:")
    for name, network in (networks | {f"bundled, weights SHA-256 {weights_hash(bundled)}": bundled}).items():
        print(f"  {name}: {distance(network, samples, labels)}")


if __name__ == "__main__":
    main()
