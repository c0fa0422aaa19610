"""What a finished run has found: the objective that ranks it, and, where the solver has checked it, the simulated one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from metaspec import objectives
from metaspec._working_folder import WorkingFolder
from metaspec_contract.conditions import stated_conditions
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.report_page import studio_link
from metaspec_contract.run_folder import VERIFY, Merit, RunReport, VerifyReport, read_report


@dataclass(frozen=True)
class Figures:
    """Figures of a finished run's best design: the best simulated one where designs were verified.

    Attributes:
        ranked_by: what the objective is of, in words: runs are ranked among those with the same.
        objective: the objective.
        verified: whether the objective is that of simulated spectra: of a verification, or of a run on the solver.
        min_efficiency: its smallest colour efficiency, if it has one; simulated if `verified`.
        cells: grid cells per period of the verification; None without one.
        rank: rank of the design in the run's report.
        layout: file of its layout, relative to the folder.
        link: link to it on the page of the server of the run, if that has one.
    """

    ranked_by: str
    objective: float
    verified: bool
    min_efficiency: float | None
    cells: int | None
    rank: int
    layout: str
    link: str | None


def figures(folder: Path) -> Figures:
    """The figures of a run folder.

    Raises:
        ValueError: its report is missing or damaged, or the design.
    """
    report = read_report(folder)
    ranked_by = report.ranked_by or f"objective {report.objective}"
    simulated = _verified(folder, report) if ranked_by == f"objective {report.objective}" else []
    if simulated:
        objective, rank, cells, merit = max(simulated, key=lambda one: one[0])
    else:
        objective, rank, cells, merit = report.designs[0].objective, 0, None, report.designs[0].predicted
    files = report.designs[rank].files
    return Figures(
        ranked_by=compared(ranked_by, report.conditions, report.designs[0].conditions or ()),
        objective=objective,
        verified=bool(simulated) or report.simulated,
        min_efficiency=merit.min_efficiency,
        cells=cells,
        rank=rank,
        layout=files.layout,
        link=studio_link(report.model_dump(mode="json"), report.designs[rank].model_dump(mode="json"), folder),
    )


def _verified(folder: Path, report: RunReport) -> list[tuple[float, int, int, Merit]]:
    """Objective, rank, grid cells and merit of each design that was simulated, on its finest grid.

    An objective of several forms of a design, or of more than spectra, has no simulated value: the list is of
    `objective NAME` alone. What cannot be read was not verified.
    """
    try:
        goal = objectives.by_name(report.objective)
        document = VerifyReport.model_validate(json.loads((folder / VERIFY).read_text(encoding="utf-8")))
        inside, found = WorkingFolder(folder), []
        for design in document.designs:
            if not 0 <= design.rank < len(report.designs) or not design.simulated:
                continue
            cells = max(map(int, design.simulated))
            merit = design.simulated[str(cells)]
            with np.load(inside.inside(merit.file or "", "file"), allow_pickle=False) as kept:
                values = goal.score(kept["spectra"][None], kept["wavelengths_nm"], CHANNELS)
            found.append((float(values[0]), design.rank, cells, merit))
    except (OSError, ValueError, KeyError, BadZipFile, ValidationError):
        return []
    return found


def compared(words: str, conditions: Mapping[str, float | Sequence[float]], free: Iterable[str] = ()) -> str:
    """What runs are ranked among, in words: with the same objective, at the same conditions, since others are other devices.

    Args:
        words: what designs of a run are ranked by.
        conditions: values of the conditions that are fixed.
        free: names of those of which each design has its own value.
    """
    at = f", at {stated_conditions(conditions)}" if conditions else ""
    return words + at + "".join(f", {name} free" for name in free)
