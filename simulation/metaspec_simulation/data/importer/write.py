"""The import itself: check all rows, then write the usable ones to a new data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.files import write_text
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation.data import families
from metaspec_simulation.data.importer.checks import Checked, Verdict, check_repeats, check_rows, equal_structures
from metaspec_simulation.data.importer.files import BLOCK, Pair
from metaspec_simulation.data.importer.report import MAX_DROPPED, ImportReport
from metaspec_simulation.data.labels import STEP
from metaspec_simulation.data.levels import LEVELS
from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.data.store import Group, consolidate, create_store, new_folder, whole_chunks

REPORT, PICTURE = "import.json", "import.png"
"""Files beside the arrays of an imported data set: every row that was dropped or flipped, and some samples to look at."""

SHOWN = 3
"""Number of samples in the picture, evenly spaced over the data set."""

Rows = tuple[Structure, NDArray[np.float32]]


def import_pairs(
    pairs: list[Pair],
    out: Path,
    process: Process,
    report: Callable[[int], object],
    max_dropped: float = MAX_DROPPED,
) -> ImportReport:
    """Write the usable rows of all pairs to a new data set: `check_pairs`, `ImportReport.require` and `write_pairs` in one.

    Args:
        pairs: pairs of files.
        out: folder of the new data set.
        process: process that was simulated.
        report: callback that gets the number of rows of each block, once when they are checked and once when they are written.
        max_dropped: largest share of wrong rows among the finished ones.

    Raises:
        ValueError: something lies at `out`, no row is usable, or too many are wrong.
    """
    require_free(out)
    result = check_pairs(pairs, report)
    result.require(max_dropped)
    write_pairs(result, out, process, report)
    return result


def require_free(out: Path) -> None:
    """Raise ValueError if something lies where the data set is to be made, or nothing can be made there."""
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: choose a folder that does not")
    above = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    try:
        with TemporaryDirectory(prefix=f".trying-{out.name}.", dir=above):
            pass
    except OSError as error:
        raise ValueError(f"{out} cannot be made: {error.strerror}") from None


def check_pairs(pairs: list[Pair], report: Callable[[int], object]) -> ImportReport:
    """Check all rows of all pairs, each alone and those with equal structures against each other.

    Args:
        pairs: pairs of files.
        report: callback that gets the number of rows of each block when they are checked.
    """
    blocks = []
    for pair in pairs:
        for structures, spectra in pair.blocks():
            blocks.append(check_rows(structures, spectra, pair.convention.percent))
            report(len(structures))
    result = ImportReport(pairs, Checked.join(blocks))

    def read(row: int) -> NDArray[np.float32]:
        pair, row = result.place(row)
        return pairs[pair].read_spectra(slice(row, row + 1))[0]

    result.contradictions = check_repeats(result.checked, equal_structures(result.checked), read)
    return result


@dataclass(frozen=True)
class Samples:
    """Some samples as the data set will hold them.

    Attributes:
        names: file and row of each.
        structures: structures, uint8 (n, y, x).
        spectra: spectra of R, G1, G2, B, float32 (n, 4, W).
    """

    names: list[str]
    structures: Structure
    spectra: NDArray[np.float32]


def some_samples(checked: ImportReport, count: int = SHOWN) -> Samples:
    """Usable rows, evenly spaced.

    Args:
        checked: result of `check_pairs`, with at least one usable row.
        count: number of samples, or of all that there are.
    """
    usable = np.flatnonzero(checked.checked.has(Verdict.USABLE))
    rows = sorted({int(row) for row in usable[np.linspace(0, len(usable) - 1, count).astype(int)]})
    read = [checked.pairs[pair].read(slice(row, row + 1)) for pair, row in map(checked.place, rows)]
    merged = checked.merged_greens
    four = [
        _as_four(spectra, checked.checked.flipped[[row]], merged) for row, (_, spectra) in zip(rows, read, strict=True)
    ]
    names = [f"{checked.pairs[pair].name} row {row}" for pair, row in map(checked.place, rows)]
    structures = np.concatenate([structure for structure, _ in read])
    return Samples(names, (structures != 0).astype(np.uint8), np.concatenate(four))


def write_pairs(
    checked: ImportReport,
    out: Path,
    process: Process,
    report: Callable[[int], object],
    simulated: NDArray[np.float32] | None = None,
) -> None:
    """Write the usable rows to a new data set, which appears when it is complete, with `REPORT` and `PICTURE` in it.

    Args:
        checked: result of `check_pairs`, with at least one usable row.
        out: folder of the new data set.
        process: process that was simulated.
        report: callback that gets the number of rows of each block when they are written.
        simulated: the solver's spectra of `some_samples`, which are drawn, too, (n, 4, W).
    """
    from metaspec_simulation.data.importer.picture import draw_samples  # matplotlib: slow to import

    attributes = {
        "schema_version": SCHEMA_VERSION,
        "process": process.model_dump(mode="json"),
        "solver": {"name": "imported", "files": [pair.name for pair in checked.pairs]},
        "channels": list(CHANNELS),
        "merged_greens": checked.merged_greens,
        "dropped": dict(checked.dropped),
    }
    with new_folder(out) as unfinished:
        group = create_store(unfinished, process, attributes, checked.kept, harmonics=False, shard=BLOCK)
        start = 0
        for structures, spectra in _whole_blocks(_usable_rows(checked, report)):
            _write(group, start, structures, spectra)
            start += len(structures)
        for pair in checked.pairs:
            pair.require_unchanged()
        consolidate(unfinished)
        write_text(unfinished / REPORT, checked.to_json())
        draw_samples(some_samples(checked), process, simulated).savefig(unfinished / PICTURE, dpi=110)


def _usable_rows(checked: ImportReport, report: Callable[[int], object]) -> Iterator[Rows]:
    """Usable rows as binary structures (n, y, x) and spectra of R, G1, G2, B, positive, float32 (n, 4, W)."""
    for pair, rows in checked.by_file():
        start = 0
        for structures, spectra in pair.blocks():
            block = slice(start, start + len(structures))
            usable = rows[block].has(Verdict.USABLE)
            four = _as_four(spectra[usable], rows.flipped[block][usable], checked.merged_greens)
            yield (structures[usable] != 0).astype(np.uint8), four
            start += len(structures)
            report(len(structures))


def _as_four(spectra: NDArray[np.float32], flipped: NDArray[np.bool_], merged: bool) -> NDArray[np.float32]:
    """Spectra of R, G1, G2, B, with their sign changed where it is to be."""
    four = spectra[:, [0, 1, 1, 2]] if merged else spectra
    return np.where(flipped[:, None, None], -four, four)


def _whole_blocks(rows: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows, `BLOCK` at a time, so that each chunk is written once."""
    structures, spectra = next(rows)
    for more, others in rows:
        structures, spectra = np.concatenate([structures, more]), np.concatenate([spectra, others])
        while len(structures) >= BLOCK:
            yield structures[:BLOCK], spectra[:BLOCK]
            structures, spectra = structures[BLOCK:], spectra[BLOCK:]
    if len(structures):
        yield structures, spectra


def _write(group: Group, start: int, structures: Structure, spectra: NDArray[np.float32]) -> None:
    count = len(structures)
    columns = {
        "structure": np.uint8(LEVELS) * structures,
        "spectra": np.rint(spectra / STEP).astype(np.int16),
        "family": np.full(count, families.SOURCES.index("imported"), np.uint8),
        "split": np.array([families.SPLITS.index(families.split_of(s)) for s in structures], np.uint8),
        "energy_error": np.full(count, np.nan, np.float32),  # reflection is not in the files
        "remaining": np.full(count, np.nan, np.float32),
        "duration": np.full(count, np.nan, np.float32),
        "flag": np.zeros(count, np.uint8),
        "complete": np.ones(count, np.uint8),
    }
    with whole_chunks():
        for name, values in columns.items():
            group[name][start : start + count] = values
