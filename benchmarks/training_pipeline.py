"""Speed of the training pipeline without a network, and of a training step in two precisions, on one thread.

The pipeline is the loader and the expansion of its batches to densities and labels: every structure with a random translation
and symmetry. Measured are structures without harmonics, as imported ones, at one position, and with harmonics at 8; beside
them, for scale, the time that writing their densities alone takes.

With `--steps`, also trains the preset `field` from the same weights on the same batches in bf16-mixed with Muon in bfloat16,
and in float32 throughout, taking turns step by step, and prints the time of a structure, the validation errors on the
way, and which of the two `trainer.precision: auto` takes. A CPU with bfloat16 units does without them under
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI.

python benchmarks/training_pipeline.py [--steps 200]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from metaspec_simulation.dataset import Samples, load
from metaspec_training.data.augmentation import Batch, Expansion
from metaspec_training.data.loader import ResumableLoader
from metaspec_training.data.packed import Packed, PackedSpectra
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.fit.precision import choose_precision
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.report.evaluation import errors, predict

ROOT = Path(__file__).parents[1]
STEP_BATCH = 16
POSITIONS = 8
VALIDATED = 64
"""Structures of the validation split that are predicted on the way."""


def as_imported(samples: Samples) -> Samples:
    """The samples without harmonics, as an importer makes them."""
    return replace(samples, harmonics=np.zeros((len(samples), 0, 0), np.int16), harmonic_wavelengths_nm=np.zeros(0))


def pipeline(samples: Samples, positions: int, batch_size: int) -> Callable[[int], int]:
    """A function that expands all batches of an epoch and returns their number of structures."""
    data = PackedSpectra(samples, (0, 0), positions)
    expansion = Expansion(
        samples.process.wavelengths_nm,
        samples.harmonic_wavelengths_nm,
        samples.harmonic_orders if samples.harmonics.size else None,
    )

    def epoch(number: int) -> int:
        order = np.random.default_rng(number).permutation(len(data)).tolist()
        loader = ResumableLoader(data.drawn(0, number), batch_size, sampler=order, collate_fn=_as_is, drop_last=True)
        return sum(len(expansion(batch).density) for batch in loader)

    return epoch


def _as_is(batch: Packed) -> Packed:
    return batch


def writing(batch_size: int) -> Callable[[int], int]:
    """A function that writes densities of as many structures as fit a second or so, and returns their number."""
    levels, density = torch.ones(batch_size, 128, 128, dtype=torch.uint8), torch.empty(batch_size, 128, 128)

    def write(number: int) -> int:
        for _ in range(100):
            density.copy_(levels)
        return 100 * batch_size

    return write


def per_second(work: Callable[[int], int], seconds: float) -> float:
    """Structures per second of the fastest of repetitions within so many seconds, after a first one."""
    work(0)
    rates: list[float] = []
    number, end = 1, time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        count = work(number)
        rates.append(count / (time.perf_counter() - started))
        number += 1
    return max(rates)


@dataclass
class Run:
    """A training in one precision.

    Attributes:
        name: its precision.
        bf16: whether the network computes under autocast, and Muon orthogonalises, in bfloat16.
        network: network.
        times: times of the steps in s.
        curve: validation loss times 1000 and MAE after so many steps.
    """

    name: str
    bf16: bool
    network: DiffractionFieldNet
    times: list[float] = field(default_factory=list)
    curve: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.optimizer = MuonAdamW(list(self.network.parameters()), 2e-3, weight_decay=2e-2, dtype=dtype)

    def step(self, batch: Batch, rate: float) -> None:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            spectra = self.network.at(batch.density, batch.shift, batch.low_fidelity)
        AdaptiveSpectralLoss()(spectra, batch.spectra).total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(time.perf_counter() - started)

    def validate(self, samples: Samples) -> None:
        found = errors(predict(self.network, samples.structures), samples.spectra, samples.process)
        self.network.train()
        self.curve[len(self.times)] = (1000 * found.loss, found.mae)


def compare_steps(train: Samples, validation: Samples, steps: int) -> None:
    """Train in both precisions, taking turns, and print times and errors."""
    runs = []
    for name, bf16 in (("bf16-mixed, Muon in bfloat16", True), ("32-true, Muon in float32", False)):
        torch.manual_seed(0)
        config = DiffractionFieldNetConfig(width=160, blocks=4, coarse_head=True, beam=True)
        runs.append(Run(name, bf16, config.for_process(train.process).build()))
    data = PackedSpectra(train, (0, 0), POSITIONS)
    expansion = Expansion(train.process.wavelengths_nm, train.harmonic_wavelengths_nm, train.harmonic_orders)
    rng = np.random.default_rng(0)
    for step in tqdm(range(steps), "training", unit="step"):
        rate = 2e-3 * min((step + 1) / (0.05 * steps), 0.5 * (1 + np.cos(np.pi * step / steps)))
        batch = expansion(data.drawn(0, step)[rng.choice(len(data), STEP_BATCH, replace=False).tolist()])
        for run in runs:
            run.step(batch, float(rate))
            if (step + 1) % max(1, steps // 4) == 0:
                run.validate(validation)
    print(f"\n| precision | ms per structure, median | {' | '.join(f'{n} steps' for n in runs[0].curve)} |")
    print("|---" * (2 + len(runs[0].curve)) + "|")
    for run in runs:
        curve = " | ".join(f"{loss:.3f}, {mae:.4f}" for loss, mae in run.curve.values())
        print(f"| {run.name} | {1000 * np.median(run.times) / STEP_BATCH:.1f} | {curve} |")
    precision, reason = choose_precision("cpu")
    print(f"\n(Validation loss x 1000, MAE.) trainer.precision auto takes {precision}: {reason}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "datasets" / "bayer-600nm")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10, help="time for each measurement")
    parser.add_argument("--steps", type=int, default=0, help="training steps in each precision")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    samples = load(arguments.data)
    train = samples.of("train")
    size, seconds = arguments.batch_size, arguments.seconds
    print(f"{len(train)} structures, batches of {size}, one thread.\n")
    print("| pipeline | structures per second | us per structure |\n|---|---|---|")
    for name, work in (
        ("without harmonics, 1 position", pipeline(as_imported(train), 1, size)),
        (f"with harmonics, {POSITIONS} positions", pipeline(train, POSITIONS, size)),
        ("writing the densities alone, 64 KB each", writing(size)),
    ):
        rate = per_second(work, seconds)
        print(f"| {name} | {rate:,.0f} | {1e6 / rate:.1f} |", flush=True)
    if arguments.steps:
        compare_steps(train, samples.of("validation").take(np.arange(VALIDATED)), arguments.steps)


if __name__ == "__main__":
    main()
