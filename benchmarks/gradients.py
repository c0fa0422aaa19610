"""Agreement of the gradients of the networks in training/checkpoints with the solver's, which are exact.

Structures of the test split of `bayer-600nm`, of all families, and designs (the router of docs/design, the first of the test
split of `designs-600nm`), each binary and grey (filtered and projected, as optimisers visit it). Gradients of the efficiencies
of red, green and blue: cosine and norm ratio of the network's to the solver's, of all pixels, by spatial frequency, at edges
and inside features; means over structures and colours. The last table compares the solver with itself on another grid: what
it leaves open. The solver's gradients are kept in OUT: the same command resumes, and another network takes no time.

python benchmarks/gradients.py --out runs/gradients [--cells 64] [--plot docs/figures/gradients.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import nn
from weights_hash import weights_hash

from metaspec_contract.files import read_array, replacing, write_json
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation.dataset import load
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.symmetric import DEFAULT_IMAGES, SymmetricNetwork
from metaspec_training.report.figures import draw_gradients
from metaspec_training.report.gradients import (
    Comparison,
    Truth,
    agreement,
    by_family,
    compare,
    document,
    gradient_solver,
    grey,
    solver_truth,
    table,
)
from metaspec_training.report.report import markdown

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "datasets"


def structures(count: int, designs: int) -> dict[str, Structure]:
    """Structures of the test split and designs, uint8 (N, 128, 128)."""
    test, optimised = (load(DATASETS / name).of("test") for name in ("bayer-600nm", "designs-600nm"))
    router = read_array(ROOT / "docs" / "design" / "router.npy")[None]
    return {
        "test": test.structures[by_family(test.family, count)],
        "design": np.concatenate([router, optimised.structures[: designs - 1]]),
    }


def networks() -> dict[str, nn.Module]:
    """The networks of the bundled models, by the names of their checkpoints."""
    field, fast = (load_network(ROOT / "training" / "checkpoints" / f"{name}.ckpt") for name in ("field", "fast"))
    return {"field": field, "fast": fast, "field, 4 images": SymmetricNetwork(field, DEFAULT_IMAGES).eval()}


def other_grid(truth: dict[str, Truth], cells: int, count: int, out: Path) -> dict[str, Comparison]:
    """The first densities of each kind on another grid, in the place of a network."""
    solver, compared = gradient_solver(Process(), cells), {}
    for kind, one in truth.items():
        first = Truth(one.densities[:count], one.spectra[:count], one.gradients[:count])
        other = solver_truth(solver, first.densities, out)
        error = np.abs(other.spectra - first.spectra).mean(axis=(1, 2))
        compared[kind] = agreement(other.gradients, first, error)
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=64, help="grid cells per period of the solver")
    parser.add_argument("--count", type=int, default=16, help="structures of the test split")
    parser.add_argument("--designs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="threads of the solver")
    parser.add_argument("--other-cells", type=int, default=80, help="grid that the solver is compared with itself on")
    parser.add_argument("--other-count", type=int, default=2, help="structures of each kind for that; 0 for none")
    parser.add_argument("--plot", type=Path, help="picture of the first network's gradients of the designs")
    arguments = parser.parse_args()
    process = Process()
    solver = gradient_solver(process, arguments.cells, arguments.threads)
    truth = {}
    for name, binary in structures(arguments.count, arguments.designs).items():
        for kind, densities in (("binary", binary), ("grey", grey(binary, process))):
            truth[f"{name}, {kind}"] = solver_truth(solver, densities, arguments.out)
    found = {}
    for name, network in networks().items():
        compared = {kind: compare(network, one, process) for kind, one in truth.items()}
        digest = weights_hash(network)
        found[name] = {"weights": digest, **{kind: document(one) for kind, one in compared.items()}}
        print(f"\n`{name}` {digest}, the solver at {arguments.cells} cells\n\n{markdown(table(compared))}")
        maes = ", ".join(f"{kind} {one.spectra_error.mean():.4f}" for kind, one in compared.items())
        print(f"MAE of the spectra: {maes}")
        if arguments.plot and name == "field":
            with replacing(arguments.plot) as partial:
                designs = {kind: one for kind, one in compared.items() if kind.startswith("design")}
                draw_gradients(designs).savefig(partial, dpi=100)
    if arguments.other_count:
        other = other_grid(truth, arguments.other_cells, arguments.other_count, arguments.out)
        found["solver"] = {"cells": arguments.other_cells, **{kind: document(one) for kind, one in other.items()}}
        print(f"\nThe solver at {arguments.other_cells} cells in the place of a network\n\n{markdown(table(other))}")
    write_json(arguments.out / "gradients.json", {"cells": arguments.cells, **found})


if __name__ == "__main__":
    main()
