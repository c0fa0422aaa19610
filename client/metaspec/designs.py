"""The run folder of a finished optimisation: designs as NPY, GDSII and figures, spectra, history, report.

    result = run(problem, by_name("adam", starts=16), steps=200)
    write_designs("designs", result, source, objective="bayer")

`report.json` is for programs (`metaspec_contract.run_folder.RunReport`), `report.html` for people. Every file appears whole or
not at all, and `report.json` last: where it exists, the folder is complete. Needs gdstk, imageruler and matplotlib.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metaspec._design.filters import conic_filter
from metaspec._source import predict_at
from metaspec._surrogate.client import Surrogate
from metaspec.conditions import FixedConditions
from metaspec.figures import draw_history, draw_spectra, draw_structure
from metaspec.layouts._rules import import_klayout, outline_rules
from metaspec.layouts._writing import solid_outlines
from metaspec.optimise import History, Problem, Result
from metaspec.topology import feature_size, robust_etas, without_small_features
from metaspec_contract.conditions import stated_conditions
from metaspec_contract.detectors import SPREAD
from metaspec_contract.files import replacing, write_array, write_json, write_text
from metaspec_contract.layout_writing import Outlines, write_outlines
from metaspec_contract.layouts import check_layer
from metaspec_contract.process import Process
from metaspec_contract.report_page import PAGE, in_words, page, stated
from metaspec_contract.run_folder import (
    BEFORE,
    DESIGNS,
    REPORT,
    SETTINGS,
    SPECTRA,
    TRAJECTORY,
    Design,
    DesignFiles,
    DesignRules,
    EdgeShift,
    LayoutRules,
    Merit,
    RunReport,
    Unpolished,
)
from metaspec_contract.source import Source
from metaspec_contract.spectra import Spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["begin", "is_finished", "mended", "predicted", "shifted_edges", "write_designs"]


def __dir__() -> list[str]:
    return __all__


_DPI = 110


def write_designs(
    folder: str | Path,
    result: Result,
    source: Source,
    *,
    objective: str,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    gds_layer: tuple[int, int] = (1, 0),
    gds_unit_nm: float | None = None,
    contour_tolerance_nm: float | None = None,
    unpolished: Sequence[Unpolished] = (),
    shifted: Sequence[Mapping[str, EdgeShift]] = (),
    ranked_by: str | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write the designs of an optimisation to a run folder, best first.

    Args:
        folder: run folder, created if necessary. Files of the same names are replaced.
        result: result of `metaspec.optimise.run`.
        source: source that it was computed by; its process, and its fixed conditions, go into the report. Conditions of
            which each design has its own value are the result's.
        objective: name of the objective, for the report.
        settings: JSON settings of the optimisation, for the report.
        seed: seed of the random starts, for the report.
        gds_layer: layer and datatype of the solid in the layouts.
        gds_unit_nm: database unit of both layouts of a design in nm; by default, as for `metaspec.layouts.write_gds`.
        contour_tolerance_nm: largest distance in nm of the smooth contours from the edges of the pixels; one pixel by default.
        unpolished: designs that the rows of the batch started from, if it polished designs.
        shifted: eroded and dilated forms of the designs, best first, from `shifted_edges`.
        ranked_by: what the values of the result are, in words, for the report; by default the objective.
        advance: callback after each design.

    Returns:
        The contents of `report.json`.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the layer is none of GDSII, or the database unit or the tolerance does not fit the process; raised before
            anything is written.
    """
    folder = Path(folder)
    info = source.metadata()
    process = info.process
    origin, conditions = (source.source, source.fixed) if isinstance(source, FixedConditions) else (source, {})
    tolerance = process.pixel_nm if contour_tolerance_nm is None else contour_tolerance_nm
    check_layer(gds_layer)
    layouts = [
        [solid_outlines(structure, process.period_um, gds_unit_nm, one) for one in (None, tolerance)]
        for structure in result.structure
    ]
    own = _own_conditions(result)
    folder.mkdir(parents=True, exist_ok=True)
    designs = []
    for rank, structure in enumerate(result.structure):
        spectra = result.spectra[rank]
        solid_nm, void_nm = feature_size(structure, process.pixel_nm)
        design = Design(
            rank=rank,
            start=int(result.row[rank]),
            step=int(result.found[rank]),
            objective=float(result.value[rank]),
            predicted=predicted(spectra),
            **(shifted[rank] if shifted else {}),
            conditions=own[rank] or None,
            solid_nm=solid_nm,
            void_nm=void_nm,
            klayout=_rules(*layouts[rank]),
            files=DesignFiles(
                structure=f"design_{rank:03d}.npy",
                layout=f"design_{rank:03d}.gds",
                contours=f"contours_{rank:03d}.gds",
                picture=f"design_{rank:03d}.png",
                spectra=f"spectra_{rank:03d}.png",
            ),
            unpolished=unpolished[int(result.row[rank])] if unpolished else None,
        )
        note = stated_conditions({**conditions, **own[rank]})
        _write_design(folder, design, structure, spectra, process, gds_layer, layouts[rank], note)
        designs.append(design)
        advance()
    write_array(folder / DESIGNS, result.structure)
    write_array(folder / SPECTRA, result.spectra.values)
    write_array(folder / TRAJECTORY, result.trajectory)
    table = io.StringIO()
    csv.writer(table).writerows(_history_rows(result.history))
    write_text(folder / "history.csv", table.getvalue())
    _save_figure(draw_history(result.history, objective=objective), folder / "history.png")
    report = RunReport(
        url=origin.url if isinstance(origin, Surrogate) else None,
        model=info.name,
        model_version=result.spectra.version,
        objective=objective,
        ranked_by=ranked_by or f"objective {objective}",
        settings=dict(settings or {}),
        conditions=conditions,
        process=process,
        period_um=process.period_um,
        pixel_nm=process.pixel_nm,
        contour_tolerance_nm=tolerance,
        wavelengths_nm=info.wavelengths_nm.tolist(),
        channels=list(info.channels),
        merged_greens=info.merged_greens,
        simulated=info.simulated,
        seed=seed,
        wall_s=result.wall_s,
        server_calls=result.server_calls,
        structures_evaluated=result.structures_evaluated,
        designs=designs,
    )
    # Figures of merit that do not apply to predictions are left out, and conditions where there are none, as before.
    document = report.model_dump(mode="json", exclude=None if conditions else {"conditions"}) | {
        "designs": [design.model_dump(mode="json", exclude_none=True) for design in designs]
    }
    write_text(folder / PAGE, page(document, folder))
    write_json(folder / REPORT, document)
    return document


def shifted_edges(problem: Problem, result: Result) -> list[dict[str, EdgeShift]]:
    """The eroded and the dilated form of each design that a robust problem ranked it by, predicted; one call of the source.

    Args:
        problem: problem that was solved.
        result: its result.

    Returns:
        For each design "eroded" and "dilated"; nothing where the problem has no `robust_delta`.

    Raises:
        MetaSpecError: the prediction failed.
    """
    if not problem.robust_delta:
        return []
    eroded, _, dilated = robust_etas(problem.robust_delta)
    latents, parameterisation = np.asarray(result.latent, np.float64), problem.parameterisation
    forms = {
        name: parameterisation.density(latents, np.inf, eta).astype(np.uint8)
        for name, eta in (("eroded", eroded), ("dilated", dilated))
    }
    for_all = {name: np.tile(values, len(forms)) for name, values in result.conditions.items()}
    spectra = predict_at(problem.source, np.concatenate(list(forms.values())), for_all)
    count, pixel_nm = len(latents), parameterisation.pixel_nm
    return [
        {
            name: EdgeShift(
                shift_nm=_mean_shift_nm(result.structure[row], form[row], pixel_nm),
                predicted=predicted(spectra[number * count + row]),
            )
            for number, (name, form) in enumerate(forms.items())
        }
        for row in range(count)
    ]


def _mean_shift_nm(before: NDArray[np.uint8], after: NDArray[np.uint8], pixel_nm: float) -> float:
    """Mean distance in nm by which the edges of a structure moved: the area gained over the length of the edges."""
    smooth = conic_filter(before.astype(np.float64), 3 * pixel_nm, pixel_nm)  # stairs are longer than the edge
    slopes = [(np.roll(smooth, -1, axis) - np.roll(smooth, 1, axis)) / 2 for axis in (0, 1)]
    length = float(np.hypot(*slopes).sum())  # total variation
    gained = float(after.sum(dtype=np.int64)) - float(before.sum(dtype=np.int64))
    return pixel_nm * gained / length if length else 0.0


def _rules(pixels: Outlines, contours: Outlines) -> LayoutRules | None:
    """What both layouts of a structure pass in KLayout; None where it is not installed."""
    try:
        import_klayout()
    except ImportError:
        return None
    passed = [DesignRules(**outline_rules(one)._asdict()) for one in (pixels, contours)]
    return LayoutRules(pixels=passed[0], contours=passed[1])


def mended(result: Result, problem: Problem, width_nm: float) -> Result:
    """The designs of an optimisation without features narrower than a width, predicted again, best first.

    See `metaspec.topology.without_small_features`. Better designs come from a run that keeps the width, with
    `Parameterisation(min_feature_nm=...)`.

    Args:
        result: result of `metaspec.optimise.run`.
        problem: problem that was solved; its objective ranks the designs, for their nominal structures only.
        width_nm: minimum width of solid and void in nm.

    Raises:
        ValueError: the width is not above 0 and at most a quarter of the cell.
        MetaSpecError: the prediction failed.
    """
    pixel_nm = problem.source.metadata().process.pixel_nm
    structures = np.stack([without_small_features(structure, width_nm, pixel_nm) for structure in result.structure])
    spectra = predict_at(problem.source, structures, result.conditions)
    again = result.judged_again(structures, problem.objective(spectra)[0], spectra)
    evaluated, calls = result.structures_evaluated + len(structures), result.server_calls + 1
    return replace(again, structures_evaluated=evaluated, server_calls=calls)


def is_finished(folder: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds the finished designs of an optimisation with these settings. Writes nothing.

    Args:
        folder: new or empty folder, or one that `begin` has marked.
        settings: JSON settings of the optimisation.

    Raises:
        ValueError: the folder belongs to an optimisation with other settings, which are named, or to something else.
    """
    folder = Path(folder)
    kept = folder / SETTINGS
    if not kept.exists():
        if folder.exists() and (not folder.is_dir() or any(file.name not in BEFORE for file in folder.iterdir())):
            raise ValueError(f"{folder} is not empty and not the folder of an optimisation: use another folder")
        return False
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        names = {**settings, **found}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{kept} cannot be read: {error}") from None
    if differing := [name for name in names if found.get(name) != settings.get(name)]:
        changes = ", ".join(
            f"{name} {stated(found.get(name))} (now {stated(settings.get(name))})" for name in differing
        )
        raise ValueError(f"{folder} belongs to an optimisation with other settings: {changes}. Use another folder")
    return (folder / REPORT).exists()


def begin(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Mark a folder, created if necessary, as that of an optimisation, by writing its settings to `settings.json`."""
    path = Path(folder) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(settings))


def predicted(spectra: Spectra) -> Merit:
    """Figures of merit of one design's spectra; `spread` only where the model has that channel."""
    spread = float(spectra.channel(SPREAD).mean()) if SPREAD in spectra.channels else None
    return Merit.of(spectra.values[0], spectra.wavelengths_nm, spectra.channels, spread=spread)


def _write_design(
    folder: Path,
    design: Design,
    structure: NDArray[np.uint8],
    spectra: Spectra,
    process: Process,
    gds_layer: tuple[int, int],
    layouts: Sequence[Outlines],
    note: str,
) -> None:
    files, name = design.files, f"design {design.rank:03d}"
    write_array(folder / files.structure, structure)
    for file, layout in zip((files.layout, files.contours), layouts, strict=True):
        assert file is not None
        with replacing(folder / file) as path:
            write_outlines(path, layout, layer=gds_layer, note=note)
    widths = f"narrowest solid {design.solid_nm:.0f} nm, void {design.void_nm:.0f} nm"
    verb = "simulated" if spectra.simulated else "predicted"
    merit = in_words(design.predicted) or f"objective {design.objective:.3f}"
    at = f", {note}" if note else ""
    title = f"{name}{at}: {verb} {merit}; {widths}"
    _save_figure(draw_structure(structure, period_um=process.period_um, title=title), folder / files.picture)
    title = f"{name}{at}, {verb} by {spectra.label}"
    _save_figure(draw_spectra(spectra, title=title), folder / files.spectra)


def _save_figure(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=_DPI)


def _own_conditions(result: Result) -> list[dict[str, float]]:
    """The values of conditions that each design has of its own, by name, in nine digits, which single precision needs."""
    return [
        {name: float(f"{values[rank]:.9g}") for name, values in result.conditions.items()}
        for rank in range(len(result.structure))
    ]


def _history_rows(history: History) -> Iterator[list[Any]]:
    """Rows of history.csv, one per step and start; `binary_value` is empty in steps without a check."""
    yield ["step", "start", "beta", "value", "binary_value", *history.conditions]
    checks = {int(step): values for step, values in zip(history.checked, history.binary_value, strict=True)}
    for step, (beta, values) in enumerate(zip(history.beta, history.value, strict=True)):
        for start, value in enumerate(values):
            binary = repr(float(checks[step][start])) if step in checks else ""
            own = [repr(float(values[step, start])) for values in history.conditions.values()]
            yield [step, start, repr(float(beta)), repr(float(value)), binary, *own]
