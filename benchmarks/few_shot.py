"""A trained network on another process, before and after training on 100 samples of it.

Simulates structures of a thinner layer (500 instead of 600 nm), if they are not in OUT yet, and trains a checkpoint's network
on 100 of them as `training/configs/adapt.yaml` says: its last layers only, all of its layers, and for comparison a new
network. Prints the errors on the structures that were held out.

python benchmarks/few_shot.py --out runs/few-shot [--samples 100]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn
from weights_hash import weights_hash

from metaspec_contract.process import Process
from metaspec_simulation.dataset import load
from metaspec_training.fit.checkpoint import load_network, warm_start
from metaspec_training.networks.layers import NetworkConfig
from metaspec_training.report.evaluation import errors, predict

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "training" / "checkpoints" / "fast.ckpt"
COUNT, CELLS = 300, 48
SETTINGS = ["--config", "training/configs/fast.yaml", "--config", "training/configs/adapt.yaml"]
VARIANTS = {
    "last layers": ["--model.weights", str(WEIGHTS)],
    "all layers": ["--model.weights", str(WEIGHTS), "--model.freeze", "null"],
    "new network": ["--model.freeze", "null"],
}


def on_process(network: nn.Module, process: Process) -> nn.Module:
    """A network with the propagation layer of another process, and its weights."""
    config = network.config
    assert isinstance(config, NetworkConfig)
    other = replace(config, process=process).build()
    warm_start(other, network)
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()

    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    process = Process(thickness_um=0.5)
    (out / "process.json").write_text(process.model_dump_json())
    simulate = ["--count", str(COUNT), "--cells", str(CELLS), "--process", str(out / "process.json"), "--workers", "1"]
    program = Path(sys.executable).with_name("metaspec-simulate")
    subprocess.run([program, *simulate, "--seed", "7", "--out", out / "data"], cwd=ROOT, check=True)
    held_out = load(out / "data")
    held_out = held_out.take(np.flatnonzero((held_out.split != "train") & (held_out.flag == 0)))

    trained = load_network(WEIGHTS)
    networks, minutes = {"not trained": on_process(trained, process)}, {"not trained": 0.0}
    for name, settings in VARIANTS.items():
        run = out / f"{name.replace(' ', '-')}-{arguments.samples}"
        started = time.perf_counter()
        if not (found := sorted(run.rglob("last.ckpt"))):
            data = ["--data.path", str(out / "data"), "--data.limit", str(arguments.samples)]
            where = ["--trainer.default_root_dir", str(run)]
            command = [sys.executable, "training/train.py", *SETTINGS, *data, *settings, *where]
            subprocess.run(command, cwd=ROOT, check=True)
            found = sorted(run.rglob("last.ckpt"))
        networks[name] = load_network(found[-1])
        minutes[name] = (time.perf_counter() - started) / 60

    print(f"{WEIGHTS.name} {weights_hash(trained)}, {len(held_out)} structures held out.\n")
    print("| trained | MAE | loss x 1000 | minutes |\n|---|---|---|---|")
    for name, network in networks.items():
        found_errors = errors(predict(network, held_out.structures), held_out.spectra, process)
        print(f"| {name} | {found_errors.mae:.4f} | {1000 * found_errors.loss:.3f} | {minutes[name]:.1f} |")


if __name__ == "__main__":
    main()
