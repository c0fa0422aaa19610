"""The folder of a finished optimisation: designs as NPY, GDSII and pictures, spectra, history, a report.

    result = run(problem, by_name("adam", starts=16), steps=200)
    write_designs("designs", result, surrogate, objective="bayer")

Programs read `report.json`, people open `report.html`. Every file appears at once, whole, and `report.json` is the last one:
where it is, all is. Needs gdstk, imageruler and matplotlib.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec._cli.report_page import page
from metaspec._spectra import Spectra
from metaspec._surrogate.client import Surrogate
from metaspec._transport.protocol import ModelInfo
from metaspec.figures import draw_history, draw_spectra, draw_structure
from metaspec.gds import write_gds
from metaspec.optimise import History, Problem, Result
from metaspec.topology import feature_size, without_small_features
from metaspec_contract.detectors import COLOURS
from metaspec_contract.files import replacing

SCHEMA_VERSION = 1
_DPI = 110
_SETTINGS, _REPORT = "settings.json", "report.json"


def write_designs(
    folder: str | Path,
    result: Result,
    surrogate: Surrogate,
    *,
    objective: str,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    gds_layer: tuple[int, int] = (1, 0),
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write the designs of an optimisation to a folder, best first.

    Args:
        folder: to write to; made if need be. Files of the same names are replaced.
        result: of `metaspec.optimise.run`.
        surrogate: that was asked; its server's description of the process goes into the report.
        objective: name of the objective, for people.
        settings: of the optimisation, as JSON, for the report.
        seed: of the random starts, for the report.
        gds_layer: layer and datatype of the solid in the layouts.
        advance: called after each design.

    Returns:
        What `report.json` says.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    info = surrogate.metadata()
    process = info.details.get("process") or {}
    period_um = _period_um(info)
    designs = []
    for rank, structure in enumerate(result.structure):
        solid_nm, void_nm = feature_size(structure, pixel_nm(info))
        design = {
            "rank": rank,
            "start": int(result.row[rank]),
            "step": int(result.found[rank]),
            "objective": float(result.value[rank]),
            "predicted": predicted(result.spectra[rank]),
            "solid_nm": solid_nm,
            "void_nm": void_nm,
            "files": {
                "structure": f"design_{rank:03d}.npy",
                "layout": f"design_{rank:03d}.gds",
                "picture": f"design_{rank:03d}.png",
                "spectra": f"spectra_{rank:03d}.png",
            },
        }
        _write_design(folder, design, structure, result.spectra[rank], period_um, gds_layer)
        designs.append(design)
        advance()
    _save_array(folder / "designs.npy", result.structure)
    _save_array(folder / "spectra.npy", result.spectra.values)
    _save_array(folder / "trajectory.npy", result.trajectory)
    with replacing(folder / "history.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows(_history_rows(result.history))
    with replacing(folder / "history.png") as path:
        draw_history(result.history, objective=objective).savefig(path, dpi=_DPI)
    report = {
        "schema_version": SCHEMA_VERSION,
        "url": surrogate.url,
        "model": info.name,
        "model_version": result.spectra.version,
        "objective": objective,
        "settings": dict(settings or {}),
        "process": process,
        "period_um": period_um,
        "pixel_nm": pixel_nm(info),
        "wavelengths_nm": info.wavelengths_nm.tolist(),
        "channels": list(info.channels),
        "seed": seed,
        "wall_s": result.wall_s,
        "server_calls": result.server_calls,
        "structures_evaluated": result.structures_evaluated,
        "designs": designs,
    }
    with replacing(folder / "report.html") as path:
        path.write_text(page(report, folder), encoding="utf-8")
    with replacing(folder / _REPORT) as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def mended(result: Result, problem: Problem, width_nm: float) -> Result:
    """The designs of an optimisation without features narrower than a width, predicted again, best first.

    See `metaspec.topology.without_small_features`. A design that it cannot mend stays as it is and comes last.

    Args:
        result: of `metaspec.optimise.run`.
        problem: that was solved; its objective ranks the designs, for their nominal structures alone.
        width_nm: of solid and void, at least.

    Raises:
        ValueError: the width is not above 0 and at most a quarter of the cell.
        MetaSpecError: the server cannot be asked.
    """
    structures, failed = result.structure.copy(), np.zeros(len(result.structure), bool)
    for n, structure in enumerate(result.structure):
        try:
            structures[n] = without_small_features(structure, width_nm, pixel_nm(problem.surrogate.metadata()))
        except RuntimeError:
            failed[n] = True
    spectra = problem.surrogate.predict(structures)
    value = np.asarray(problem.objective(spectra)[0], np.float64)
    order = np.lexsort((-value, failed))
    return replace(
        result,
        structure=structures[order],
        value=value[order],
        spectra=spectra[order],
        latent=result.latent[order],
        row=result.row[order],
        found=result.found[order],
        structures_evaluated=result.structures_evaluated + len(structures),
        server_calls=result.server_calls + 1,
    )


def is_finished(folder: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has the designs of an optimisation with these settings; changes nothing.

    Args:
        folder: a new one, an empty one, or one that `begin` has taken.
        settings: of the optimisation, as JSON.

    Raises:
        ValueError: the folder is of an optimisation with other settings, which are named, or of something else.
    """
    folder = Path(folder)
    kept = folder / _SETTINGS
    if not kept.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty, and not of an optimisation: take another folder")
        return False
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        names = {**settings, **found}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{kept} cannot be read: {error}") from None
    if differing := [name for name in names if found.get(name) != settings.get(name)]:
        changes = ", ".join(f"{name} {found.get(name)} (now {settings.get(name)})" for name in differing)
        raise ValueError(f"{folder} is of an optimisation with other settings: {changes}. Take another folder")
    return (folder / _REPORT).exists()


def begin(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Take a folder, made if need be, for an optimisation with these settings: `settings.json` keeps them."""
    path = Path(folder) / _SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def pixel_nm(info: ModelInfo) -> float:
    """Width of a pixel of a model's structures; that of the default process where the server does not tell."""
    return 1000 * _period_um(info) / info.pixels[1]


def _period_um(info: ModelInfo) -> float:
    return float((info.details.get("process") or {}).get("period_um", 2.0))


def predicted(spectra: Spectra) -> dict[str, Any]:
    """Figures of merit of one design as JSON: `min_efficiency`, and `colour_efficiency` and `crosstalk` of R, G, B.

    Where the model has a channel "spread", by which it tells how unsure it is, `spread` is its mean over the wavelengths.
    """

    def by_colour(numbers: NDArray[np.float32]) -> dict[str, float]:
        return dict(zip(COLOURS, numbers[0].tolist(), strict=True))

    spread = {"spread": float(spectra.channel("spread").mean())} if "spread" in spectra.channels else {}
    return {
        "min_efficiency": float(spectra.min_efficiency()[0]),
        "colour_efficiency": by_colour(spectra.colour_efficiency()),
        "crosstalk": by_colour(spectra.crosstalk()),
        **spread,
    }


def _title(design: Mapping[str, Any]) -> str:
    merit = design["predicted"]
    colours = ", ".join(f"{colour} {value:.3f}" for colour, value in merit["colour_efficiency"].items())
    widths = f"narrowest solid {design['solid_nm']:.0f} nm, void {design['void_nm']:.0f} nm"
    return f"design {design['rank']:03d}: predicted min efficiency {merit['min_efficiency']:.3f} ({colours}); {widths}"


def _write_design(
    folder: Path,
    design: Mapping[str, Any],
    structure: NDArray[np.uint8],
    spectra: Spectra,
    period_um: float,
    gds_layer: tuple[int, int],
) -> None:
    files = design["files"]
    _save_array(folder / files["structure"], structure)
    with replacing(folder / files["layout"]) as path:
        write_gds(path, structure, period_um=period_um, layer=gds_layer)
    with replacing(folder / files["picture"]) as path:
        draw_structure(structure, period_um=period_um, title=_title(design)).savefig(path, dpi=_DPI)
    with replacing(folder / files["spectra"]) as path:
        title = f"design {design['rank']:03d}, predicted by {spectra.model} version {spectra.version}"
        draw_spectra(spectra, title=title).savefig(path, dpi=_DPI)


def _save_array(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as partial:
        np.save(partial, array, allow_pickle=False)


def _history_rows(history: History) -> Iterator[list[Any]]:
    """The lines of history.csv: one for each step and start; `binary_value` is empty where it was not asked for."""
    yield ["step", "start", "beta", "value", "binary_value"]
    checks = {int(step): values for step, values in zip(history.checked, history.binary_value, strict=True)}
    for step, (beta, values) in enumerate(zip(history.beta, history.value, strict=True)):
        for start, value in enumerate(values):
            binary = repr(float(checks[step][start])) if step in checks else ""
            yield [step, start, repr(float(beta)), repr(float(value)), binary]
