"""Which labels teach a field network most per byte and second: spectra at one distance, at five, Fourier orders, gradients.

Spectra at one distance do not determine the field that caused them. Simulates structures of the training and of the validation
split on one grid, derives each kind of label from the same simulations, and trains the same network on each kind, once for an
equal number of steps and once for an equal time. Prints, on the validation structures, the error of spectra at three distances
(by the network's propagation layer with the distance replaced), the distance of the predicted field from the simulated one up
to a common phase, and cosine and norm of the gradient against the solver's adjoint; then bytes and seconds per sample of
each kind. Labels and finished trainings are kept in OUT: repeat the command to resume.

python benchmarks/labels.py --out runs/labels [--cells 48] [--structures 400] [--steps 600] [--width 64]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from ablation import keep, stored
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from weights_hash import weights_hash

from metaspec_contract.figures_of_merit import efficiency_weights
from metaspec_contract.files import read_array, write_array, write_json
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Symmetry, symmetries
from metaspec_simulation import Solver
from metaspec_simulation.dataset import HARMONIC_STEP, Samples, load
from metaspec_simulation.physics import farfield
from metaspec_simulation.physics.grid import make_grid
from metaspec_training.data.augmentation import Batch, Expansion
from metaspec_training.data.packed import PackedSpectra
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.propagation import Propagation, common_phase
from metaspec_training.networks.symmetric import D4

ROOT = Path(__file__).parents[1]
DATA = ROOT / "datasets" / "bayer-600nm"
BATCH, POSITIONS, RATE = 8, 8, 2e-3
SOBOLEV_BATCH = 4
VALIDATION, DIFFERENTIATED, TIMED = 48, 4, 8
"""Validation structures: all, those with gradients, and those of the timing."""

EVERY_NM = 2
STEP = 1e-4
"""Step of the orders in OUT, finer than that of a data set (`HARMONIC_STEP`)."""

DISTANCES_UM = (1.0, 1.5, 2.0, 2.5, 3.0)
COMPARED_UM = (2.5, 2.0, 1.25)
WEIGHT_OF_ORDERS = 0.2
"""Weight, beside the loss of the spectra, of the power of the field's error in units of the incident power."""

WEIGHT_OF_GRADIENTS = 0.01
"""Weight of the power of the gradient's error in units of the mean power of gradients."""

Array = NDArray[Any]
Run = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Kinds of labels that a network is trained with."""

    distances_um: tuple[float, ...] = (2.5,)
    orders: bool = False
    gradients: bool = False


VARIANTS = {
    "spectra": Variant(),
    "spectra at 5 distances": Variant(DISTANCES_UM),
    "orders and spectra": Variant(orders=True),
    "orders and spectra at 5 distances": Variant(DISTANCES_UM, orders=True),
    "gradients and spectra": Variant(gradients=True),
}


@dataclass(frozen=True)
class Labels:
    """Labels of the structures of one split.

    Attributes:
        samples: the structures.
        orders: orders without the phase that `Propagation` removes, in units of `STEP`, int16 (N, polarisation, component,
            part, wavelength, ky, kx).
        harmonics: harmonics at `DISTANCES_UM` in units of `HARMONIC_STEP`, int16 (N, 5, H, wavelength).
        gradients: gradients of the efficiencies of R, G and B for the first structures, float32 (n, 3, 128, 128).
    """

    samples: Samples
    orders: NDArray[np.int16]
    harmonics: NDArray[np.int16]
    gradients: NDArray[np.float32]


class FarField:
    """The solver's last step, at any distance, from the orders under the layer."""

    def __init__(self, process: Process, cells: int) -> None:
        self.wavelengths_nm = process.wavelengths_nm[::EVERY_NM]
        grid, order = make_grid(process, cells), farfield.max_order(process)
        index = process.substrate.index(self.wavelengths_nm)
        self._waves = farfield.PlaneWaves(grid, process, self.wavelengths_nm, index, grid.eps_substrate, order)
        self._quadrants = farfield.quadrant_weights(order).astype(np.float32)

    @property
    def propagating(self) -> NDArray[np.bool_]:
        """Orders that propagate in the substrate, (wavelength, ky, kx)."""
        mask: NDArray[np.bool_] = self._waves.propagating
        return mask

    def flux(self, orders: Array, distance_um: float) -> NDArray[np.float32]:
        """Flux on points of the unit cell, (wavelength, P, P), from the orders of one structure as in `Labels`."""
        field = (STEP * (orders[:, :, 0] + 1j * orders[:, :, 1])).swapaxes(1, 2).astype(np.complex64)
        field = field * np.exp(1j * self._waves.kz * distance_um)[:, None]
        flux: NDArray[np.float32] = farfield.flux_map(field, self._waves.magnetic(field)).mean(axis=0)
        return flux

    def spectra(self, orders: Array, distance_um: float) -> NDArray[np.float32]:
        """Efficiencies of R, G1, G2, B, (4, wavelength)."""
        spectra: NDArray[np.float32] = np.einsum("cyx,wyx->cw", self._quadrants, self.flux(orders, distance_um))
        return spectra


def simulate(samples: Samples, cells: int, gradients: int, out: Path) -> Labels:
    """Labels of structures, simulated or read from `out`."""
    process = samples.process
    solver, far_field = Solver(process, cells), FarField(process, cells)
    common = np.exp(1j * common_phase(process, far_field.wavelengths_nm))[:, None, None]

    def orders_of(structure: Array) -> Array:
        orders = solver.orders(structure)[:, :, ::EVERY_NM] / common
        rounded: Array = np.rint(np.stack([orders.real, orders.imag], axis=2) / STEP).astype(np.int16)
        return rounded

    def harmonics_of(orders: Array) -> Array:
        by_distance = [farfield.window_harmonics(far_field.flux(orders, distance)).T for distance in DISTANCES_UM]
        rounded: Array = np.rint(np.stack(by_distance) / HARMONIC_STEP).astype(np.int16)
        return rounded

    def cached(name: str, make: Callable[[Any], Array], given: Any) -> Array:
        file = out / f"{cells}_{name}.npy"
        if not file.exists():
            write_array(file, make(given))
        return read_array(file)

    orders, harmonics, derivatives = [], [], []
    split = str(samples.split[0])
    for n, structure in enumerate(tqdm(samples.structures, desc=f"simulating, {split}", unit="structure")):
        orders.append(cached(f"{split}_{n}_orders", orders_of, structure))
        harmonics.append(cached(f"{split}_{n}_harmonics", harmonics_of, orders[-1]))
    for n, structure in enumerate(tqdm(samples.structures[:gradients], desc="gradients", unit="structure")):
        derivatives.append(
            cached(f"{split}_{n}_gradients", lambda one: solver.gradient(one, cotangents(process))[1], structure)
        )
    return Labels(samples, np.stack(orders), np.stack(harmonics), np.array(derivatives))


def cotangents(process: Process) -> NDArray[np.float64]:
    """Weights of the efficiencies of R, G and B, (3, 4, W)."""
    return np.stack([efficiency_weights(colour, process.wavelengths_nm) for colour in "RGB"])


def moved(label: Tensor, shift: Tensor, symmetry: Symmetry) -> Tensor:
    """Orders (2, 2, 2, nodes, ky, kx) of the structure after a shift, then a symmetry of the square."""
    highest = label.shape[-1] // 2
    order = torch.arange(-highest, highest + 1)
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


def at_distance(network: DiffractionFieldNet, distance_um: float) -> Propagation:
    """The network's propagation layer to another distance."""
    process = network.process.model_copy(update={"distance_um": distance_um})
    return Propagation(process, network.config.spectral_basis, network.config.wavelength_nodes)


def field(network: DiffractionFieldNet, maps: Tensor) -> Tensor:
    """Orders of a predicted field, in the shape of the labels: (B, 2, 2, 2, nodes, ky, kx)."""
    return torch.stack(network.propagation.orders(maps), dim=3)


def propagating(network: DiffractionFieldNet) -> Tensor:
    """Which orders propagate: 0 or 1, (nodes, ky, kx)."""
    layer = network.propagation
    orders = layer.phase.cosine.flatten(1) ** 2 + layer.phase.sine[..., 0, :].flatten(1) ** 2 > 0.5
    size = len(layer.transform)
    return orders.float().T.reshape(-1, size, size)


def at_nodes(orders: Array) -> Tensor:
    """Stored orders at the wavelengths where the network's physics is computed, every 4 nm."""
    return STEP * torch.from_numpy(orders[..., ::2, :, :].astype(np.float32))


def gradient(network: DiffractionFieldNet, density: Tensor, weights: Tensor, differentiable: bool = False) -> Tensor:
    """Gradients (B, 128, 128) of sum(weights * spectra) with respect to densities (B, 128, 128); weights (B, 4, W)."""
    density = density.detach().requires_grad_()
    low_fidelity = torch.ones(len(density))  # for networks of a finer grid than that of the labels
    total = (network(density.unsqueeze(1), low_fidelity).flatten(1, 2) * weights).sum()
    (result,) = torch.autograd.grad(total, density, create_graph=differentiable)
    return result


def train(variant: Variant, labels: Labels, width: int, steps: int) -> tuple[DiffractionFieldNet, float]:
    """The network after `steps` steps, and the CPU seconds of the fastest step.

    All variants see the same structures, moved alike.
    """
    torch.manual_seed(0)
    process = labels.samples.process
    network = DiffractionFieldNetConfig(width=width, blocks=2, beam=True).for_process(process).build()
    optimizer = MuonAdamW(list(network.parameters()), RATE, weight_decay=2e-2)
    warm = max(1, steps // 20)
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / steps)) for step in range(steps + 1)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warm, cosine[step]))
    loss_of = AdaptiveSpectralLoss()
    thinned = process.wavelengths_nm[::EVERY_NM]
    expansion = Expansion(process.wavelengths_nm, thinned)
    layers = {distance: at_distance(network, distance) for distance in variant.distances_um}
    sets = {
        distance: PackedSpectra(
            replace(
                labels.samples,
                harmonics=labels.harmonics[:, DISTANCES_UM.index(distance)],
                harmonic_wavelengths_nm=thinned,
                harmonic_orders=np.stack(farfield.harmonic_orders()),
            ),
            (0, 0),
            POSITIONS,
        )
        for distance in variant.distances_um
    }
    all_symmetries, mask = list(symmetries()), propagating(network)
    weights = cotangents(process).astype(np.float32)
    power = float(np.mean(labels.gradients**2)) if variant.gradients else 0.0
    rng, sobolev = np.random.default_rng(0), np.random.default_rng(1)
    queue: list[int] = []
    epoch, fastest = 0, math.inf
    for _ in tqdm(range(steps), desc="training", unit="step"):
        started = time.process_time()
        if len(queue) < BATCH:
            epoch += 1
            queue = rng.permutation(len(labels.samples)).tolist()
            drawn = {distance: data.drawn(0, epoch) for distance, data in sets.items()}
        chosen, queue = queue[:BATCH], queue[BATCH:]
        loss = torch.zeros(())
        maps: Tensor | None = None
        for distance, data in drawn.items():
            packed = data[chosen]
            batch: Batch = expansion(packed)
            if maps is None:  # positions and symmetries are the same for all distances
                maps = network.maps(batch.density)
            spectra = layers[distance].at(maps, batch.shift).unflatten(2, (2, 2))  # type: ignore[no-untyped-call]
            loss = loss + loss_of(spectra, batch.spectra).total / len(drawn)
        assert maps is not None
        if variant.orders:
            target = torch.stack(
                [
                    moved(at_nodes(labels.orders[index]), shift, D4[int(element)])
                    for index, shift, element in zip(chosen, packed.shift[:, 0], packed.symmetry, strict=True)
                ]
            )
            difference = (field(network, maps) - target).square() * mask
            loss = loss + WEIGHT_OF_ORDERS * difference.sum(dim=(2, 3, 5, 6)).mean()
        if variant.gradients:
            rows = sobolev.integers(len(labels.gradients), size=SOBOLEV_BATCH)
            colours = sobolev.integers(3, size=SOBOLEV_BATCH)
            symmetry = all_symmetries[sobolev.integers(len(all_symmetries))]
            density = symmetry.apply(labels.samples.structures[rows].astype(np.float32))
            wanted = torch.from_numpy(symmetry.apply(labels.gradients[rows, colours]).copy())
            weight = torch.from_numpy(weights[colours][:, symmetry.channels])
            found = gradient(network, torch.from_numpy(density.copy()), weight, differentiable=True)
            loss = loss + WEIGHT_OF_GRADIENTS * (found - wanted).square().mean() / power
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        fastest = min(fastest, time.process_time() - started)
    return network.eval(), fastest


def evaluate(network: DiffractionFieldNet, labels: Labels, truth: dict[float, Array]) -> Run:
    """Errors on the validation structures, as of the grid of the labels."""
    structures = torch.from_numpy(labels.samples.structures.astype(np.float32))
    with torch.no_grad():
        maps = torch.cat(
            [network.maps(part.unsqueeze(1), torch.ones(len(part))) for part in torch.split(structures, 16)]
        )
        predicted = {distance: at_distance(network, distance)(maps)[..., ::EVERY_NM] for distance in truth}
        away, shells = field_error(network, maps, at_nodes(labels.orders))
    cosines, norms = [], []
    for structure, gradients in zip(structures, labels.gradients, strict=False):
        weights = torch.from_numpy(cotangents(labels.samples.process)).float()
        ours = gradient(network, structure.expand(len(weights), -1, -1).clone(), weights).flatten(1)
        theirs = torch.from_numpy(gradients).flatten(1)
        cosines.append(torch.cosine_similarity(ours, theirs).numpy())
        norms.append((ours.norm(dim=1) / theirs.norm(dim=1)).numpy())
    mae = {
        f"{distance:g}": float(np.abs(predicted[distance].numpy() - true).mean()) for distance, true in truth.items()
    }
    return {
        "mae": mae,
        "field": away,
        "field_by_order": shells,
        "cosine": float(np.mean(cosines)),
        "norm": float(np.mean(norms)),
    }


def field_error(network: DiffractionFieldNet, maps: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """Power of predicted minus simulated field over the power of the simulated one: in total, and by highest order."""
    true, predicted = (torch.view_as_complex(one.movedim(3, -1).contiguous()) for one in (labels, field(network, maps)))
    mask = propagating(network)
    common = (predicted * true.conj() * mask).sum(dim=(2, 4, 5), keepdim=True)
    away = ((predicted * common.conj() / common.abs() - true).abs().square() * mask).mean(dim=(0, 1, 3)).sum(dim=0)
    power = (true.abs().square() * mask).mean(dim=(0, 1, 3)).sum(dim=0)
    highest = len(power) // 2
    order = torch.arange(-highest, highest + 1).abs()
    highest_of = torch.maximum(order[:, None], order)
    shells = [float(away[highest_of == n].sum() / power[highest_of == n].sum()) for n in range(highest + 1)]
    return float(away.sum() / power.sum()), shells


def sizes(labels: Labels, gradients: Array, far_field: FarField) -> dict[str, float]:
    """Bytes per structure of each kind of label, compressed as a data set compresses them: shards of 64 structures."""
    shard = slice(64)
    orders = np.rint(labels.orders[shard] * (STEP / HARMONIC_STEP)).astype(np.int16)
    # Of every order, the wavelengths at which it propagates, one after the other.
    orders = np.moveaxis(orders, 4, -1)
    mask = np.moveaxis(far_field.propagating, 0, -1)
    thinned = mask[..., ::2]
    largest = np.abs(gradients).max(axis=(-2, -1), keepdims=True)
    harmonics = labels.harmonics[shard]
    kinds = {
        "spectra": harmonics[:, DISTANCES_UM.index(2.5)],
        "spectra at 5 distances": harmonics,
        "orders": orders[..., mask],
        "orders every 4 nm": orders[..., ::2][..., thinned],
        "gradients of 3 efficiencies": np.rint(gradients / largest / HARMONIC_STEP).astype(np.int16),
    }
    compressor = zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle="shuffle")
    found = {}
    for name, values in kinds.items():
        store = zarr.create_array({}, data=values, chunks=values.shape, compressors=compressor)
        found[name] = store.nbytes_stored() / len(values)
    return found


def rounding(labels: Labels, far_field: FarField) -> float:
    """Rms error of spectra at 2.5 um from orders stored in steps of `HARMONIC_STEP`, propagating ones only."""
    errors = []
    for orders in labels.orders[:TIMED]:
        rounded = np.rint(orders * (STEP / HARMONIC_STEP)) * (HARMONIC_STEP / STEP) * far_field.propagating
        errors.append(far_field.spectra(rounded, 2.5) - far_field.spectra(orders, 2.5))
    return float(np.sqrt(np.mean(np.square(errors))))


def seconds(samples: Samples, cells: int) -> dict[str, float]:
    """CPU seconds per structure of a simulation, of five distances from it, and of three gradients."""
    solver, far_field = Solver(samples.process, cells), FarField(samples.process, cells)
    stub = np.zeros((2, 2, 2, *far_field.propagating.shape), np.int16)
    tasks: dict[str, Callable[[Array], Any]] = {
        "simulation": solver.orders,
        "five distances from its orders": lambda _: [far_field.flux(stub, distance) for distance in DISTANCES_UM],
        "gradients of 3 efficiencies": lambda one: solver.gradient(one, cotangents(samples.process)),
    }
    found = {}
    for name, task in tasks.items():
        started = time.process_time()
        for structure in samples.structures[:TIMED]:
            task(structure)
        found[name] = (time.process_time() - started) / TIMED
    return found


def step_seconds(names: list[str], labels: Labels, width: int) -> dict[str, float]:
    """CPU seconds per step of each variant, the fastest of a few, taken in turn: other work on the machine slows all alike."""
    rounds = [{name: train(VARIANTS[name], labels, width, TIMED)[1] for name in names} for _ in range(2)]
    return {name: min(one[name] for one in rounds) for name in names}


def report(name: str, run: Run) -> str:
    mae = ", ".join(f"{distance} um {error:.5f}" for distance, error in run["mae"].items())
    shells = " ".join(f"{share:.2f}" for share in run["field_by_order"])
    return (
        f"{name}: MAE at {mae}; field {run['field']:.3f} (by highest order {shells}); "
        f"gradient: cosine {run['cosine']:.3f}, norm {run['norm']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=48, help="grid cells per period of all labels")
    parser.add_argument("--structures", type=int, default=400)
    parser.add_argument("--gradients", type=int, default=64, help="training structures with gradients")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="names of variants")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load(DATA)
    cells, differentiated = arguments.cells, any(VARIANTS[name].gradients for name in arguments.only)
    validation = simulate(data.of("validation").take(np.arange(VALIDATION)), cells, DIFFERENTIATED, arguments.out)
    train_samples = data.of("train").take(np.arange(arguments.structures))
    labels = simulate(train_samples, cells, arguments.gradients * differentiated, arguments.out)
    far_field = FarField(data.process, cells)
    truth = {
        distance: np.stack([far_field.spectra(orders, distance) for orders in validation.orders])
        for distance in COMPARED_UM
    }

    file = arguments.out / "results.jsonl"
    budget = {name: getattr(arguments, name) for name in ("cells", "structures", "gradients", "steps", "width")}

    def finished(name: str, steps: int) -> Run:
        """The result of a training, made now if it is not in the file."""
        for run in stored(file, budget):
            if (run["variant"], run["steps"]) == (name, steps):
                return run
        network, _ = train(VARIANTS[name], labels, arguments.width, steps)
        run = {"variant": name, "steps": steps} | evaluate(network, validation, truth)
        keep(file, run | {"budget": budget})
        return run

    names = ["spectra", *(name for name in arguments.only if name != "spectra")]
    print(f"{arguments.steps} steps:", flush=True)
    for name in names:
        print(report(name, finished(name, arguments.steps)), flush=True)
    timing = arguments.out / "step_seconds.json"
    known: dict[str, float] = json.loads(timing.read_text()) if timing.exists() else {}
    if not known.keys() >= set(names):
        known = step_seconds(names, labels, arguments.width)
        write_json(timing, known)
    print("CPU seconds per step:", {name: round(known[name], 3) for name in names})
    print("In the time of spectra:", flush=True)
    for name in names:
        steps = round(arguments.steps * known["spectra"] / known[name])
        if steps < 0.95 * arguments.steps:
            print(report(f"{name}, {steps} steps", finished(name, steps)), flush=True)
    bundled = load_network(ROOT / "training" / "checkpoints" / "field.ckpt")
    assert isinstance(bundled, DiffractionFieldNet)
    print(report(f"bundled, weights SHA-256 {weights_hash(bundled)}", evaluate(bundled, validation, truth)))
    print(
        "Bytes per structure:",
        {name: round(size) for name, size in sizes(labels, validation.gradients, far_field).items()},
    )
    print(f"Rms error of spectra from orders as stored: {rounding(labels, far_field):.1e}")
    print(
        "CPU seconds per structure:",
        {name: round(each, 2) for name, each in seconds(validation.samples, cells).items()},
    )


if __name__ == "__main__":
    main()
