"""Terminal output of the command: tables, and the live display of an optimisation. Needs rich."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from metaspec._source import predict_at
from metaspec.optimise import Problem, Progress
from metaspec_contract.conditions import stated_conditions
from metaspec_contract.detectors import COLOUR_NAMES, COLOURS
from metaspec_contract.report_page import in_words, number, own_conditions, polished_from, ranked_by, shifts
from metaspec_contract.run_folder import Merit
from metaspec_contract.spectra import MERGED_GREENS, Spectra

_SHOWN = 10
_ROOMY = 9  # columns of a table
_LINES = 20  # lines of progress that a run prints without a terminal


def efficiencies(spectra: Spectra, efficiency: NDArray[np.float32]) -> Table:
    """Table of colour efficiencies; of many structures, the best ones.

    Args:
        spectra: spectra of the structures; their wavelengths reach the band of at least one colour.
        efficiency: their efficiency of the colours that the wavelengths reach, (N, colours).
    """
    smallest = efficiency.min(axis=1)
    many = len(efficiency) > _SHOWN
    shown = np.argsort(-smallest, kind="stable")[:_SHOWN] if many else np.arange(len(efficiency))
    title = f"Colour efficiencies, {spectra.label}"
    captions = [f"the {_SHOWN} best of {len(efficiency)} structures"] if many else []
    captions += [MERGED_GREENS] if spectra.merged_greens else []
    colours = {**COLOUR_NAMES, "G": "green (G1 + G2)"}
    table = _table(
        title, ["structure", *(colours[colour] for colour in spectra.colours), "smallest"], "; ".join(captions) or None
    )
    for n in shown:
        table.add_row(str(n), *(f"{value:.3f}" for value in efficiency[n]), f"{smallest[n]:.3f}")
    return table


def designs(report: Mapping[str, Any]) -> Table:
    """Table of the designs of a report, best first, with the value that they are ranked by."""
    found = report["designs"]
    polished, robust = any("unpolished" in one for one in found), any(shifts(one) for one in found)
    checked = any(one.get("klayout") for one in found)
    verb = "simulated" if report["simulated"] else "predicted"
    title = f"Ranked by {ranked_by(report)}; efficiencies {verb}, widths in nm"
    captions = [f"the {_SHOWN} best of {len(found)} designs"] if len(found) > _SHOWN else []
    origin = ["from", "run", "start"] if polished else [] if robust else ["start"]
    headings = ["design", *origin, "objective", *COLOUR_NAMES.values()]
    headings += ["end" if polished else "min", *own_conditions(report)]
    if robust:
        headings += ["eroded", "dilated"]
        captions.append(f"eroded, dilated: min efficiency with edges moved by {_shifts_of_all(found)} nm")
    headings += ["solid", "void"]
    captions.append("solid, void: narrowest features in whole pixels (imageruler)")
    if checked:
        headings += ["KLayout"]
        captions.append("KLayout: Euclidian width, space that the contours pass")
    table = _table(title, headings, "\n".join(captions))
    for design in found[:_SHOWN]:
        merit = design["predicted"]
        cells = [f"{design['rank']:03d}", *(polished_from(design) or [str(design["start"])][: len(origin)])]
        cells += [f"[bold]{design['objective']:.4f}[/]"]
        cells += [number(merit["colour_efficiency"].get(colour)) for colour in COLOURS]
        cells += [number(merit.get("min_efficiency"))]
        cells += [f"{value:.4g}" for value in (design.get("conditions") or {}).values()]
        if robust:
            cells += [number(one["predicted"].get("min_efficiency")) for one in shifts(design).values()]
        cells += [f"{design['solid_nm']:.0f}", f"{design['void_nm']:.0f}"]
        if checked:
            rules = design["klayout"]["contours"]
            cells += [f"{rules['width_nm']}, {rules['space_nm']}"]
        table.add_row(*cells)
    return table


def _shifts_of_all(designs: list[Mapping[str, Any]]) -> str:
    """Shifts of the edges of the eroded and the dilated forms in nm, from the smallest to the largest of the designs."""
    forms = [shifts(design) for design in designs]
    ranges = []
    for name in forms[0]:
        moved = sorted((form[name]["shift_nm"] for form in forms), key=abs)
        ends = (f"{moved[0]:+.0f}", f"{moved[-1]:+.0f}")
        ranges.append(" to ".join(dict.fromkeys(ends)))
    return ", ".join(ranges)


def _table(title: str, headings: list[str], caption: str | None) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    if len(headings) > _ROOMY:  # so that 80 characters hold them
        table.padding, table.pad_edge, table.show_edge = (0, 0), False, False
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


class _Handler(logging.Handler):
    """Passes messages on to a function."""

    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a message on."""
        self._show(record.getMessage())


@contextmanager
def notices(show: Callable[[str], object]) -> Iterator[None]:
    """In a `with` statement: a function gets what a surrogate logs, such as that it waits for its server."""
    log, handler = logging.getLogger("metaspec"), _Handler(show)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class RunDisplay:
    """Progress of an optimisation: a live display in a terminal, about twenty lines elsewhere.

    Use it in a `with` statement, as the callback of `metaspec.optimise.run`.

    Args:
        console: console to print to.
        problem: problem that is being solved.
        steps: total number of steps.

    Attributes:
        step: number of the last completed step, 0 before the first.
    """

    def __init__(self, console: Console, problem: Problem, steps: int) -> None:
        self.step = 0
        self._progress: Progress | None = None
        self._best, self._merit = -np.inf, ""
        self._console, self._problem, self._steps = console, problem, steps
        self._verb = "simulated" if problem.source.metadata().simulated else "predicted"
        self._began, self._first = time.monotonic(), 0
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(None),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Bar(*columns, console=console, auto_refresh=False, expand=True)
        self._task = self._bar.add_task("", total=steps, left="")
        self._notice, self._notices = "", notices(self._tell)
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)

    def where(self) -> str:
        """How far the run has come, in words; "" before its first step is complete."""
        return f" after step {self.step} of {self._steps}" if self.step else ""

    def _tell(self, notice: str) -> None:
        self._notice = notice
        if not self._console.is_terminal:
            self._console.print(notice, soft_wrap=True)

    def __enter__(self) -> Self:
        self._notices.__enter__()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._notices.__exit__(None, None, None)

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        if self._progress is None:
            self._first = progress.step - 1
        best = int(progress.best.argmax())
        if progress.best[best] != self._best:
            self._best = progress.best[best]
            at = {name: float(values[best]) for name, values in progress.conditions.items()}
            self._merit = self._merit_of(progress.structure[best], at)
        self._progress, self.step, self._notice = progress, progress.step, ""
        self._bar.update(self._task, completed=progress.step, left=f"{self._left()} left")
        every = max(1, self._steps // _LINES)
        if not self._console.is_terminal and (progress.step % every == 0 or progress.step == self._steps):
            self._console.print(self._line(progress), soft_wrap=True)

    def _merit_of(self, structure: NDArray[np.uint8], conditions: Mapping[str, float]) -> str:
        """The smallest colour efficiency, whatever the objective is; the objective where no colour has an efficiency."""
        spectra = predict_at(self._problem.source, structure, conditions)
        merit = in_words(Merit.of(spectra.values[0], spectra.wavelengths_nm, spectra.channels)) or f"{self._best:.4f}"
        return f"{merit} at {stated_conditions(conditions)}" if conditions else merit

    def _line(self, progress: Progress) -> str:
        return (
            f"step {progress.step}/{progress.steps}: objective best {progress.value.max():.4f}, median "
            f"{np.median(progress.value):.4f}; best binary design {self._merit}; "
            f"{self._rate():.1f} structures/s, {self._left()} left"
        )

    def _picture(self) -> RenderableType:
        if self._progress is None:
            return Group(self._bar, self._notice)
        table = Table(box=None, padding=(0, 3, 0, 0))
        for heading in ("objective", "best", "median"):
            table.add_column(heading, justify="right")
        for name, values in (("densities", self._progress.value), ("binary designs", self._progress.best)):
            table.add_row(name, f"[bold]{values.max():.4f}[/]", f"{np.median(values):.4f}")
        rate = f"beta {self._progress.beta:.3g}, {self._rate():.1f} structures/s"
        return Group(self._bar, table, f"Best binary design: {self._merit}, {self._verb}", self._notice or rate)

    def _rate(self) -> float:
        return self._problem.structures_evaluated / (time.monotonic() - self._began)

    def _left(self) -> str:
        assert self._progress is not None
        done = self._progress.step - self._first
        seconds = round((time.monotonic() - self._began) / done * (self._steps - self._progress.step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
