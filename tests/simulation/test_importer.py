"""The importer on files like a user's: with all their faults, and large ones in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_simulation import dataset as data
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.data.importer import find_pairs, import_pairs

Floats = NDArray[np.float32]
Command = Callable[..., Any]
Refusal = Callable[..., str]


def structures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.stack([random_structure(rng, "random_field") for _ in range(count)])[:, None]


def spectra(count: int, channels: tuple[int, ...] = (3,), seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0.01, 0.3, (count, *channels, 301)).astype(np.float32)


def write(folder: Path, k: int, raw: NDArray[Any], values: NDArray[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"binary_dataset_128_{k}.npy", raw)
    np.save(folder / f"spectra_latest_{k}.npy", values)
    return folder


def test_files_with_faults(tmp_path: Path, command: Command) -> None:
    """0/255, three channels, the wrong sign, unfinished rows, and a second file with rows that cannot be used."""
    raw, values = structures(12), spectra(12)
    unfinished = values.copy()
    unfinished[[2, 5, 6]] = 0
    folder = write(tmp_path / "raw", 1, 255 * raw, -unfinished)
    more, others = structures(5, seed=1), spectra(5, seed=1)
    more[3] = raw[0]  # known already
    more[4, 0, 0, 0] = 7
    others[1, 2, 17] = np.nan
    write(folder, 2, more, others)

    result = command("import", folder, "--out", tmp_path / "set")
    assert result.code == 0, result.err
    assert "11 of 17 rows imported" in result.out
    for line in (
        "3 dropped: unfinished",
        "1 dropped: repeats",
        "1 dropped: structure not binary",
        "1 dropped: values that",
    ):
        assert line in result.out
    assert "flipped in binary_dataset_128_1.npy" in result.out
    assert "_2.npy" not in result.out

    samples = data.load(tmp_path / "set")
    kept = [row for row in range(12) if row not in (2, 5, 6)]
    np.testing.assert_array_equal(samples.structures[:9], raw[kept, 0])
    np.testing.assert_allclose(samples.spectra[:9], values[kept][:, [0, 1, 1, 2]], atol=data.STEP)
    assert set(samples.family) == {"imported"}
    assert samples.attributes["merged_greens"] is True
    assert samples.attributes["dropped"]["unfinished, all zero"] == 3
    assert samples.harmonics.shape == (11, 0, 0)


def test_four_channels_keep_their_order(tmp_path: Path) -> None:
    values = spectra(6, (2, 2))
    folder = write(tmp_path / "raw", 1, structures(6), values)
    report = import_pairs(find_pairs(folder, Process()), tmp_path / "set", Process(), lambda rows: None)
    assert report.kept == 6
    assert not report.dropped
    assert not report.merged_greens
    np.testing.assert_allclose(data.load(tmp_path / "set").spectra, values.reshape(6, 4, 301), atol=data.STEP)


@pytest.mark.parametrize(
    ("raw", "values", "message"),
    [
        (structures(3), spectra(2), "has 3 rows but spectra_latest_1.npy has 2"),
        (structures(3)[:, :, :64], spectra(3), "expected uint8 of shape"),
        (structures(3).astype(float), spectra(3), "got float64"),
        (structures(3), spectra(3)[..., :300], "expected floats of shape"),
        (structures(3), 0 * spectra(3), "no usable rows: 3 dropped (unfinished, all zero)"),
        (structures(3)[:0], spectra(3)[:0], "no usable rows: the files are empty"),
        (np.array([{"a": 1}], dtype=object), spectra(1), "is not a .npy file of plain numbers"),
    ],
)
def test_a_refused_import_leaves_nothing(
    tmp_path: Path, refusal: Refusal, raw: NDArray[Any], values: Floats, message: str
) -> None:
    folder = write(tmp_path / "raw", 1, raw, values)
    assert message in refusal("import", folder, "--out", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_missing_files_and_an_existing_folder(tmp_path: Path, refusal: Refusal) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    assert "holds no files" in refusal("import", raw, "--out", out)
    np.save(raw / "binary_dataset_128_7.npy", structures(2))
    assert "has no partner spectra_latest_7.npy" in refusal("import", raw, "--out", out)
    write(raw, 7, structures(2), spectra(2))
    assert "exists: choose" in refusal("import", raw, "--out", raw)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    """Of half a gigabyte of files, most rows unfinished, a small part is in memory at a time."""
    (tmp_path / "raw").mkdir()
    rows = 24_576
    raw = np.lib.format.open_memmap(tmp_path / "raw" / "binary_dataset_128_1.npy", "w+", np.uint8, (rows, 1, 128, 128))
    values = np.lib.format.open_memmap(tmp_path / "raw" / "spectra_latest_1.npy", "w+", np.float32, (rows, 3, 301))
    raw[:400], values[:400] = structures(400), spectra(400)
    raw.flush()
    values.flush()
    del raw, values
    code = (
        "import json, resource, sys; from pathlib import Path; from metaspec_simulation import Process;"
        "from metaspec_simulation.data.importer import find_pairs, import_pairs;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "r = import_pairs(find_pairs(Path(sys.argv[1]), Process()), Path(sys.argv[2]), Process(), lambda rows: None);"
        "print(json.dumps([r.kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "raw"), str(tmp_path / "set")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    kept, growth = json.loads(result.stdout)
    assert kept == 400
    assert growth / 2**20 < 0.2, "GB"
