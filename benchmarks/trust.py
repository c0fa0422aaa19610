"""Does the spread of predictions over symmetric images tell good predictions from bad ones?

The spread that `diffractionnet_symmetric` gives against the true error, by the solver, on structures that the network should
know (test split, designs) and on those it should not (finer features, noise, extreme fill factors). Then what an optimiser
makes of the network: gradient ascent with a filter, without one, and without one but with a penalty on the spread. Prints rank
correlations, also of the distance to the training data, and the errors of the most and the least trusted tenth; draws them.
Structures, predictions and what the solver says are kept in OUT: a run that was stopped goes on.

python benchmarks/trust.py --out runs/trust [--cells 80] [--count 64] [--ascents 16] [--plot docs/figures/trust.png]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import mannwhitneyu, spearmanr
from tqdm import tqdm
from unfamiliar import ascend, extreme_fill, fields, fine_features, noise

from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.data.recipe import given_recipe
from metaspec_simulation.dataset import Samples, load, missing_shards, open_dataset, write_samples
from metaspec_training.fit.module import load_network
from metaspec_training.networks.symmetric import DEFAULT_IMAGES, GROUPS, SymmetricNetwork
from metaspec_training.report.evaluation import distance_to_training, predict_images

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "datasets"
TEST = {80: "bayer-600nm", 48: "bayer-600nm-coarse"}
TRAINED_ON = ("bayer-600nm-coarse", "designs-600nm-coarse")  # the finer data sets hold some of the same structures
LIMIT = 320  # structures of the test split

FILTERED, UNFILTERED, PENALISED = "ascent, filtered", "ascent, no filter", "ascent, no filter, penalty"


@dataclass(frozen=True)
class Family:
    """Structures of one kind, what the solver says of them, and what the network does.

    Attributes:
        name: of the family.
        samples: structures and simulated spectra.
        images: predictions by way of each element of D4, mapped back, (8, N, 4, W).
        distance: to the nearest training structure, (N,).
    """

    name: str
    samples: Samples
    images: np.ndarray
    distance: np.ndarray

    def mean(self, images: int) -> np.ndarray:
        """Predicted spectra, (N, 4, W)."""
        return self.images[_members(images)].mean(axis=0)

    def spread(self, images: int) -> np.ndarray:
        """Mean over wavelengths of the spread, (N,)."""
        deviation = self.images[_members(images)] - self.mean(images)
        return np.sqrt((deviation**2).mean(axis=(0, 2))).mean(axis=1)

    def error(self, images: int) -> np.ndarray:
        """Mean absolute error of each structure, (N,)."""
        return np.abs(self.mean(images) - self.samples.spectra).mean(axis=(1, 2))

    def min_efficiency(self, images: int | None) -> np.ndarray:
        """Smallest colour efficiency, (N,): predicted, or simulated for None."""
        spectra = self.samples.spectra if images is None else self.mean(images)
        return colour_efficiency(spectra, self.samples.process.wavelengths_nm).min(axis=1)


def _members(images: int) -> list[int]:
    return [GROUPS[8].index(symmetry) for symmetry in GROUPS[images]]


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made once."""
    if not path.exists():
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, make())
        unfinished.rename(path)
    return np.load(path)


def simulated(path: Path, structures: np.ndarray, cells: int) -> Samples:
    """Structures with what the solver says of them, as a data set at `path`."""
    recipe = given_recipe(Process(), cells, structures)
    group = open_dataset(path, recipe, len(structures), structures)
    if missing := missing_shards(group):
        solver = Solver(Process(), cells)
        with tqdm(total=sum(stop - start for start, stop in missing), desc=path.name) as bar:
            for start, stop in missing:
                write_samples(group, recipe, solver, start, stop, bar.update)
    return load(path)


def distance(samples: Samples) -> np.ndarray:
    """To the nearest structure that the network was trained on, (N,)."""
    nearest = np.full(len(samples), np.inf)
    for name in TRAINED_ON:
        train = load(DATASETS / name).of("train")
        for rows in np.array_split(np.arange(len(train)), 1 + len(train) // 1024):
            nearest = np.minimum(nearest, distance_to_training(train.take(rows), samples))
    return nearest


def families(arguments: argparse.Namespace) -> list[Family]:
    """All structures, from OUT where they are there already."""
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
    network = SymmetricNetwork(trained, arguments.images)
    settings = f"{arguments.penalty:g}_{arguments.images}"
    for name, file, options in (
        (FILTERED, "filtered", {"filtered": True}),
        (UNFILTERED, "unfiltered", {}),
        (PENALISED, f"penalised_{settings}", {"penalty": arguments.penalty}),
    ):
        file = f"{file}_{arguments.ascents}_{model}"
        structures = kept(out / f"{file}.npy", lambda options=options: ascend(network, starts, **options))
        samples[name] = simulated(out / f"{file}_{cells}", structures, cells)
    found = []
    for name, part in samples.items():
        digest = hashlib.sha256(model.encode() + part.packed.tobytes()).hexdigest()[:12]
        images = kept(out / f"predictions_{digest}.npy", lambda part=part: predict_images(trained, part.structures))
        far = kept(out / f"distance_{digest}.npy", lambda part=part: distance(part))
        found.append(Family(name, part, images, far))
    return found


def tell(found: list[Family], images: int) -> None:
    """Print what there is to know."""
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
        everything = _rank(_all(found, lambda f, n=count: f.spread(n)), _all(found, lambda f, n=count: f.error(n)))
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
    measures = (lambda f: f.spread(images)), (lambda f: f.spread(8)), (lambda f: f.distance)
    for name in (UNFILTERED, PENALISED):
        shares = [_share_larger(measure(made[name]), measure(made[FILTERED])) for measure in measures]
        print(f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")


def _all(found: list[Family], measure: Callable[[Family], np.ndarray]) -> np.ndarray:
    return np.concatenate([measure(family) for family in found])


def _share_larger(these: np.ndarray, those: np.ndarray) -> float:
    """Share of all pairs in which one of these is larger than one of those."""
    return float(mannwhitneyu(these, those).statistic / (len(these) * len(those)))


def _rank(measure: np.ndarray, error: np.ndarray) -> str:
    return f"{spearmanr(measure, error).statistic:.2f}"


def draw(found: list[Family], images: int, path: Path) -> None:
    """Error over spread; the error that is left when the least trusted are rejected; what ascents promise and hold."""
    figure, (scatter, kept_error, gap) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for colour, family in enumerate(found):
        style = {"color": f"C{colour}", "ms": 4, "alpha": 0.7}
        scatter.plot(family.spread(images), family.error(images), ".", label=family.name, **style)
    error, spread = _all(found, lambda f: f.error(images)), _all(found, lambda f: f.spread(images))
    scatter.set(xscale="log", yscale="log", xlabel=f"spread over {images} images", ylabel="mean absolute error")
    scatter.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
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
    kept_error.set(xlim=(0, 95), ylim=(0, None), title="what is left when the least trusted are rejected")
    kept_error.legend(title="judged by")
    for colour, family in enumerate(found):
        if family.name in (FILTERED, UNFILTERED, PENALISED):
            over = family.min_efficiency(images) - family.min_efficiency(None)
            gap.plot(family.spread(images), over, "o", color=f"C{colour}", ms=4, label=family.name)
    gap.axhline(0, color="k", lw=0.5)
    gap.set(xlabel=f"spread over {images} images", ylabel="predicted - simulated min(R, G, B) efficiency")
    gap.set(title="what gradient ascent promises too much")
    gap.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "training" / "checkpoints" / "field.ckpt")
    parser.add_argument("--cells", type=int, choices=sorted(TEST), default=80)
    parser.add_argument("--count", type=int, default=64, help="structures of each kind that is not in the data sets")
    parser.add_argument("--ascents", type=int, default=16)
    parser.add_argument("--images", type=int, choices=sorted(GROUPS), default=DEFAULT_IMAGES)
    parser.add_argument("--penalty", type=float, default=10.0, help="of the spread, in units of efficiency")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = families(arguments)
    tell(found, arguments.images)
    draw(found, arguments.images, arguments.plot or arguments.out / "trust.png")


if __name__ == "__main__":
    main()
