"""`progress.jsonl` of a run folder: a line of JSON for each step of the run, which other processes follow.

After an interruption, lines may be missing or repeated: a run resumes from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaspec.optimise import Progress
from metaspec_contract.run_folder import PROGRESS

_LARGEST = 1 << 20  # bytes read at a time


class Line(NamedTuple):
    """A line of the file.

    Attributes:
        end: offset of the byte after it, from which reading goes on.
        text: its JSON, which is an object.
        values: the object; see `recorded`.
    """

    end: int
    text: str
    values: dict[str, Any]


def recorded(folder: Path, then: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Callback of an optimisation that adds a line to `progress.jsonl`, and calls another callback.

    A line has `time` (seconds since 1970), `step` (completed steps), `steps` (of the run), `value` and `median` of the
    objective of the densities, `best` (objective of the best binary structure so far) and `beta`; what is not finite, such as
    `beta` of binary structures, is null.

    Args:
        folder: run folder.
        then: callback to call after it.
    """
    path = folder / PROGRESS
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")  # after a line that was cut

    def note(progress: Progress) -> None:
        values = {
            "time": round(time.time(), 3),
            "step": progress.step,
            "steps": progress.steps,
            "value": _number(progress.value.max()),
            "median": _number(np.median(progress.value)),
            "best": _number(progress.best.max()),
            "beta": _number(progress.beta),
        }
        with path.open("a", encoding="utf-8") as lines_of_run:
            lines_of_run.write(json.dumps(values) + "\n")
        then(progress)

    return note


def lines(folder: Path, start: int = 0) -> Iterator[Line]:
    """Whole lines of the file from an offset on; none where there is no file. What is not a line of progress is left out.

    Args:
        folder: run folder.
        start: offset in bytes; beyond the end of the file, which another run may have replaced, it counts as 0.
    """
    try:
        file = (folder / PROGRESS).open("rb")
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, 2)
        file.seek(start if start <= size else 0)
        while (line := file.readline(_LARGEST)).endswith(b"\n"):
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield Line(file.tell(), line.decode().strip(), values)


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
