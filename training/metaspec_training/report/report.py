"""The report of a run: one HTML page that can be mailed, and the same numbers as JSON and Markdown."""

from __future__ import annotations

import base64
import html
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib import pyplot
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_simulation.dataset import Samples, load
from metaspec_training.fit.module import load_network
from metaspec_training.report import figures
from metaspec_training.report.evaluation import (
    Errors,
    distance_to_training,
    errors,
    mean_predictor,
    nearest_predictor,
    predict,
    predict_images,
)


def write_report(
    run: Path, data: Path | None = None, out: Path | None = None, split: str = "test", checkpoint: Path | None = None
) -> None:
    """Evaluate a run and write `report.html`, `report.json`, `report.md` and `spectra.png`.

    Args:
        run: folder of the run: it holds `config.yaml`, `checkpoints/` and the TensorBoard log.
        data: folder of the data set to evaluate on; the first that the run was trained on if left out.
        out: folder to write to; `report/` in the run's folder if left out.
        split: validation or test.
        checkpoint: which one; `checkpoints/best.ckpt` if left out.

    Raises:
        ValueError: no run there, or something in it cannot be read.
    """
    config = run / "config.yaml"
    if not config.exists():
        raise ValueError(f"{run} is not the folder of a run: it holds no config.yaml")
    settings = yaml.safe_load(config.read_text())
    if data is None:
        path = settings["data"]["path"]
        data = Path(path if isinstance(path, str) else path[0])
    network = load_network(checkpoint or run / "checkpoints" / "best.ckpt")
    samples = load(data)
    train, test = samples.of("train"), samples.of(split)
    prediction = predict(network, test.structures)
    images = predict_images(network, test.structures)

    results = {
        "network": errors(prediction, test.spectra, test.process),
        "network, mean over 8 symmetries": errors(images.mean(axis=0), test.spectra, test.process),
        "mean spectrum": errors(mean_predictor(train, test), test.spectra, test.process),
        "nearest training structure": errors(nearest_predictor(train, test), test.spectra, test.process),
    }
    each = np.abs(prediction - test.spectra).mean(axis=(1, 2))
    spread, distance = images.std(axis=0).mean(axis=(1, 2)), distance_to_training(train, test)
    correlation = {
        name: float(spearmanr(x, each).statistic) for name, x in (("spread", spread), ("distance", distance))
    }
    body = {
        "data": {"name": data.name, "solver": samples.attributes["solver"], "split": split},
        "counts": {"train": len(train), split: len(test)},
        "errors": {name: asdict(result) for name, result in results.items()},
        "mae_by_family": {str(f): float(each[test.family == f].mean()) for f in np.unique(test.family)},
        "symmetry_spread": float(spread.mean()),
        "rank_correlation_with_error": correlation,
    }
    plots = _draw(run, prediction, test, each, spread, distance, correlation)
    out = out or run / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(body, indent=2) + "\n")
    table = _table(results)
    (out / "report.md").write_text(f"{len(test)} structures of the {split} split, {len(train)} to train on.\n\n{table}")
    plots["Best, median and worst"].savefig(out / "spectra.png", dpi=110)
    (out / "report.html").write_text(_page(run.name, body, results, plots, config.read_text()))
    for figure in plots.values():
        pyplot.close(figure)
    print(table)
    print(f"The report is {out / 'report.html'}")


def _draw(
    run: Path,
    prediction: figures.Array,
    test: Samples,
    each: figures.Array,
    spread: figures.Array,
    distance: figures.Array,
    correlation: dict[str, float],
) -> dict[str, Figure]:
    wavelengths = test.process.wavelengths_nm
    merit = []
    for spectra in (prediction, test.spectra):
        colours = colour_efficiency(spectra, wavelengths)
        merit.append(np.column_stack([colours, colours.min(axis=1)]))
    return {
        "Training": figures.draw_history(run),
        "Best, median and worst": figures.draw_spectra(prediction, test),
        "Error over wavelength": figures.draw_by_wavelength(prediction, test),
        "Error by family": figures.draw_families(each, test.family),
        "Figures of merit (green: G1 + G2)": figures.draw_parity(merit[0], merit[1], [*COLOUR_NAMES.values(), "min"]),
        "Error over distance to the training set": figures.draw_scatter(
            distance, each, "distance of the Fourier moduli", correlation["distance"]
        ),
        "Error over the spread of symmetric predictions": figures.draw_scatter(
            spread, each, "standard deviation over 8 symmetric images", correlation["spread"]
        ),
    }


def _page(name: str, body: dict[str, Any], results: dict[str, Errors], plots: dict[str, Figure], config: str) -> str:
    """A self-contained page: plots are embedded as PNG."""
    counts = ", ".join(f"{count} {split}" for split, count in body["counts"].items())
    head = ["predictor", "MAE", "rms", *(f"MAE {c}" for c in CHANNELS), "colour efficiency", "peak (nm)", "R2", "loss"]
    rows = "".join(f"<tr><td>{'</td><td>'.join(cells)}</td></tr>" for cells in map(_cells, results.items()))
    sections = "".join(f"<h2>{html.escape(title)}</h2><img src='{_png(figure)}'>" for title, figure in plots.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>MetaSpec: {html.escape(name)}</title>
<style>body{{font:15px/1.5 system-ui;max-width:1000px;margin:2em auto;padding:0 1em}}img{{max-width:100%}}
td,th{{padding:.2em .7em;text-align:right}}td:first-child{{text-align:left}}pre{{background:#f4f4f4;padding:1em}}</style>
<h1>{html.escape(name)}</h1><p>Data set {html.escape(body["data"]["name"])} ({counts} structures of it),
split {html.escape(body["data"]["split"])} by orbit: no translation, rotation or mirror image of one of its structures was
trained on. Errors are of efficiencies, which lie between 0 and 1.</p>
<table><tr><th>{"</th><th>".join(head)}</th></tr>{rows}</table>
<p>Predictions of one structure by way of the 8 symmetries of the square differ by {body["symmetry_spread"]:.4f}
(standard deviation; 0 would be exact).</p>{sections}<h2>Settings</h2><pre>{html.escape(config)}</pre></html>
"""


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cells(named: tuple[str, Errors]) -> list[str]:
    name, result = named
    detectors = [f"{value:.4f}" for value in result.mae_by_detector.values()]
    numbers = [f"{result.mae:.4f}", f"{result.rms:.4f}", *detectors, f"{result.colour_efficiency:.4f}"]
    return [name, *numbers, f"{result.peak_nm:.1f}", f"{result.r2:.3f}", f"{result.loss:.2e}"]


def _table(results: dict[str, Errors]) -> str:
    head = ["predictor", "MAE", "rms", *(f"MAE {c}" for c in CHANNELS), "colour eff.", "peak nm", "R2", "loss"]
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(_cells(named)) for named in results.items())]
    return "".join(f"| {line} |\n" for line in lines).replace("| ---", "|---").replace("--- |", "---|")
