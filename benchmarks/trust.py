"""Rank correlation between the spread of predictions over symmetric images and the error of the prediction.

Compares the spread of `diffractionnet_symmetric` with the error against the solver, on structures like the training data (test
split, designs) and unlike it (finer features, noise, extreme fill factors). Then gradient ascent of the network with a filter,
without one, and without one but with a penalty on the spread. Prints and draws rank correlations, also those of the distance
to the training data, and the errors of the most and the least trusted tenth. Structures, predictions and simulations are stored
in OUT: the same command resumes.

python benchmarks/trust.py --out runs/trust [--cells 80] [--count 64] [--ascents 16] [--plot docs/figures/trust.png]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, spearmanr
from tqdm import tqdm
from unfamiliar import ascend, extreme_fill, fields, fine_features, noise
from weights_hash import weights_hash

from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.files import read_array, write_array
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.data.recipe import given_recipe
from metaspec_simulation.dataset import Samples, load, missing_shards, open_dataset, write_samples
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.symmetric import DEFAULT_IMAGES, GROUPS, SymmetricNetwork
from metaspec_training.report.evaluation import distance_to_training, predict_images

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "datasets"
TEST = {80: "bayer-600nm", 48: "bayer-600nm-coarse"}
TRAINED_ON = ("bayer-600nm-coarse", "designs-600nm-coarse")  # the finer data sets hold some of the same structures
LIMIT = 320  # structures of the test split

Array = NDArray[Any]

FILTERED, UNFILTERED, PENALISED = "ascent, filtered", "ascent, no filter", "ascent, no filter, penalty"


@dataclass(frozen=True)
class Family:
    """Structures of one kind, with simulated and predicted spectra.

    Attributes:
        name: name of the family.
        samples: structures and simulated spectra.
        images: predictions for the image under each element of D4, mapped back, (8, N, 4, W).
        distance: distance to the nearest training structure, (N,).
    """

    name: str
    samples: Samples
    images: Array
    distance: Array

    def mean(self, images: int) -> Array:
        """Predicted spectra, (N, 4, W)."""
        mean: Array = self.images[_members(images)].mean(axis=0)
        return mean

    def spread(self, images: int) -> Array:
        """Mean over wavelengths of the spread, (N,)."""
        deviation = self.images[_members(images)] - self.mean(images)
        spread: Array = np.sqrt((deviation**2).mean(axis=(0, 2))).mean(axis=1)
        return spread

    def error(self, images: int) -> Array:
        """Mean absolute error of each structure, (N,)."""
        error: Array = np.abs(self.mean(images) - self.samples.spectra).mean(axis=(1, 2))
        return error

    def min_efficiency(self, images: int | None) -> Array:
        """Smallest colour efficiency, (N,): predicted, or simulated for None."""
        spectra = self.samples.spectra if images is None else self.mean(images)
        smallest: Array = colour_efficiency(spectra, self.samples.process.wavelengths_nm).min(axis=1)
        return smallest


def _members(images: int) -> list[int]:
    return [GROUPS[8].index(symmetry) for symmetry in GROUPS[images]]


def kept(path: Path, make: Callable[[], Array]) -> Array:
    """An array that is computed once and then read from a file."""
    if not path.exists():
        write_array(path, make())
    return read_array(path)


def simulated(path: Path, structures: Array, cells: int) -> Samples:
    """Structures with simulated spectra, as a data set at `path`."""
    recipe = given_recipe(Process(), cells, structures)
    group = open_dataset(path, recipe, len(structures), structures)
    if missing := missing_shards(group):
        solver = Solver(Process(), cells)
        with tqdm(total=sum(stop - start for start, stop in missing), desc=path.name) as bar:
            for start, stop in missing:
                write_samples(group, recipe, solver, start, stop, bar.update)
    return load(path)


def distance(samples: Samples) -> Array:
    """Distance to the nearest training structure, (N,)."""
    nearest = np.full(len(samples), np.inf)
    for name in TRAINED_ON:
        train = load(DATASETS / name).of("train")
        for rows in np.array_split(np.arange(len(train)), 1 + len(train) // 1024):
            nearest = np.minimum(nearest, distance_to_training(train.take(rows), samples))
    return nearest


def families(arguments: argparse.Namespace) -> list[Family]:
    """All families, from OUT where they exist."""
    out, cells = arguments.out, arguments.cells
    model = hashlib.sha256(arguments.checkpoint.read_bytes()).hexdigest()[:8]
    trained = load_network(arguments.checkpoint)
    test = load(DATASETS / TEST[cells]).of("test")
    samples = {"test split": test.take(np.arange(min(LIMIT, len(test))))}
    designs = load(DATASETS / "designs-600nm-coarse").of("test").structures[: arguments.count]
    samples["designs (test split)"] = simulated(out / f"designs_{cells}", designs, cells)
    for seed, make in enumerate((fine_features, noise, extreme_fill)):
        structures = make(np.random.default_rng([0, seed]), arguments.count)
        samples[make.__name__.replace("_", " ")] = simulated(out / f"{make.__name__}_{cells}", structures, cells)
    starts = fields(np.random.default_rng([0, 9]), np.full(arguments.ascents, 12.0))
    network = SymmetricNetwork(trained, arguments.images).eval()
    print(f"Weights SHA-256: network {weights_hash(trained)}, over {arguments.images} images {weights_hash(network)}")
    settings = f"{arguments.penalty:g}_{arguments.images}"
    for name, file, options in (
        (FILTERED, "filtered", {"filtered": True}),
        (UNFILTERED, "unfiltered", {}),
        (PENALISED, f"penalised_{settings}", {"penalty": arguments.penalty}),
    ):
        file = f"{file}_{arguments.ascents}_{model}"
        structures = kept(out / f"{file}.npy", partial(ascend, network, starts, **options))
        samples[name] = simulated(out / f"{file}_{cells}", structures, cells)
    found = []
    for name, part in samples.items():
        digest = hashlib.sha256(model.encode() + part.packed.tobytes()).hexdigest()[:12]
        images = kept(out / f"predictions_{digest}.npy", partial(predict_images, trained, part.structures))
        far = kept(out / f"distance_{digest}.npy", partial(distance, part))
        found.append(Family(name, part, images, far))
    return found


def tell(found: list[Family], images: int) -> None:
    """Print the tables."""
    print(f"\nSpread over {images} images; errors are mean absolute errors of the mean over them.\n")
    print("| family | structures | error | spread | rank correlation: spread | distance to the training data |")
    print("|---|---|---|---|---|---|")
    for family in found:
        error, spread = family.error(images), family.spread(images)
        cells = [f"{error.mean():.4f}", f"{spread.mean():.4f}", _rank(spread, error), _rank(family.distance, error)]
        print(f"| {family.name} | {len(error)} | " + " | ".join(cells) + " |")
    error, spread = _all(found, lambda f: f.error(images)), _all(found, lambda f: f.spread(images))
    far = _all(found, lambda f: f.distance)
    print(
        f"| all | {len(error)} | {error.mean():.4f} | {spread.mean():.4f} | {_rank(spread, error)} | {_rank(far, error)} |"
    )
    tenth = len(error) // 10
    print("\n| judged by | error of the most trusted tenth | of the least trusted tenth |\n|---|---|---|")
    for name, measure in (("spread", spread), ("distance", far), ("the error itself", error)):
        ranked = error[measure.argsort()]
        print(f"| {name} | {ranked[:tenth].mean():.4f} | {ranked[-tenth:].mean():.4f} |")

    print(
        "\n| images | error, test split | rank correlation, test split | all | within families, mean |\n|---|---|---|---|---|"
    )
    print(f"| 1 | {np.abs(found[0].images[0] - found[0].samples.spectra).mean():.5f} | | | |")
    for count in GROUPS:
        within = [float(_rank(f.spread(count), f.error(count))) for f in found]
        everything = _rank(
            np.concatenate([f.spread(count) for f in found]), np.concatenate([f.error(count) for f in found])
        )
        test = found[0].error(count).mean()
        print(f"| {count} | {test:.5f} | {within[0]:.2f} | {everything} | {np.mean(within):.2f} |")

    print("\n| | predicted min(R, G, B) efficiency | simulated | error | spread |\n|---|---|---|---|---|")
    made = {family.name: family for family in found if family.name in (FILTERED, UNFILTERED, PENALISED)}
    for name, family in made.items():
        one = colour_efficiency(family.images[0], family.samples.process.wavelengths_nm).min(axis=1)
        numbers = one, family.min_efficiency(None), family.error(images), family.spread(images)
        print(f"| {name} | " + " | ".join(f"{number.mean():.4f}" for number in numbers) + " |")
    print(
        "\n| larger than of filtered ascents, % of all pairs | spread | spread over 8 images | distance |\n|---|---|---|---|"
    )
    measures: tuple[Callable[[Family], Array], ...] = (
        lambda f: f.spread(images),
        lambda f: f.spread(8),
        lambda f: f.distance,
    )
    for name in (UNFILTERED, PENALISED):
        shares = [_share_larger(measure(made[name]), measure(made[FILTERED])) for measure in measures]
        print(f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")


def _all(found: list[Family], measure: Callable[[Family], Array]) -> Array:
    return np.concatenate([measure(family) for family in found])


def _share_larger(these: Array, those: Array) -> float:
    """Probability that one of `these` exceeds one of `those` (ROC area)."""
    return float(mannwhitneyu(these, those).statistic / (len(these) * len(those)))


def _rank(measure: Array, error: Array) -> str:
    return f"{spearmanr(measure, error).statistic:.2f}"


def draw(found: list[Family], images: int, path: Path) -> None:
    """Error over spread; remaining error when the least trusted are rejected; overestimates of gradient ascent."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    scatter, kept_error, gap = figure.subplots(1, 3)
    for colour, family in enumerate(found):
        spread, error = family.spread(images), family.error(images)
        scatter.plot(spread, error, ".", label=family.name, color=f"C{colour}", ms=4, alpha=0.7)
    error, spread = _all(found, lambda f: f.error(images)), _all(found, lambda f: f.spread(images))
    scatter.set(xscale="log", yscale="log", xlabel=f"spread over {images} images", ylabel="mean absolute error")
    scatter.xaxis.set_minor_formatter(NullFormatter())  # labels would overlap
    scatter.set(title=f"{len(error)} structures, rank correlation {_rank(spread, error)}")
    scatter.legend(fontsize=8, loc="lower right")
    share = np.arange(len(error)) / len(error)
    measures = {
        "spread": spread,
        "distance to the training data": _all(found, lambda f: f.distance),
        "error itself": error,
    }
    for (name, measure), style in zip(measures.items(), ("-", "--", "k:"), strict=True):
        ranked = error[measure.argsort()]
        left = np.cumsum(ranked)[::-1] / np.arange(len(error), 0, -1)
        kept_error.plot(100 * share, left, style, label=name)
    kept_error.set(xlabel="% rejected, least trusted first", ylabel="mean absolute error of the others")
    kept_error.set(xlim=(0, 95), ylim=(0, None), title="remaining error when the least trusted are rejected")
    kept_error.legend(title="judged by")
    for colour, family in enumerate(found):
        if family.name in (FILTERED, UNFILTERED, PENALISED):
            over = family.min_efficiency(images) - family.min_efficiency(None)
            gap.plot(family.spread(images), over, "o", color=f"C{colour}", ms=4, label=family.name)
    gap.axhline(0, color="k", lw=0.5)
    gap.set(xlabel=f"spread over {images} images", ylabel="predicted - simulated min(R, G, B) efficiency")
    gap.set(title="overestimate after gradient ascent")
    gap.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "training" / "checkpoints" / "field.ckpt")
    parser.add_argument("--cells", type=int, choices=sorted(TEST), default=80)
    parser.add_argument("--count", type=int, default=64, help="structures of each kind outside the data sets")
    parser.add_argument("--ascents", type=int, default=16)
    parser.add_argument("--images", type=int, choices=sorted(GROUPS), default=DEFAULT_IMAGES)
    parser.add_argument("--penalty", type=float, default=10.0, help="weight of the spread in the objective")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = families(arguments)
    tell(found, arguments.images)
    draw(found, arguments.images, arguments.plot or arguments.out / "trust.png")


if __name__ == "__main__":
    main()
