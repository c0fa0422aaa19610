"""How far a run has come, as its `progress.jsonl` says: the last step, and a curve with few points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaspec._run_progress import lines

_POINTS = 64  # of a curve, which a small picture shows


class Curve:
    """The progress of a run, read on from where it was read before.

    Args:
        folder: run folder.

    Attributes:
        last: the last line; empty before the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.last: dict[str, Any] = {}
        self._folder, self._end = folder, 0
        self._steps: list[dict[str, Any]] = []

    def update(self) -> None:
        """Read what has been added. A run that was resumed repeats steps: the last values of a step count."""
        for line in lines(self._folder, self._end):
            self._end, self.last = line.end, line.values
            while self._steps and self._steps[-1]["step"] >= line.values["step"]:
                self._steps.pop()
            self._steps.append(line.values)

    def points(self) -> list[tuple[int, float | None, float | None]]:
        """Step, objective of the densities, and objective of the best binary structure so far, the last step among them."""
        stride = -(-len(self._steps) // _POINTS) or 1
        chosen = self._steps[::-1][::stride][::-1]
        return [(one["step"], one.get("value"), one.get("best")) for one in chosen]
