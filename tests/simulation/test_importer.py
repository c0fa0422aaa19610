"""The importer on files like a user's: with all their faults, in other conventions, and large ones in little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation import dataset as data
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.data.importer import check_pairs, find_pairs, import_pairs, require_orientation, write_pairs

Floats = NDArray[np.float32]
Command = Callable[..., Any]
Refusal = Callable[..., str]


def structures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.stack([random_structure(rng, "random_field") for _ in range(count)])[:, None]


def spectra(count: int, channels: tuple[int, ...] = (4,), seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0.01, 0.2, (count, *channels, 301)).astype(np.float32)


def write(folder: Path, k: int, raw: NDArray[Any], values: NDArray[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"binary_dataset_128_{k}.npy", raw)
    np.save(folder / f"spectra_latest_{k}.npy", values)
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def imported(command: Command, tmp_path: Path) -> Callable[..., tuple[data.Samples, dict[str, Any], str]]:
    """Import tmp_path/raw: the samples, the report in the data set, and what the command printed."""

    def run(*options: object) -> tuple[data.Samples, dict[str, Any], str]:
        out = tmp_path / "set"
        result = command("import", tmp_path / "raw", "--out", out, "--process", "default", *options)
        assert result.code == 0, result.err
        return data.load(out), json.loads((out / "import.json").read_text()), result.out

    return run


def test_files_with_faults(tmp_path: Path, imported: Command) -> None:
    """0/255, three channels, the wrong sign, unfinished rows, and a second file with rows that cannot be used."""
    raw, values = structures(12), spectra(12, (3,))
    unfinished = values.copy()
    unfinished[[2, 5]] = 0
    unfinished[6] = np.nan
    unfinished[7, 1] = 0
    unfinished[8, :, 290:] = 0
    write(tmp_path / "raw", 1, 255 * raw, -unfinished)
    more, others = structures(5, seed=1), spectra(5, (3,), seed=1)
    more[3], others[3] = raw[0], values[0] + 0.001  # known already
    more[4, 0, 0, 0] = 7
    others[1, 2, 17] = np.nan
    write(tmp_path / "raw", 2, more, others)

    samples, report, out = imported("--max-dropped", 0.2)
    assert "9 of 17 rows are usable" in out
    assert "3 dropped: unfinished, all zero\n      binary_dataset_128_1.npy: 3 of 12, rows 2, 5, 6\n" in out
    assert (
        "7 kept with their sign flipped: negative throughout\n      binary_dataset_128_1.npy: 7 of 12, rows 0, " in out
    )
    first, second = report["files"]
    assert first["dropped"] == {
        "unfinished, all zero": [2, 5, 6],
        "unfinished, a detector without values": [7],
        "unfinished, wavelengths without values": [8],
    }
    kept = [0, 1, 3, 4, 9, 10, 11]
    assert first["flipped"] == kept
    assert second == {
        "structures": "binary_dataset_128_2.npy",
        "spectra": "spectra_latest_2.npy",
        "rows": 5,
        "flipped": [],
        "dropped": {
            "values that are not finite": [1],
            "structure not binary": [4],
            "repeats an earlier structure": [3],
        },
    }
    np.testing.assert_array_equal(samples.structures, [*raw[kept, 0], *more[[0, 2], 0]])
    expected = np.concatenate([values[kept], others[[0, 2]]])[:, [0, 1, 1, 2]]
    np.testing.assert_allclose(samples.spectra, expected, atol=data.STEP)
    assert set(samples.family) == {"imported"}
    assert samples.attributes["merged_greens"] is report["merged_greens"] is True
    assert samples.attributes["dropped"] == report["dropped"]
    assert samples.harmonics.shape == (9, 0, 0)


def test_what_is_beside_the_arrays(tmp_path: Path, imported: Command, command: Command) -> None:
    """The picture is one, readers of the data set take no notice of it, and the report is written where it is asked for."""
    write(tmp_path / "raw", 1, structures(5), spectra(5))
    _, report, out = imported("--report", tmp_path / "rows.json")
    assert report == json.loads((tmp_path / "rows.json").read_text())
    picture = tmp_path / "set" / "import.png"
    assert str(picture) in out.splitlines()[-1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (
        "5 of 5 samples" in command("check", "--checksums", _checksums(command, tmp_path / "set"), tmp_path / "set").out
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert xarray.open_zarr(tmp_path / "set").sizes["sample"] == 5


def _checksums(command: Command, folder: Path) -> Path:
    file = folder.with_name("checksums")
    file.write_text(command("check", folder).out)
    return file


def test_wrong_rows_are_dropped_or_refuse_the_import(tmp_path: Path, command: Command, imported: Command) -> None:
    raw, values = structures(18), spectra(18)
    values[1] *= 100
    values[3, 0, 100] = 1.2
    values[5, 2] *= -1  # one power monitor
    values[7, 1, 7] = -0.06
    values[9, :, 40] = 0.27
    values[11, 0, :2] = np.inf, -np.inf
    raw[13, 0, 5, 5] = 2
    folder = write(tmp_path / "raw", 1, raw, values)
    refused = command("import", folder, "--out", tmp_path / "set", "--process", "default", "--max-dropped", 0.38)
    assert refused.code == 2
    assert "2 dropped: both signs in one row\n      binary_dataset_128_1.npy: 2 of 18, rows 5, 7\n" in refused.out
    line = refused.err.splitlines()[-1]
    assert line.startswith(
        "metaspec-simulate: 7 of 18 finished rows are wrong, most often: both signs in one row (give "
    )
    assert left(tmp_path) == ["raw"]
    samples, report, _ = imported("--max-dropped", 0.39)
    assert report["files"][0]["dropped"] == {
        "values that are not finite": [11],
        "structure not binary": [13],
        "percent, not fractions": [1],
        "both signs in one row": [5, 7],
        "efficiency above 1.05": [3],
        "efficiencies of the four detectors add up to more than 1.05": [9],
    }
    kept = [row for row in range(18) if row not in (1, 3, 5, 7, 9, 11, 13)]
    np.testing.assert_array_equal(samples.structures, raw[kept, 0])
    np.testing.assert_allclose(samples.spectra, values[kept], atol=data.STEP)


def test_what_a_solver_may_err_by_is_kept(tmp_path: Path, imported: Command) -> None:
    values = spectra(3)
    values[0, 1, 7] = -0.04
    values[1, :, 9] = 0.26  # adds up to 1.04
    values[2, :, 5] = [1.03, 0, 0, 0.001]
    write(tmp_path / "raw", 1, structures(3), values)
    np.testing.assert_allclose(imported()[0].spectra, values, atol=data.STEP)


def test_percent(tmp_path: Path, refusal: Refusal, imported: Command) -> None:
    """Percent are converted where the user says so, and only what is percent."""
    raw, values = structures(6), spectra(6)
    folder = write(tmp_path / "raw", 1, raw, 100 * values)
    message = refusal("import", folder, "--out", tmp_path / "set", "--process", "default")
    assert "6 of 6 finished rows are wrong, most often: percent, not fractions (--percent converts them)" in message
    np.testing.assert_allclose(imported("--percent")[0].spectra, values, atol=data.STEP)
    folder = write(tmp_path / "fractions", 1, raw, values)
    message = refusal("import", folder, "--out", tmp_path / "other", "--process", "default", "--percent")
    assert "most often: fractions, not percent (leave --percent out)" in message


def test_the_sign_is_decided_for_each_row(tmp_path: Path, imported: Command) -> None:
    raw, values = structures(12), spectra(12)
    signs = np.ones((12, 1, 1), np.float32)
    signs[[1, 4, 5, 9]] = -1
    write(tmp_path / "raw", 1, raw, signs * values)
    samples, report, _ = imported()
    assert report["files"][0]["flipped"] == [1, 4, 5, 9]
    np.testing.assert_allclose(samples.spectra, values, atol=data.STEP)


def test_equal_structures(tmp_path: Path, imported: Command, refusal: Refusal) -> None:
    """Of those with the same spectra the first is kept; of those with other spectra none, wherever they are."""
    raw, values = structures(10), spectra(10)
    more, others = structures(6, seed=1), spectra(6, seed=1)
    more[1], others[1] = raw[4], values[4]
    more[2] = raw[7]  # other spectra
    raw[9], values[9] = raw[0], -values[0]
    folder = write(tmp_path / "raw", 1, raw, values)
    write(folder, 2, 255 * more, others)
    message = refusal("import", folder, "--out", tmp_path / "set", "--process", "default")
    assert "2 of 16 finished rows are wrong, most often: equal structures, other spectra" in message
    samples, report, out = imported("--max-dropped", 0.5)
    assert report["contradictions"] == [[["binary_dataset_128_1.npy", 7], ["binary_dataset_128_2.npy", 2]]]
    assert "other spectra: binary_dataset_128_1.npy row 7, binary_dataset_128_2.npy row 2" in out
    assert [one["dropped"] for one in report["files"]] == [
        {"equal structures, other spectra": [7], "repeats an earlier structure": [9]},
        {"equal structures, other spectra": [2], "repeats an earlier structure": [1]},
    ]
    assert len(samples) == 12


def test_unfinished_and_repeated_rows_are_no_reason_to_refuse(tmp_path: Path, imported: Command) -> None:
    """Half of a campaign's rows may be zero; the share of wrong rows is that among the finished ones."""
    raw, values = structures(12), spectra(12)
    values[3:9] = 0
    raw[11], values[11] = raw[10], values[10]
    values[0, 0, 0] = 3
    write(tmp_path / "raw", 1, raw, values)
    samples, report, _ = imported("--max-dropped", "0.1667")  # one of six
    assert (len(samples), report["kept"]) == (4, 4)


@pytest.mark.parametrize("layout", [(4,), (2, 2)])
def test_four_channels_keep_their_order(tmp_path: Path, layout: tuple[int, ...]) -> None:
    values = spectra(6, layout)
    folder = write(tmp_path / "raw", 1, structures(6), values)
    report = import_pairs(find_pairs(folder, Process()), tmp_path / "set", Process(), lambda rows: None)
    assert (report.kept, report.dropped, report.merged_greens) == (6, {}, False)
    np.testing.assert_allclose(data.load(tmp_path / "set").spectra, values.reshape(6, 4, 301), atol=data.STEP)


def test_three_channels_in_another_order(tmp_path: Path, imported: Command, refusal: Refusal) -> None:
    values = spectra(4, (3,))
    folder = write(tmp_path / "raw", 1, structures(4), values)
    options = ("import", folder, "--out", tmp_path / "set", "--process", "default", "--order")
    assert "--order names 4 channels, R,G1,G2,B, but the files have 3" in refusal(*options, "R,G1,G2,B")
    assert "--order must name each of R,G1,G2,B once, or each of R,G,B, got 'R,R,B'" in refusal(*options, "R,R,B")
    samples, report, _ = imported("--order", "B,R,G")
    np.testing.assert_allclose(samples.spectra, values[:, [1, 2, 2, 0]], atol=data.STEP)
    assert report["order"] == ["B", "R", "G"]


def test_the_sum_of_the_greens_is_not_their_mean(tmp_path: Path, refusal: Refusal) -> None:
    values = np.tile(np.array([0.2, 0.5, 0.2], np.float32)[:, None], (4, 1, 301))
    folder = write(tmp_path / "raw", 1, structures(4), values)
    message = refusal("import", folder, "--out", tmp_path / "set", "--process", "default")
    assert "add up to more than 1.05 (of three channels, G is the mean of G1 and G2, not their sum)" in message


@pytest.fixture(scope="module")
def simulated(coarsest: Solver) -> tuple[Structure, Floats]:
    """Two structures without any symmetry, and their spectra."""
    rng = np.random.default_rng(3)
    drawn = np.stack([random_structure(rng, family) for family in ("random_field", "rectangles")])
    return drawn, np.stack([coarsest.simulate(one).spectra for one in drawn]).astype(np.float32)


@pytest.mark.parametrize(
    "options", [(), ("--axes", "xy"), ("--order", "R,G2,G1,B"), ("--axes", "xy", "--order", "B,R,G2,G1")]
)
def test_other_conventions(
    options: tuple[str, ...], simulated: tuple[Structure, Floats], tmp_path: Path, imported: Command
) -> None:
    """Simulated samples, written as others would, are imported as they were, and the solver agrees."""
    settings = dict(zip(options[::2], options[1::2], strict=True))
    ours, values = simulated
    place = {"R": (0, 0), "G1": (0, 1), "G2": (1, 0), "B": (1, 1)}  # half of y, half of x
    order = settings.get("--order", "R,G1,G2,B").split(",")
    block = values.reshape(-1, 2, 2, 301)
    theirs = np.stack([block[:, y, x] for y, x in (place[name] for name in order)], axis=1)
    raw = np.einsum("nyx->nxy", ours) if "--axes" in settings else ours
    write(tmp_path / "raw", 1, raw[:, None], theirs)
    samples, _, _ = imported(*options)
    np.testing.assert_array_equal(samples.structures, ours)
    np.testing.assert_allclose(samples.spectra, values, atol=data.STEP)
    assert np.abs(values[:, 1] - values[:, 2]).max(axis=1).min() > 0.02, "mistaking G1 and G2 would be seen"


@pytest.mark.slow
def test_samples_are_compared_with_the_solver(
    simulated: tuple[Structure, Floats], tmp_path: Path, refusal: Refusal, imported: Command
) -> None:
    """A wrong order of the detectors or orientation is refused, with the order that is right; so are void and solid swapped."""
    ours, values = simulated
    theirs = values[:, (3, 0, 2, 1)]
    write(tmp_path / "raw", 1, ours[:, None], theirs)
    options: tuple[object, ...] = ("import", tmp_path / "raw", "--out", tmp_path / "set", "--process", "default")
    options = (*options, "--compare", 24)
    assert "in the order --order B,R,G2,G1 by 0.000 only: give that, or other --axes" in refusal(*options)
    _, _, out = imported("--compare", 24, "--order", "B,R,G2,G1")
    assert "The solver's spectra of 2 samples differ by 0.0000 (rms)." in out
    (tmp_path / "set").rename(tmp_path / "earlier")
    options = (*options, "--order", "B,R,G2,G1")
    write(tmp_path / "raw", 1, ours[:, None, ::-1], theirs)  # mirrored: R and G2, G1 and B change places
    assert "in the order --order G1,G2,R,B by 0.000 only" in refusal(*options)
    write(tmp_path / "raw", 1, 1 - ours[:, None], theirs)
    assert "in no order of the detectors are the samples' spectra near the solver's" in refusal(*options)
    assert left(tmp_path) == ["earlier", "raw"]


def test_three_channels_are_compared_with_the_solver(simulated: tuple[Structure, Floats]) -> None:
    """Of spectra whose greens are their mean, R and B are told apart; G1 and G2 are not."""
    values = simulated[1]
    merged = values.copy()
    merged[:, 1:3] = values[:, 1:3].mean(axis=1, keepdims=True)
    assert require_orientation(merged, values[:, [0, 2, 1, 3]], ("R", "G", "B"), merged_greens=True) < 1e-6
    with pytest.raises(ValueError, match=r"in the order --order B,G,R by 0\.000 only"):
        require_orientation(merged[:, ::-1], values, ("R", "G", "B"), merged_greens=True)


@pytest.mark.parametrize(
    ("raw", "values", "message"),
    [
        (structures(3), spectra(2), "has 3 rows but spectra_latest_1.npy has 2"),
        (structures(3)[:, :, :64], spectra(3), "expected uint8 of shape"),
        (structures(3).astype(float), spectra(3), "got float64"),
        (structures(3), spectra(3)[..., :300], "for the process has 301 wavelengths from 400 to 700 nm, got float32"),
        (structures(3), 0 * spectra(3), "no usable rows: 3 dropped (unfinished, all zero)"),
        (structures(3)[:0], spectra(3)[:0], "no usable rows: the files are empty"),
        (np.array([{"a": 1}], dtype=object), spectra(1), "is not a .npy file of plain numbers"),
    ],
)
def test_a_refused_import_leaves_nothing(
    tmp_path: Path, refusal: Refusal, raw: NDArray[Any], values: Floats, message: str
) -> None:
    folder = write(tmp_path / "raw", 1, raw, values)
    assert message in refusal("import", folder, "--out", tmp_path / "set", "--process", "default")
    assert left(tmp_path) == ["raw"]


def test_missing_and_misnamed_files(tmp_path: Path, refusal: Refusal) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    options = ("import", raw, "--process", "default", "--out")
    raw.mkdir()
    assert "holds no files" in refusal(*options, out)
    np.save(raw / "binary_dataset_128_7.npy", structures(2))
    assert "has no partner spectra_latest_7.npy" in refusal(*options, out)
    write(raw, 7, structures(2), spectra(2))
    assert "exists: choose" in refusal(*options, raw)
    np.save(raw / "spectra_latest_8.npy", spectra(2))
    assert "spectra_latest_8.npy has no partner binary_dataset_128_8.npy" in refusal(*options, out)
    (raw / "spectra_latest_8.npy").rename(raw / "spectra_latest_7 (copy).npy")
    assert "spectra_latest_7 (copy).npy is named neither" in refusal(*options, out)
    (raw / "spectra_latest_7 (copy).npy").rename(raw / "binary_dataset_64_8.npy")
    assert "binary_dataset_64_8.npy is of structures of 64 pixels, but the process has 128" in refusal(*options, out)
    (raw / "binary_dataset_64_8.npy").unlink()
    assert f"{raw / 'spectra_latest_7.npy' / 'set'} cannot be made: Not a directory" in refusal(
        *options, raw / "spectra_latest_7.npy" / "set"
    )
    (tmp_path / "link").symlink_to("nowhere")
    assert "link exists: choose" in refusal(*options, tmp_path / "link")
    (tmp_path / "link").unlink()
    os.mkfifo(raw / "spectra_latest_8.npy")  # to open it would be to wait for its writer
    assert "spectra_latest_8.npy is no regular file" in refusal(*options, out)
    (raw / "spectra_latest_8.npy").unlink()
    np.save(raw / "spectra_latest_9.npy", spectra(2, (3,)))
    np.save(raw / "binary_dataset_128_9.npy", structures(2))
    assert "spectra_latest_9.npy has 3 channels and spectra_latest_7.npy has 4" in refusal(*options, out)
    assert left(tmp_path) == ["raw"]


def test_a_report_replaces_reports_only(tmp_path: Path, refusal: Refusal, command: Command) -> None:
    folder = write(tmp_path / "raw", 1, structures(3), spectra(3))
    options = ("import", folder, "--process", "default", "--out", tmp_path / "set", "--report")
    mine = folder / "spectra_latest_1.npy"
    before = mine.read_bytes()
    assert "exists and is no report of an import" in refusal(*options, mine)
    assert mine.read_bytes() == before
    assert "lies in --out" in refusal(*options, tmp_path / "set")
    assert "lies in --out" in refusal(*options, tmp_path / "set" / "rows.json")
    assert left(tmp_path) == ["raw"]
    for out in ("set", "again"):
        assert command(*options[:-2], tmp_path / out, "--report", tmp_path / "rows.json").code == 0


def test_a_file_that_changes_during_the_import(tmp_path: Path) -> None:
    folder = write(tmp_path / "raw", 1, structures(3), spectra(3))
    checked = check_pairs(find_pairs(folder, Process()), lambda rows: None)
    np.save(folder / "spectra_latest_1.npy", 100 * spectra(3))
    with pytest.raises(ValueError, match=r"spectra_latest_1.npy has changed during the import"):
        write_pairs(checked, tmp_path / "set", Process(), lambda rows: None)
    assert left(tmp_path) == ["raw"]


def test_the_process_is_stated(tmp_path: Path, refusal: Refusal, command: Command) -> None:
    folder = write(tmp_path / "raw", 1, structures(2)[:, :, ::2, ::2], spectra(2)[..., ::2])
    (folder / "binary_dataset_128_1.npy").rename(folder / "binary_dataset_64_1.npy")
    options = ("import", folder, "--out", tmp_path / "set")
    message = refusal(*options)
    assert (
        "give --process FILE, the process that was simulated, or --process default if it was: Si3N4 0.6 um" in message
    )
    assert "there is no file nowhere.json" in refusal(*options, "--process", "nowhere.json")
    process = Process(period_um=1.6, wavelength_min_nm=700, wavelength_max_nm=1000, wavelength_step_nm=2, pixels=64)
    file = tmp_path / "process.json"
    file.write_text(process.model_dump_json())
    result = command(*options, "--process", file)
    assert result.code == 0, result.err
    assert "against the default: period_um 1.6 against 2.0, " in result.out
    samples = data.load(tmp_path / "set")
    assert samples.process == process
    assert samples.structures.shape == (2, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_import_leaves_nothing(
    tmp_path: Path, start_command: Command, number: signal.Signals, status: int
) -> None:
    rows = 8192
    shifts = np.random.default_rng(0).permutation(128 * 128)[:rows]
    base = structures(1)[0, 0]
    raw = np.stack([np.roll(base, divmod(int(shift), 128), axis=(0, 1)) for shift in shifts])
    folder = write(tmp_path / "raw", 1, raw, np.tile(spectra(1), (rows, 1, 1)))
    running = start_command("import", folder, "--out", tmp_path / "set", "--process", "default")
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob(".set.*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode == status
    assert left(tmp_path) == ["raw"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    """Of half a gigabyte of files, most rows unfinished, a small part is in memory at a time."""
    (tmp_path / "raw").mkdir()
    rows = 24_576
    raw = np.lib.format.open_memmap(tmp_path / "raw" / "binary_dataset_128_1.npy", "w+", np.uint8, (rows, 1, 128, 128))
    values = np.lib.format.open_memmap(tmp_path / "raw" / "spectra_latest_1.npy", "w+", np.float32, (rows, 3, 301))
    raw[:400], values[:400] = structures(400), spectra(400, (3,))
    raw.flush()
    values.flush()
    del raw, values
    code = (
        "import json, resource, sys; from pathlib import Path; from metaspec_simulation import Process;"
        "from metaspec_simulation.data.importer import find_pairs, import_pairs, picture;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "r = import_pairs(find_pairs(Path(sys.argv[1]), Process()), Path(sys.argv[2]), Process(), lambda rows: None);"
        "print(json.dumps([r.kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "raw"), str(tmp_path / "set")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    kept, growth = json.loads(result.stdout)
    assert kept == 400
    assert growth / 2**20 < 0.25, "GB"
