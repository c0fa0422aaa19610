"""Train a DiffractionFieldNet further on one GPU for a given time, on data sets of several grids, with and without orders.

The bundled field and fast were made by an earlier form of this program, with 282 and 596 structures at 64 cells in addition
to the data sets below. All data lie on the device; all shapes are fixed, so that one compilation serves all steps. Each batch
holds so many structures of each class (binary, regular, grey, design; with orders first), in proportion to their numbers and
weights. Labels of coarser grids are compared with the coarse head, those of 64 cells with a third of it. Samples of schema 2,
whose simulations ended 25 um/c after the pulse, are left out of training if their energy error is above .004 on the finest
grid or .008 on others. A field whose phase was learnt from spectra alone is first turned to that of the orders. The rate is
constant for half of the time and then falls to a hundredth along a cosine, the weight of the field from its first value to
its last.

Every minute, errors of the averaged weights on the validation split of the sets of the finest grid are printed by group. Every
two minutes, at the end and at SIGTERM, OUT/NAME.ckpt (averaged weights in half precision, a checkpoint as others) and
OUT/NAME.state (the whole state) are written: the same command resumes, and reads data sets anew, with what was added to them.

    python benchmarks/gpu_training.py --weights FILE.ckpt --name field --seconds 460 --ordered-rows 48 --out runs/gpu_training \
        --data datasets/bayer-600nm-80 datasets/designs-600nm-80 datasets/bayer-600nm datasets/designs-600nm \
            datasets/bayer-600nm-coarse datasets/designs-600nm-coarse
"""

from __future__ import annotations

import argparse
import copy
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from gpu_training_data import Validation, cells, load_sets, mixture, say
from torch import Tensor, nn

from metaspec_contract.files import replacing
from metaspec_simulation.dataset import provenance
from metaspec_training.data.augmentation import Batch, Expansion
from metaspec_training.data.orders import OrderLabels
from metaspec_training.data.packed import PackedSpectra, packed_size
from metaspec_training.fit.alignment import field_phase
from metaspec_training.fit.checkpoint import read_checkpoint, write_checkpoint
from metaspec_training.fit.loss import AdaptiveSpectralLoss, LossTerms
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.fit.start import with_earlier_data
from metaspec_training.networks.field import DiffractionFieldNet

REDRAWN_EVERY, CHECKED_EVERY = 16, 25
"""Steps between two draws of positions and symmetries, and between two looks at the loss, which wait for the device."""

VALIDATED_EVERY_S, SAVED_EVERY_S = 60, 120
WARM_UP, AVERAGED = 100, 0.999  # steps; share of the averaged weights that is kept at each step


def train(args: argparse.Namespace) -> int:
    """Train as the command line says; returns the exit status.

    Raises:
        ValueError: an argument that is refused.
        FloatingPointError: the loss is not finite any more.
    """
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopped.append(got))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    say("PyTorch", torch.__version__, "on", torch.cuda.get_device_name() if device.type == "cuda" else "the CPU")

    trained = read_checkpoint(args.weights)
    if not isinstance(trained.network, DiffractionFieldNet):
        raise ValueError(f"--weights must be a network that predicts the field, got {args.weights}")
    network = trained.network.to(device).train()
    sets = load_sets(args.data)
    known = provenance({name: each.of("train") for name, each in sets.items()}, args.name)
    known = known.model_copy(update={"data": tuple(each for each in known.data if each.structures)})
    if difference := network.process.difference(known.process):
        raise ValueError(f"--weights and --data are of different processes: {difference}")
    if trained.provenance is not None:
        known = with_earlier_data(known, trained.provenance, str(args.weights))
    finest = max(map(cells, sets.values()))
    fine = {name: each for name, each in sets.items() if cells(each) == finest}
    validation = Validation(fine, device)

    args.out.mkdir(parents=True, exist_ok=True)
    state_file, weights_file = args.out / f"{args.name}.state", args.out / f"{args.name}.ckpt"
    optimizer = MuonAdamW(list(network.parameters()), args.rate, args.weight_decay)
    average = copy.deepcopy(network).eval()
    step, elapsed = 0, 0.0
    if state_file.exists():
        stored = torch.load(state_file, map_location=device, weights_only=True)
        if stored["config"] != network.config.to_dict():
            raise ValueError(f"{state_file} is of another network than --weights: choose another --out or --name")
        network.load_state_dict(stored["network"])
        average.load_state_dict(stored["average"])
        optimizer.load_state_dict(stored["optimizer"])
        step, elapsed = stored["step"], stored["elapsed"]
        say(f"resumes at step {step}, after {elapsed:.0f} s of training")
    else:
        say("validation of the weights:", validation.errors(average))
        for name, samples in fine.items():
            part = samples.of("train")
            if not ((part.ordered >= 0) & (part.grey < 0)).any():
                continue
            found = field_phase(network, part)
            say(
                f"error of the field, as a share of its power, on {name}: {found.before:.3f}, in phase {found.after:.3f}"
            )
            if not found.learnt:
                say(f"the field is turned by {found.phase[0]:.2f} to {found.phase[-1]:.2f} rad")
                network.turn_field(found.phase)
            average.load_state_dict(network.state_dict())
            break
    if step >= args.steps or elapsed >= args.seconds:
        say(f"{weights_file} is finished")
        return 0

    samples, low, source = mixture(sets, args.batch, args.ordered_rows, [args.seed, step])
    say(f"{len(samples)} samples, {packed_size(samples) / 1e9:.1f} GB on the device")
    data = PackedSpectra(samples, (args.seed, 0), args.positions, low, device)
    orders = OrderLabels(samples.process) if (samples.ordered >= 0).any() else None
    wavelengths = samples.process.wavelengths_nm
    expansion = Expansion(wavelengths, samples.harmonic_wavelengths_nm, samples.harmonic_orders, orders).to(device)
    loss = AdaptiveSpectralLoss()

    def errors(batch: Batch) -> tuple[LossTerms, Tensor]:
        maps = network.maps(batch.density, batch.low_fidelity)
        prediction = network.spectra_at(maps, batch.shift).float()
        # Structures with orders come first in a batch.
        predicted = None if batch.orders is None else network.orders_of(maps[: len(batch.orders)])
        mae = (prediction - batch.spectra).abs().mean()
        return loss.errors(prediction, batch.spectra, predicted, batch.orders), mae.detach()

    options: Any = {"layout_optimization": False} if device.type == "cpu" else None  # torch 2.13 crashes there
    compiled = errors if args.eager else torch.compile(errors, dynamic=False, options=options)

    def keep() -> None:
        halves = {name: value.detach().cpu().half() for name, value in average.state_dict().items()}
        with replacing(weights_file) as temporary:
            write_checkpoint(temporary, average.config, halves, known)
        content = {
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with replacing(state_file) as temporary:
            torch.save(content | {"config": network.config.to_dict(), "step": step, "elapsed": elapsed}, temporary)

    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(network.parameters())
    first, counted, validated, saved = step, 0, elapsed, elapsed
    running, last = torch.zeros(4, device=device), time.monotonic()
    drawn = data
    while elapsed < args.seconds and step < args.steps and not stopped:
        if step % REDRAWN_EVERY == 0 or step == first:
            drawn = data.drawn(args.seed, step)
        progress = max(elapsed / args.seconds, step / args.steps)
        falling = max(0.0, 2 * progress - 1)
        rate = args.rate * min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.w_orders = args.w_orders[0] ** (1 - falling) * args.w_orders[1] ** falling
        with torch.no_grad():
            batch = expansion(drawn[source.batch()])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found_errors, mae = compiled(batch)
        total = loss.weighted(found_errors).total
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        counted += 1
        with torch.no_grad():
            torch._foreach_lerp_(ours, theirs, 1 - min(AVERAGED, (1 + step) / (10 + step)))
            running += torch.stack([total.detach(), mae, found_errors.orders.detach(), norm])
        if step % CHECKED_EVERY and step - first > 2 and step < args.steps:
            continue
        values, now = (running / counted).tolist(), time.monotonic()  # waits for the device
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(f"the loss is not finite at step {step}; the last weights are in {args.out}")
        if step - first <= 2:  # compilation is no time of training
            say(f"step {step}: {now - last:.1f} s")
        else:
            elapsed += now - last
        last = now
        if elapsed - validated >= VALIDATED_EVERY_S:
            say(f"step {step}, {elapsed:.0f} s, rate {rate:.2e}, w_orders {loss.w_orders:.3f}, loss {1000 * values[0]:.4f}e-3,"
                f" MAE {values[1]:.5f}, field {values[2]:.5f}, norm {values[3]:.3f}")  # fmt: skip
            say("  validation:", validation.errors(average))
            running.zero_()
            counted, validated = 0, elapsed
        if elapsed - saved >= SAVED_EVERY_S:
            keep()
            saved = elapsed
        last = time.monotonic()
    keep()
    say(f"step {step}, after {elapsed:.0f} s of training; weights in {weights_file}")
    say("validation:", validation.errors(average))
    if stopped:
        print("gpu_training: stopped; the same command resumes", file=sys.stderr)
        return 128 + stopped[0]
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_training: {message}\n")


def main() -> int:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint to start from")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of simulated data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights and the state")
    parser.add_argument("--name", default="field", help="name of the files, and of the preset in the checkpoint")
    parser.add_argument("--seconds", type=float, default=450, help="time of training, without compilation")
    parser.add_argument("--steps", type=int, default=10**9, help="largest number of steps")
    parser.add_argument("--batch", type=int, default=256, help="structures of a batch")
    parser.add_argument("--ordered-rows", type=int, default=48, help="those with orders, if there are others, too")
    parser.add_argument("--positions", type=int, default=8, help="positions at which each structure is compared")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at first")
    parser.add_argument("--weight-decay", type=float, default=2e-2)
    parser.add_argument(
        "--w-orders", type=float, nargs=2, default=(0.05, 0.01), help="weight of the field, from and to"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    for name in ("seconds", "steps", "batch", "positions", "rate"):
        if not 0 < (value := getattr(args, name)) < math.inf:
            parser.error(f"--{name} must be above 0, got {value}")
    if not 0 < args.ordered_rows < args.batch:
        parser.error(f"--ordered-rows must be from 1 to {args.batch - 1}, below --batch, got {args.ordered_rows}")
    if not all(0 < weight < math.inf for weight in args.w_orders):
        parser.error(f"--w-orders must be above 0, got {' '.join(map(str, args.w_orders))}")
    if args.seed < 0 or not 0 <= args.weight_decay < math.inf:
        parser.error("--seed and --weight-decay must not be negative")
    try:
        return train(args)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except FloatingPointError as error:
        print(f"gpu_training: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
