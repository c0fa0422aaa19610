"""The report of a run: one self-contained HTML page, and the same numbers as JSON and Markdown."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from metaspec_contract import files
from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES, COLOURS
from metaspec_contract.figures_of_merit import colour_efficiency, covered_colours
from metaspec_contract.provenance import Provenance
from metaspec_contract.structures import unpack
from metaspec_simulation import Solver
from metaspec_simulation.dataset import Samples, load, provenance
from metaspec_training.fit.checkpoint import read_checkpoint
from metaspec_training.networks.symmetric import D4
from metaspec_training.report import figures
from metaspec_training.report.evaluation import (
    GREENS_TOGETHER,
    Errors,
    distance_to_training,
    errors,
    mean_spectrum,
    nearest_predictor,
    predict,
    predict_images,
    uselessness,
    with_merged_greens,
)
from metaspec_training.report.gradients import (
    GREY_BETA,
    GREY_RADIUS_NM,
    Comparison,
    by_family,
    compare,
    document,
    efficiencies,
    gradient_solver,
    grey,
    solver_truth,
    table,
)

_HEAD = ["predictor", "MAE", "rms", *(f"MAE {c}" for c in CHANNELS), "colour eff.", "peak nm", "R2", "loss"]
_LIMIT, _NEIGHBOURS = 2000, 20_000  # a minute or two for the bundled networks on two cores; some seconds
_NO_GRADIENTS = "Gradients are not compared with the solver's: --gradients 8 does that, in some minutes the first time."


@dataclass(frozen=True)
class _Files:
    """What a report is made of, and where it goes.

    Attributes:
        checkpoint: checkpoint to evaluate.
        data: data set to evaluate on.
        out: folder of the report.
        settings: settings of the run, as YAML; None for a checkpoint without a run.
    """

    checkpoint: Path
    data: Path
    out: Path
    settings: str | None


def write_report(
    run: Path,
    data: Path | None = None,
    out: Path | None = None,
    split: Literal["validation", "test"] = "test",
    checkpoint: Path | None = None,
    gradients: int = 0,
    gradient_cells: int = 64,
    gradient_cache: Path | None = None,
    limit: int = _LIMIT,
    neighbours: int = _NEIGHBOURS,
    batch_size: int = 32,
    device: str = "cpu",
) -> None:
    """Evaluate a run and write `report.html`, `report.json`, `report.md` and `spectra.png`.

    The gradient of the network is compared with the solver's on request only, because that takes minutes. The solver's
    gradients are kept, so that the next report, of any network, has them at once.

    Args:
        run: folder of the run, which holds `config.yaml`, `checkpoints/` and, for the curves, the TensorBoard log; or a
            checkpoint without a run, such as a converted one, which needs `data`.
        data: folder of the data set to evaluate on; default: the first that the run was trained on.
        out: folder to write to; default: `report/` in the run's folder, `NAME-report/` beside a checkpoint NAME.ckpt.
        split: split to evaluate on.
        checkpoint: checkpoint to evaluate; default: `checkpoints/best.ckpt` in the run's folder.
        gradients: number of structures, of all families in turn, to compare gradients for; 0 for none.
        gradient_cells: grid cells per period of the solver for these.
        gradient_cache: folder of the solver's gradients; default: `gradients/` beside the data set.
        limit: largest number of structures of the split to evaluate, drawn at random if it has more.
        neighbours: largest number of training structures in which the nearest ones are looked for, drawn likewise.
        batch_size: structures that the network predicts at a time.
        device: device on which it predicts, as torch names it: cpu, cuda.

    Raises:
        ValueError: there is no run, something in it cannot be read, no data set is named, the data are of another process
            than the checkpoint, or a number is out of range.
    """
    if gradients < 0:
        raise ValueError(f"gradients must not be negative, got {gradients}")
    for option, value, least in (("limit", limit, 2), ("neighbours", neighbours, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{option} must be at least {least}, got {value}")
    _require_device(device)
    found = _find(run, data, out, checkpoint)
    trained, samples = read_checkpoint(found.checkpoint), load(found.data)
    name = found.data.resolve().name
    evaluated = provenance({name: samples})
    if trained.provenance is not None and (difference := trained.provenance.process.difference(evaluated.process)):
        raise ValueError(f"{found.checkpoint} and {found.data} are of different processes: {difference}")
    counts = {name: int((samples.split == name).sum()) for name in ("train", split)}
    if not all(counts.values()):
        raise ValueError(
            f"{found.data} must have structures in the splits train and {split}, got {counts['train']} and {counts[split]}"
        )
    solver = gradient_solver(samples.process, gradient_cells) if gradients else None
    if solver is not None:
        efficiencies(samples.process)  # refuses wavelengths outside all bands
    solver_name, mean = samples.attributes["solver"], mean_spectrum(samples, "train")
    numbers = samples.rows(split, limit)
    train, test = samples.of("train", neighbours), samples.take(numbers)
    del samples  # large sets are not held while the network predicts
    prediction = predict(trained.network, test.structures, batch_size, device)
    known = trained.provenance or evaluated
    symmetries = GREENS_TOGETHER if known.merged_greens else D4
    images = predict_images(trained.network, test.structures, batch_size, device, symmetries)
    trained.network.to("cpu")
    merged = evaluated.merged_greens or known.merged_greens
    if merged:  # each of G1 and G2 alone is unknown, on one side or the other
        prediction, images, mean = map(with_merged_greens, (prediction, images, mean))
        train, test = (replace(part, spectra=with_merged_greens(part.spectra)) for part in (train, test))

    results = {
        "network": errors(prediction, test.spectra, test.process),
        f"network, mean over {len(images)} symmetries": errors(images.mean(axis=0), test.spectra, test.process),
        "mean spectrum": errors(np.broadcast_to(mean, test.spectra.shape).copy(), test.spectra, test.process),
        "nearest training structure": errors(nearest_predictor(train, test), test.spectra, test.process),
    }
    warning = uselessness(results["network"].mae, results["mean spectrum"].mae)
    each = np.abs(prediction - test.spectra).mean(axis=(1, 2))
    spread, distance = images.std(axis=0).mean(axis=(1, 2)), distance_to_training(train, test)
    correlation = {
        name: float(spearmanr(x, each).statistic) for name, x in (("spread", spread), ("distance", distance))
    }
    body = {
        "data": {"name": name, "solver": solver_name, "split": split},
        "counts": counts,
        "evaluated": len(test),
        "neighbours": len(train),
        "provenance": trained.provenance and trained.provenance.model_dump(mode="json"),
        "merged_greens": merged,
        "useless": warning is not None,
        "errors": {name: asdict(result) for name, result in results.items()},
        "mae_by_family": {str(f): float(each[test.family == f].mean()) for f in np.unique(test.family)},
        "symmetries": len(images),
        "symmetry_spread": float(spread.mean()),
        "rank_correlation_with_error": {
            name: value if np.isfinite(value) else None for name, value in correlation.items()
        },
    }
    history = None if found.settings is None else figures.draw_history(run)
    plots = {} if history is None else {"Training": history}
    plots |= _draw(prediction, test, numbers, each, spread, distance, correlation)
    told, gradient_rows = _NO_GRADIENTS, []
    if solver is not None:
        cache = gradient_cache or found.data.resolve().parent / "gradients"
        compared = _compare_gradients(trained.network, test, solver, gradients, cache, merged)
        body["gradients"] = {"cells": gradient_cells} | {kind: document(one) for kind, one in compared.items()}
        plots["Gradients"] = figures.draw_gradients(compared, numbers[by_family(test.family, gradients)])
        told, gradient_rows = _tell_gradients(compared, gradient_cells), table(compared)
    out = found.out
    out.mkdir(parents=True, exist_ok=True)
    described = _describe(trained.provenance, merged)
    rows = [_HEAD, *map(_cells, results.items())]
    files.write_json(out / "report.json", body)
    counted = _count(counts, split, len(test), len(train))
    parts = [counted, described, markdown(rows), told, *([markdown(gradient_rows)] if gradient_rows else [])]
    if warning is not None:
        parts.insert(0, f"**{warning}**")
    files.write_text(out / "report.md", "\n\n".join(part.rstrip("\n") for part in parts) + "\n")
    with files.replacing(out / "spectra.png") as partial:
        plots["Best, median and worst"].savefig(partial, dpi=110)
    tables = _html(rows), f"<p>{html.escape(told)}</p>" + (_html(gradient_rows) if gradient_rows else "")
    page = _page(run.name, body, warning, counted, described, tables, plots, found.settings)
    files.write_text(out / "report.html", page)
    print("\n".join(part for part in parts if part != described))
    print(f"The report is {out / 'report.html'}")


def _find(run: Path, data: Path | None, out: Path | None, checkpoint: Path | None) -> _Files:
    """The files of a run, or of a checkpoint without one; arguments are those of `write_report`."""
    if run.is_file():
        if checkpoint is not None:
            raise ValueError(f"{run} is a checkpoint: give the folder of a run, or leave out --checkpoint")
        if data is None:
            raise ValueError(f"{run} is a checkpoint without a run: give --data, the data set to evaluate it on")
        return _Files(run, data, out or run.with_name(f"{run.stem}-report"), settings=None)
    config = run / "config.yaml"
    if not config.exists():
        raise ValueError(f"{run} is not the folder of a run: it holds no config.yaml")
    settings = config.read_text()
    if data is None:
        path = yaml.safe_load(settings)["data"]["path"]
        data = Path(path if isinstance(path, str) else path[0])
    return _Files(checkpoint or run / "checkpoints" / "best.ckpt", data, out or run / "report", settings)


def _require_device(device: str) -> None:
    """Raise ValueError unless torch can compute on a device."""
    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}") from None


def _count(counts: dict[str, int], split: str, evaluated: int, neighbours: int) -> str:
    """How many structures the numbers are of, in a sentence."""

    def of(some: int, all_: int) -> str:
        return str(all_) if some == all_ else f"{some} of {all_}"

    return (
        f"{of(evaluated, counts[split])} structures of the {split} split, nearest ones looked for in "
        f"{of(neighbours, counts['train'])} of the train split."
    )


def _compare_gradients(
    network: nn.Module, test: Samples, solver: Solver, count: int, cache: Path, merged_greens: bool
) -> dict[str, Comparison]:
    """The network's gradients for structures of the split, and for the same ones grey, beside the solver's."""
    binary = unpack(test.packed[by_family(test.family, count)])
    densities: dict[str, NDArray[Any]] = {"binary": binary, "grey": grey(binary, test.process)}
    return {
        kind: compare(network, solver_truth(solver, density, cache), test.process, merged_greens)
        for kind, density in densities.items()
    }


def _tell_gradients(compared: dict[str, Comparison], cells: int) -> str:
    """What the table of gradients holds, in a paragraph."""
    maes = " and ".join(f"{one.spectra_error.mean():.4f} ({kind})" for kind, one in compared.items())
    binary = compared["binary"]
    return (
        f"Gradients of the efficiencies of {_listed(binary.truth.colours)}, compared with the solver's at {cells} cells for "
        f"{len(binary.spectra_error)} structures of the split, and for the same ones grey (conic filter of "
        f"{GREY_RADIUS_NM:g} nm, tanh projection with beta {GREY_BETA:g}). Cosine and norm ratio of an exact gradient "
        f"are 1. The MAE of the spectra of these structures is {maes}."
    )


def _draw(
    prediction: figures.Array,
    test: Samples,
    numbers: NDArray[np.integer],
    each: figures.Array,
    spread: figures.Array,
    distance: figures.Array,
    correlation: dict[str, float],
) -> dict[str, Figure]:
    plots = {
        "Best, median and worst": figures.draw_spectra(prediction, test, numbers),
        "Error over wavelength": figures.draw_by_wavelength(prediction, test),
        "Error by family": figures.draw_families(each, test.family),
        "Error over distance to the training set": figures.draw_scatter(
            distance, each, "distance of the Fourier moduli", correlation["distance"]
        ),
        "Error over the spread of symmetric predictions": figures.draw_scatter(
            spread, each, "standard deviation over the symmetric images", correlation["spread"]
        ),
    }
    wavelengths = test.process.wavelengths_nm
    if covered := covered_colours(wavelengths):
        names, merit = [COLOUR_NAMES[colour] for colour in covered], []
        for spectra in (prediction, test.spectra):
            colours = colour_efficiency(spectra, wavelengths, colours=covered)
            merit.append(np.column_stack([colours, colours.min(axis=1)]) if covered == COLOURS else colours)
        names += ["min"] if covered == COLOURS else []
        plots["Figures of merit (green: G1 + G2)"] = figures.draw_parity(merit[0], merit[1], names)
    return plots


def _listed(colours: tuple[str, ...]) -> str:
    """Names of colours in words: "red, green and blue"."""
    *first, last = (COLOUR_NAMES[colour] for colour in colours)
    return f"{', '.join(first)} and {last}" if first else last


def _describe(known: Provenance | None, merged: bool) -> str:
    """What the network was trained on, in a paragraph."""
    if known is None:
        text = "The checkpoint does not say what it was trained on."
    else:
        process = known.process
        used = [f"{source.structures} structures of {source.name}" for source in known.data if source.structures]
        text = (
            f"Trained on {', '.join(used) or 'unknown data'}. Process: {process.solid.name} on {process.substrate.name}, "
            f"period {process.period_um:g} um, thickness {process.thickness_um:g} um, detectors at "
            f"{process.distance_um:g} um, {process.wavelength_min_nm:g} to {process.wavelength_max_nm:g} nm in steps of "
            f"{process.wavelength_step_nm:g} nm."
        )
    return text + (" Only the mean of G1 and G2 is known: both channels hold it here." if merged else "")


def _page(
    name: str,
    body: dict[str, Any],
    warning: str | None,
    counted: str,
    described: str,
    tables: tuple[str, str],
    plots: dict[str, Figure],
    settings: str | None,
) -> str:
    """A self-contained page: the tables of errors and of gradients; plots are embedded as PNG."""
    sections = "".join(f"<h2>{html.escape(title)}</h2><img src='{_png(figure)}'>" for title, figure in plots.items())
    warned = "" if warning is None else f"<p class='warning'>{html.escape(warning)}</p>"
    if settings is not None:
        sections += f"<h2>Settings</h2><pre>{html.escape(settings)}</pre>"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>MetaSpec: {html.escape(name)}</title>
<style>body{{font:15px/1.5 system-ui;max-width:1000px;margin:2em auto;padding:0 1em}}img{{max-width:100%}}
td,th{{padding:.2em .7em;text-align:right}}td:first-child{{text-align:left}}pre{{background:#f4f4f4;padding:1em}}
.warning{{background:#fde8e4;padding:.6em 1em;font-weight:bold}}</style>
<h1>{html.escape(name)}</h1>{warned}<p>{html.escape(described)}</p><p>Evaluated on data set {html.escape(body["data"]["name"])}:
{html.escape(counted)} Split by orbit: no translation, rotation or mirror image of one of
its structures is in the train split. Errors are those of efficiencies, which lie between 0 and 1.</p>
{tables[0]}
<p>Predictions from {body["symmetries"]} symmetric images of a structure differ by {body["symmetry_spread"]:.4f}
(standard deviation; 0 would be exact).</p>{tables[1]}{sections}</html>
"""


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cells(named: tuple[str, Errors]) -> list[str]:
    name, result = named
    detectors = [f"{value:.4f}" for value in result.mae_by_detector.values()]
    colours = "" if result.colour_efficiency is None else f"{result.colour_efficiency:.4f}"
    numbers = [f"{result.mae:.4f}", f"{result.rms:.4f}", *detectors, colours]
    return [name, *numbers, f"{result.peak_nm:.1f}", f"{result.r2:.3f}", f"{result.loss:.2e}"]


def _html(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *others = ([html.escape(cell) for cell in row] for row in rows)
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in others)
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{body}</table>"


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *others = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * len(rows[0]) + "|\n" + "".join(others)
