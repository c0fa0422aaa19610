"""The command `metaspec` as a user gives it, against a running server."""

from __future__ import annotations

import json
import mmap
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gdstk
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from metaspec import Surrogate
from metaspec._cli import bulk
from metaspec_contract.run_folder import read_report
from metaspec_testing.commands import Command, give
from metaspec_testing.scripted import scripted
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import METADATA, Array, Expected, small_gradient_model, small_model, write_repository

RUN = ["--steps", "24", "--starts", "2", "--radius-nm", "120", "--seed", "3"]
COMMAND = [sys.executable, "-m", "metaspec"]

# The command, which sends itself a real signal after step 5, SIGINT or that of the environment: a run that is as short
# as the others is interrupted, too.
INTERRUPTED = """
import os, signal
from metaspec.__main__ import main
from metaspec._cli.display import RunDisplay

def interrupt(self, progress, show=RunDisplay.__call__):
    show(self, progress)
    if progress.step == 5:
        os.kill(os.getpid(), int(os.environ.get("SIGNAL", signal.SIGINT)))

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
RunDisplay.__call__ = interrupt
main()
"""


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        **options,
    )
    kill_late(process)
    return process


def kill_late(process: subprocess.Popen[Any], seconds: float = 120) -> None:
    """Kill a process that still runs after a while, so that nobody waits for its output for ever."""
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.daemon = True
    watchdog.start()


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), process.communicate()[1]


@pytest.mark.parametrize("dtype", ["bool", "u1", "f4", "f8"])
def test_predict_writes_the_spectra_of_a_file(
    metaspec: Command, server: RunningServer, expected: Expected, structures: Array, tmp_path: Path, dtype: str
) -> None:
    np.save(tmp_path / "structures.npy", structures.astype(dtype))
    out = tmp_path / "spectra.npy"
    status, printed, errors = metaspec("predict", tmp_path / "structures.npy", "--url", server.url, "--out", out)
    assert (status, errors) == (0, "")
    spectra = np.load(out)
    assert spectra.dtype == np.float32
    np.testing.assert_allclose(spectra, expected(structures), atol=1e-5)
    with Surrogate(server.url) as surrogate:
        efficiency = surrogate.predict(structures).colour_efficiency()
    for number, row in enumerate(efficiency):
        cells = [f"{value:.3f}" for value in (*row, row.min())]
        assert [str(number), *cells] in [line.split() for line in printed.splitlines()]
    assert f"{out} holds the spectra, 5 x 4 x 301." in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spectra.npy", "structures.npy"]


def test_predict_one_structure_as_a_table_and_a_plot(
    metaspec: Command, server: RunningServer, expected: Expected, structures: Array, tmp_path: Path
) -> None:
    np.save(tmp_path / "structure.npy", structures[0])
    out, plot = tmp_path / "spectra.csv", tmp_path / "plot.png"
    status, _, _ = metaspec("predict", tmp_path / "structure.npy", "--url", server.url, "--out", out, "--plot", plot)
    assert status == 0
    assert out.read_text().splitlines()[0] == "structure,wavelength_nm,R,G1,G2,B"
    table = np.loadtxt(out, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(table[:, :2], np.column_stack([np.zeros(301), np.arange(400, 701)]))
    np.testing.assert_allclose(table[:, 2:].T, expected(structures[0])[0], atol=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "spectra.csv", "structure.npy"]


def test_of_many_structures_the_best_are_shown(metaspec: Command, server: RunningServer, tmp_path: Path) -> None:
    structures = np.random.default_rng(0).random((40, 128, 128)).astype(np.float32)
    np.save(tmp_path / "structures.npy", structures)
    status, printed, _ = metaspec("predict", tmp_path / "structures.npy", "--url", server.url)
    assert status == 0
    assert "the 10 best of 40 structures" in printed
    with Surrogate(server.url) as surrogate:
        best = np.argsort(-surrogate.predict(structures).min_efficiency())[:10]
    shown = [line.split()[0] for line in printed.splitlines() if line.split() and line.split()[0].isdigit()]
    assert shown == [str(n) for n in best]


def test_an_interrupted_prediction_goes_on(server: RunningServer, expected: Expected, tmp_path: Path) -> None:
    structures = np.random.default_rng(0).integers(0, 2, (520, 128, 128), np.uint8)
    np.save(tmp_path / "structures.npy", structures)
    partial = tmp_path / "spectra.npy.partial"

    def interrupt(finished: int) -> None:
        if finished:
            raise KeyboardInterrupt

    with Surrogate(server.url, batch_size=64) as surrogate:
        mapped = bulk.open_structures(tmp_path / "structures.npy", (128, 128))
        owner: Any = mapped
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)  # nothing has been read into memory
        with pytest.raises(KeyboardInterrupt):
            bulk.predict_to_file(surrogate, mapped, partial, interrupt)
        with pytest.raises(ValueError, match=r"mmap length|cannot reshape|buffer|smaller"):
            np.load(partial, mmap_mode="r")  # nobody takes it for the whole
        with partial.open("ab") as file:
            file.write(b"half a row")
        finished: list[int] = []
        before = surrogate.sent.structures
        spectra = bulk.predict_to_file(surrogate, mapped, partial, finished.append)
        assert surrogate.sent.structures - before == 2 + 520 - 256  # two of the old ones are compared
    assert finished == [256, 256, 8]
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-5)


def test_a_partial_prediction_of_something_else_is_kept(
    metaspec: Command, server: RunningServer, structures: Array, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", structures)
    partial, out = tmp_path / "spectra.npy.partial", tmp_path / "spectra.npy"
    with Surrogate(server.url) as surrogate:
        bulk.predict_to_file(surrogate, 1 - structures[:, None], partial, lambda finished: None)
    content = partial.read_bytes()
    status, _, errors = metaspec("predict", tmp_path / "a.npy", "--url", server.url, "--out", out)
    assert status == 2
    assert f"{partial} holds spectra of other structures or another model: delete it to start over" in errors
    assert partial.read_bytes() == content
    np.save(tmp_path / "a.npy", structures[:3])
    assert metaspec("predict", tmp_path / "a.npy", "--url", server.url, "--out", out)[0] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n picture", "is not a .npy file of plain numbers"),
        (b"", "is not a .npy file of plain numbers"),
        (np.zeros((3, 128, 128), object), "is not a .npy file of plain numbers"),
        (np.zeros((0, 128, 128)), "holds no structures: its shape is (0, 128, 128)"),
        (np.zeros((64, 64)), "structures must be (128, 128), (N, 128, 128) or (N, 1, 128, 128), got (64, 64)"),
        (np.full((2, 128, 128), 255, np.uint8), "divide 8-bit images by 255"),
        (np.zeros((128, 128), complex), "got complex128"),
        (None, "structures.npy is missing"),
    ],
)
def test_predict_refuses_bad_files(
    metaspec: Command, server: RunningServer, tmp_path: Path, content: Any, message: str
) -> None:
    file, out = tmp_path / "structures.npy", tmp_path / "spectra.npy"
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        file.write_bytes(content)
    status, printed, errors = metaspec("predict", file, "--url", server.url, "--out", out)
    assert (status, printed) == (2, "")
    assert message in errors
    assert errors.startswith("metaspec: ")
    assert errors.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"structures.npy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "x.npy", "--out", "spectra.nc"], "--out must end in .npy or .csv, got spectra.nc"),
        (["predict", "x.npy", "--out", "nowhere/x.npy"], "--out: folder nowhere does not exist"),
        (["predict", "x.npy", "--url", "ftp://x"], "http"),
        (["optimise", "--out", "x", "--objective", "purple"], "objective must be one of bayer, balanced, min"),
        (
            ["optimise", "--out", "x", "--gds-layer", "one"],
            "--gds-layer must be two integers, LAYER/DATATYPE, got 'one'",
        ),
        (["optimise", "--out", "x", "--gds-layer", "1/99999"], "between 0 and 32767, got 1/99999"),
        (["optimise", "--out", "x", "--url", "http://NOBODY"], "no connection to http://127.0.0.1"),
        (["optimise", "--out", "x", "--optimiser", "luck"], "optimiser must be one of adam"),
        (
            ["optimise", "--out", "x", "--optimiser", "cmaes", "--starts", "1"],
            "starts must be a whole number of at least 2",
        ),
        (["optimise", "--out", "x", "--optimiser", "de", "--starts", "3"], 'at least 4 for "de", got 3'),
        (
            ["optimise", "--out", "x", "--spread-penalty", "inf"],
            "--spread-penalty must be a finite number of at least 0",
        ),
        (["optimise", "--out", "x", "--wait", "inf"], "wait must be at least 0 seconds and finite, got inf"),
        (["predict", "x.npy", "--plot", "spectra.jpeg"], "--plot must end in .png, .svg or .pdf, got spectra.jpeg"),
        (["optimise", "--out", "x", "--symmetry", "round"], "symmetry must be None or \"diagonal\", got 'round'"),
        (["optimise", "--out", "x", "--radius-nm", "-1"], "radius_nm must be above 0"),
        (["optimise", "--out", "x", "--robust-delta", "0.6"], "robust_delta"),
        (["optimise", "--out", "x", "--spread-penalty", "1"], "has no channel spread, only R, G1, G2, B"),
        (["optimise", "--out", "x", "--min-feature-nm", "800"], "at most a quarter of the cell, 500, got 800"),
        (["optimise", "--out", "x", "--steps", "0"], "Invalid value for '--steps'"),
        (["optimise", "--out", "x", "--steps", "abc"], "Invalid value for '--steps'"),
        (["optimise", "--out", "x", "--bogus"], "No such option: --bogus"),
        (["bogus"], "No such command 'bogus'"),
        (["optimise", "--steps", "3"], "Missing option '--out'"),
        (["predict"], "Missing argument"),
        (["optimise", "--out", "x", "--model", "nothing"], "nothing"),
    ],
)
def test_bad_arguments(
    metaspec: Command,
    server: RunningServer,
    nobody: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metaspec._surrogate.base.random.uniform", lambda low, high: 0.0)  # no pauses
    arguments = [argument.replace("NOBODY", nobody) for argument in arguments]
    address = [] if "--url" in arguments else ["--url", server.url]
    status, printed, errors = metaspec(*arguments, *address)
    assert (status, printed) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("metaspec: ")
    assert message in line
    assert not list(tmp_path.iterdir())  # nothing is begun


def test_a_solver_is_not_waited_for(metaspec: Command, tmp_path: Path) -> None:
    status, _, errors = metaspec("optimise", "--out", tmp_path / "x", "--source", "solver", "--wait", 5)
    assert (status, errors) == (2, "metaspec: --wait is not an option of --source solver\n")


def test_help(metaspec: Command) -> None:
    status, printed, errors = metaspec("--help")
    assert (status, errors) == (0, "")
    assert printed.startswith("Usage: metaspec [OPTIONS] COMMAND")
    status, printed, errors = metaspec()
    assert (status, printed) == (2, "")
    assert errors.startswith("Usage: metaspec [OPTIONS] COMMAND")


@pytest.fixture(scope="module")
def finished(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("finished") / "designs"
    assert give(["optimise", "--url", server.url, "--out", folder, *RUN]) == 0
    return folder


def test_optimise_interrupted_and_resumed_finds_the_same_designs(
    metaspec: Command, server: RunningServer, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "designs"
    arguments = ["optimise", "--url", server.url, "--out", str(folder), *RUN]
    interrupted = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, timeout=120
    )
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Repeat the command to resume." in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert (folder / "checkpoint.npz").exists()
    assert not (folder / "report.json").exists()

    status, printed, _ = metaspec(*arguments)
    assert status == 0
    assert printed.startswith("Resuming objective bayer, 2 starts, adam; diffractionnet version 1")
    assert "step 5/24" not in printed
    assert "step 7/24" in printed
    names = sorted(path.name for path in finished.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "checkpoint.npz" not in names
    for name in names:
        if name.rpartition(".")[2] in ("npy", "gds", "csv"):
            assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    reports = [json.loads((path / "report.json").read_text()) for path in (folder, finished)]
    assert reports[0]["designs"] == reports[1]["designs"]


def test_a_run_has_made_better_binary_designs(server: RunningServer, finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    settings = {"objective": "bayer", "steps": 24, "starts": 2, "radius_nm": 120.0, "seed": 3, "optimiser": "adam"}
    assert report["settings"].items() >= settings.items()
    designs = np.load(finished / "designs.npy")
    assert set(np.unique(designs)) == {0, 1}
    with Surrogate(server.url) as surrogate:
        efficiency = surrogate.predict(designs).min_efficiency()
        first = surrogate.predict(np.load(finished / "trajectory.npy")[:2]).min_efficiency()
    np.testing.assert_allclose([d["predicted"]["min_efficiency"] for d in report["designs"]], efficiency, atol=1e-6)
    assert efficiency[0] > first.max() + 0.02


def test_a_finished_run_is_left_alone(metaspec: Command, finished: Path, nobody: str) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    status, printed, errors = metaspec("optimise", "--url", f"http://{nobody}", "--out", finished, *RUN)
    assert (status, errors) == (0, "")
    assert "is finished, nothing to do" in printed
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == times


def test_another_run_does_not_take_the_folder(metaspec: Command, server: RunningServer, finished: Path) -> None:
    status, _, errors = metaspec("optimise", "--url", server.url, "--out", finished, *RUN, "--symmetry", "diagonal")
    assert status == 2
    assert "belongs to an optimisation with other settings: symmetry none (now diagonal)" in errors


def test_a_terminal_shows_the_run_as_it_goes(server: RunningServer, tmp_path: Path) -> None:
    """Also: options reach the designs."""
    outer, inner = pty.openpty()
    arguments = ["optimise", "--url", server.url, "--out", tmp_path / "designs", "--steps", 5, "--starts", 3]
    arguments += ["--symmetry", "diagonal", "--robust-delta", 0.1, "--objective", "min", "--gds-layer", "4/2"]
    arguments += ["--min-feature-nm", 90]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=inner,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(inner)
    kill_late(process)
    shown = b""
    while True:
        try:
            shown += os.read(outer, 1 << 16)
        except OSError:  # the terminal's other end is closed
            break
    os.close(outer)
    assert process.wait(120) == 0
    text = shown.decode()
    for words in ("5/5", "best", "median", "structures/s", "left", "min efficiency", "report.html"):
        assert words in text
    assert "\x1b[1A" in text  # drawn over again in place
    designs = np.load(tmp_path / "designs" / "designs.npy")
    np.testing.assert_array_equal(designs, designs.transpose(0, 2, 1))
    report = json.loads((tmp_path / "designs" / "report.json").read_text())
    assert report["objective"] == "min"
    assert report["settings"]["robust_delta"] == 0.1
    assert all(min(design["solid_nm"], design["void_nm"]) >= 90 for design in report["designs"])
    layout = gdstk.read_gds(tmp_path / "designs" / "design_000.gds").top_level()[0]
    assert isinstance(layout, gdstk.Cell)
    assert {(polygon.layer, polygon.datatype) for polygon in layout.polygons} == {(4, 2), (100, 0)}


@pytest.mark.slow
def test_a_server_that_is_gone_costs_nothing(metaspec: Command, small_repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "designs"
    (tmp_path / "keys").write_text("a-secret-of-16-letters\n")
    with running_server("--repository", str(small_repository), "--api-keys", str(tmp_path / "keys")) as server:
        arguments = ["optimise", "--url", server.url, "--out", folder, "--steps", 2000, "--starts", 2]
        status, _, errors = metaspec(*arguments)
        assert status == 2
        assert "API key" in errors
        assert not folder.exists()  # nothing is begun
        environment = {**os.environ, "METASPEC_API_KEY": "a-secret-of-16-letters"}
        process = start(*arguments, "--wait", 0, env=environment)
        until(process, "step 100/2000")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith(f"metaspec: no connection to {server.url}")
    assert "Repeat the command to resume." in errors
    assert (folder / "checkpoint.npz").exists()


@pytest.mark.slow
def test_a_server_that_restarts_is_waited_for(small_repository: Path, tmp_path: Path) -> None:
    """The run goes on with the next server at the address, and says that it waits."""
    folder = tmp_path / "designs"
    with running_server("--repository", str(small_repository)) as server:
        process = start("optimise", "--url", server.url, "--out", folder, "--steps", 300, "--starts", 1)
        until(process, "step 90/300")
    until(process, "waiting for the server, 10 min at most")
    port = server.url.rpartition(":")[2]
    with running_server("--repository", str(small_repository), "--port", port):
        until(process, f"{server.url} answers again")
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert (folder / "report.json").exists()


def test_a_model_without_gradients_is_refused_before_anything_is_begun(metaspec: Command, tmp_path: Path) -> None:
    models = write_repository(tmp_path / "models", small_model())
    with running_server("--repository", str(models)) as server:
        status, _, errors = metaspec("optimise", "--url", server.url, "--out", tmp_path / "designs")
    assert status == 2
    assert "diffractionnet_vjp" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "designs").exists()


def test_predict_leaves_no_file_where_the_server_refuses(metaspec: Command, structures: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "structures.npy", structures)
    with scripted((401, {}, b'{"error": "no key"}')) as server:
        arguments = ["predict", tmp_path / "structures.npy", "--url", server.url, "--out", tmp_path / "spectra.npy"]
        status, _, errors = metaspec(*arguments)
    assert status == 2
    assert errors.startswith("metaspec: no key (HTTP 401")
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["structures.npy"]


def test_predict_does_not_replace_its_structures(
    metaspec: Command, server: RunningServer, structures: Array, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", structures)
    status, _, errors = metaspec("predict", tmp_path / "a.npy", "--url", server.url, "--out", tmp_path / "a.npy")
    assert status == 2
    assert "--out would replace the structures" in errors
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), structures)


def test_a_termination_says_how_to_resume(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "designs"
    arguments = ["optimise", "--url", server.url, "--out", str(folder), *RUN]
    environment = {**os.environ, "SIGNAL": str(int(signal.SIGTERM))}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr == "Terminated after step 5 of 24. Repeat the command to resume.\n"
    assert (folder / "checkpoint.npz").exists()


def with_equal_greens(model: onnx.ModelProto) -> onnx.ModelProto:
    """A small model whose G2 is its G1."""
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "weight")
    values = numpy_helper.to_array(weight).reshape(64, 4, 301)[:, [0, 1, 1, 3]]
    weight.CopyFrom(numpy_helper.from_array(values.reshape(64, 1204), "weight"))
    return model


def test_merged_greens_are_stated_everywhere(metaspec: Command, structures: Array, tmp_path: Path) -> None:
    """By both commands, in report.json and in the HTML report."""
    models = tmp_path / "models"
    merged = METADATA | {"merged_greens": True}
    for model in (small_model(merged), small_gradient_model(merged)):
        write_repository(models, with_equal_greens(model))
    np.save(tmp_path / "structures.npy", structures)
    folder, note = tmp_path / "designs", "G1 and G2: only their mean is known"
    with running_server("--repository", str(models)) as server:
        status, printed, errors = metaspec("predict", tmp_path / "structures.npy", "--url", server.url)
        assert (status, errors) == (0, "")
        assert note in printed
        run = ["optimise", "--url", server.url, "--out", folder, "--steps", 1, "--starts", 1]
        status, printed, errors = metaspec(*run)
        assert (status, errors) == (0, "")
        assert note in printed
    assert read_report(folder).merged_greens
    assert note in (folder / "report.html").read_text(encoding="utf-8")
