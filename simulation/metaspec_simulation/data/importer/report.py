"""What an import found, in words and as JSON: rows that were dropped or flipped, by reason and file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS, COLOURS
from metaspec_simulation.data.importer.checks import MEANING, UNFINISHED, WRONG, Checked, Verdict
from metaspec_simulation.data.importer.files import Pair

MAX_DROPPED = 0.01
"""Default of the largest share of finished rows that may be wrong: more than a rare accident of a simulation campaign."""

_SHOWN = 6  # row numbers of a file in words

_HINTS = {
    Verdict.PERCENT: "--percent converts them",
    Verdict.FRACTIONS: "leave --percent out",
    Verdict.MIXED_SIGN: "give all power monitors the same direction",
    Verdict.OUT_OF_RANGE: "spectra are power in the detector / incident power",
    Verdict.TOO_MUCH_ENERGY: "spectra are power in the detector / power incident on the cell",
    Verdict.CONTRADICTION: "rows of structures and spectra may be out of step",
}
_SUM_OF_GREENS = "of three channels, G is the mean of G1 and G2, not their sum"


@dataclass
class ImportReport:
    """The result of checking all rows of raw files.

    Attributes:
        pairs: the files.
        checked: verdicts on all rows, file by file.
        contradictions: groups of rows with equal structures and different spectra.
    """

    pairs: list[Pair]
    checked: Checked
    contradictions: list[NDArray[np.intp]] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Number of usable rows."""
        return int(self.checked.has(Verdict.USABLE).sum())

    @property
    def merged_greens(self) -> bool:
        """Whether only the mean of G1 and G2 is known."""
        return self.pairs[0].channels == len(COLOURS)

    @property
    def order(self) -> tuple[str, ...]:
        """Detectors in the order of the files' channels."""
        return self.pairs[0].convention.order or (COLOURS if self.merged_greens else CHANNELS)

    @property
    def dropped(self) -> Counter[str]:
        """Number of rows that are dropped, by reason."""
        counts = np.bincount(self.checked.verdict, minlength=len(Verdict))
        return Counter({words: int(counts[verdict]) for verdict, words in MEANING.items() if counts[verdict]})

    @property
    def wrong_share(self) -> float:
        """Share of the finished rows that are wrong."""
        finished = len(self.checked.verdict) - int(self.checked.has(*UNFINISHED).sum())
        return int(self.checked.has(*WRONG).sum()) / max(1, finished)

    def by_file(self) -> list[tuple[Pair, Checked]]:
        """Each file with the verdicts on its rows."""
        stops = np.cumsum([pair.rows for pair in self.pairs])
        return [(pair, self.checked[stop - pair.rows : stop]) for pair, stop in zip(self.pairs, stops, strict=True)]

    def place(self, row: int) -> tuple[int, int]:
        """Number of the pair of files, and row in it, of a row counted through all files."""
        stops = np.cumsum([pair.rows for pair in self.pairs])
        pair = int(np.searchsorted(stops, row, side="right"))
        return pair, row - int(stops[pair]) + self.pairs[pair].rows

    def name(self, row: int) -> tuple[str, int]:
        """File of structures, and row in it, of a row counted through all files."""
        pair, row = self.place(row)
        return self.pairs[pair].name, row

    def require(self, max_dropped: float) -> None:
        """Refuse an import of files that are not to be trusted.

        Args:
            max_dropped: largest share of wrong rows among the finished ones.

        Raises:
            ValueError: no row is usable, or more rows are wrong.
        """
        if self.wrong_share > max_dropped:
            worst = max(WRONG, key=lambda verdict: int(self.checked.has(verdict).sum()))
            wrong, finished = int(self.checked.has(*WRONG).sum()), int((~self.checked.has(*UNFINISHED)).sum())
            summed = worst == Verdict.TOO_MUCH_ENERGY and self.merged_greens
            hint = _SUM_OF_GREENS if summed else _HINTS.get(worst, "")
            raise ValueError(
                f"{wrong} of {finished} finished rows are wrong, most often: {MEANING[worst]}{hint and f' ({hint})'}. "
                f"Nothing was imported, for --max-dropped is {max_dropped:g}"
            )
        if not self.kept:
            reasons = ", ".join(f"{count} dropped ({reason})" for reason, count in self.dropped.most_common())
            raise ValueError(f"no usable rows: {reasons or 'the files are empty'}")

    def __str__(self) -> str:
        lines = [f"{self.kept} of {len(self.checked.verdict)} rows are usable. Rows of a file are counted from 0."]
        for verdict, words in MEANING.items():
            if (rows := self.checked.has(verdict)).any():
                lines.append(f"  {int(rows.sum())} dropped: {words}")
                lines += self._rows_in_words(rows)
        flipped = self.checked.flipped & self.checked.has(Verdict.USABLE)
        if flipped.any():
            lines.append(f"  {int(flipped.sum())} kept with their sign flipped: negative throughout")
            lines += self._rows_in_words(flipped)
        for group in self.contradictions[:_SHOWN]:
            names = [" row ".join(map(str, self.name(int(row)))) for row in group[:_SHOWN]]
            lines.append(
                f"  equal structures, other spectra: {', '.join(names)}{', ...' if len(group) > _SHOWN else ''}"
            )
        if len(self.contradictions) > _SHOWN:
            lines.append(f"  ... and {len(self.contradictions) - _SHOWN} more groups of them")
        if self.merged_greens:
            lines.append("  3 channels: G1 and G2 are both set to G, their mean")
        return "\n".join(lines)

    def _rows_in_words(self, chosen: NDArray[np.bool_]) -> list[str]:
        """A line for each file that has chosen rows, with the first of their numbers."""
        lines, start = [], 0
        for pair in self.pairs:
            rows = np.flatnonzero(chosen[start : start + pair.rows])
            start += pair.rows
            if rows.size:
                shown = ", ".join(map(str, rows[:_SHOWN]))
                lines.append(
                    f"      {pair.name}: {len(rows)} of {pair.rows}, rows {shown}{', ...' * (len(rows) > _SHOWN)}"
                )
        return lines

    def to_json(self) -> str:
        """All row numbers, counted from 0, as a JSON document with one line for each file."""
        convention = self.pairs[0].convention
        head: dict[str, Any] = {
            "rows": len(self.checked.verdict),
            "kept": self.kept,
            "dropped": self.dropped,
            "merged_greens": self.merged_greens,
            "order": self.order,
            "axes": convention.axes,
            "percent": convention.percent,
        }
        body: dict[str, list[Any]] = {
            "contradictions": [[self.name(int(row)) for row in group] for group in self.contradictions],
            "files": [_file(pair, checked) for pair, checked in self.by_file()],
        }
        lines = [f'  "{key}": {json.dumps(value)}' for key, value in head.items()]
        for key, values in body.items():
            items = ",\n".join(f"    {json.dumps(value)}" for value in values)
            lines.append(f'  "{key}": [\n{items}\n  ]' if values else f'  "{key}": []')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _file(pair: Pair, checked: Checked) -> dict[str, Any]:
    rows = {words: np.flatnonzero(checked.has(verdict)).tolist() for verdict, words in MEANING.items()}
    return {
        "structures": pair.name,
        "spectra": pair.spectra.name,
        "rows": pair.rows,
        "flipped": np.flatnonzero(checked.flipped & checked.has(Verdict.USABLE)).tolist(),
        "dropped": {words: numbers for words, numbers in rows.items() if numbers},
    }
