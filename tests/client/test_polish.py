"""`metaspec polish`: the designs of a run folder improved on the solver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import JsonValue

from metaspec import Surrogate
from metaspec.objectives import by_name
from metaspec.optimise import Problem, Progress, polish
from metaspec.topology import Parameterisation, feature_size, random_latents, without_small_features
from metaspec_contract.process import Process
from metaspec_contract.run_folder import read_report
from metaspec_simulation.source import SolverSource
from metaspec_testing.commands import give, interrupt_in_simulation, metaspec
from metaspec_testing.run_folders import write_run_folder
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import small_model, write_repository

THIN = Process(thickness_um=0.1)
"""A process that is quickly simulated."""

WIDTH = 100.0


def some_designs(count: int) -> NDArray[np.uint8]:
    """Structures with features that are too small."""
    return Parameterisation(radius_nm=50.0).binary(random_latents(count, seed=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three designs for the thin device."""
    predicted = np.full((3, 4, len(THIN.wavelengths_nm)), 0.25, np.float32)
    settings: dict[str, JsonValue] = {"min_feature_nm": WIDTH}
    return write_run_folder(tmp_path / "designs", some_designs(3), predicted, process=THIN, settings=settings)


def check_refusal(folder: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The command refuses in one line, before it writes anything."""
    status = give(["polish", folder, "--cells", 24, *arguments])
    printed, errors = capfd.readouterr()
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert message in errors
    assert not (folder / "polished").exists()


@pytest.mark.slow
def test_designs_are_improved_on_the_solver(folder: Path) -> None:
    arguments = ["polish", folder, "--cells", 24, "--best", 2, "--steps", 4, "--workers"]
    interrupted = metaspec(*arguments, 2)
    out = folder / "polished"
    printed, errors = interrupt_in_simulation(interrupted, out)
    assert interrupted.returncode == 130, errors
    assert printed.startswith(f"Polishing 2 designs of {folder}, objective balanced; solver (24 cells, decay 0.001, ")
    assert errors.startswith("Interrupted")
    assert errors.endswith("Repeat the command to resume.\n")

    resumed = metaspec(*arguments, 1)
    printed, errors = resumed.communicate(timeout=240)
    assert (resumed.returncode, errors) == (0, "")
    assert "design from run start objective red green blue end solid void" in " ".join(printed.split())
    assert f"metaspec-simulate verify {out} --cells N" in printed.replace("\n", "")
    assert not (out / "cache").exists()

    report, before, after = read_report(out), some_designs(2), np.load(out / "designs.npy")
    assert (report.objective, report.simulated, report.process) == ("balanced", True, THIN)
    assert json.loads((out / "settings.json").read_text())["min_feature_nm"] == WIDTH
    with SolverSource(THIN, cells=24, workers=1, progress=False) as source:
        there, here = source.predict(before), source.predict(after)
        repaired = source.predict(np.stack([without_small_features(one, WIDTH) for one in before]))
        assert report.model_version == source.metadata().version
    first = by_name("balanced")(repaired)[0]
    for row, design in enumerate(report.designs):
        assert min(feature_size(after[row])) >= WIDTH
        assert design.predicted.min_efficiency == pytest.approx(here.min_efficiency()[row], abs=1e-6)
        assert design.unpolished is not None
        start = design.unpolished.rank
        assert start == design.start
        assert design.unpolished.predicted.min_efficiency == 0  # as the folder's report says
        assert design.unpolished.simulated.min_efficiency == pytest.approx(there.min_efficiency()[start], abs=1e-6)
        assert design.objective > np.asarray(first)[start]
    assert {design.start for design in report.designs} == {0, 1}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "polished from" in page
    assert f">{report.designs[0].unpolished.simulated.min_efficiency:.3f}</td>" in page  # type: ignore[union-attr]

    again = metaspec(*arguments, 1)
    printed, errors = again.communicate(timeout=120)
    assert (again.returncode, printed) == (0, f"{out} is finished, nothing to do: see {out / 'report.html'}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "designs for another process than that of solver (24 cells, decay 0.001, metaspec-lab"),
        (["--min-feature-nm", "600"], "width_nm must be above 0 and at most a quarter of the cell, 500, got 600"),
        (["--objective", "best"], "objective must be one of bayer, balanced, min, "),
        (["--url", "http://127.0.0.1:1"], "--url is not an option of --source solver"),
        (["--radius-nm", "1e7"], "radius_nm must be above 0 and at most half of the cell's 2000 nm, got 10000000"),
        (["--best", "0"], "--best"),
        (["--steps", "0"], "--steps"),
        (["--gds-layer", "one"], "--gds-layer must be two integers"),
    ],
)
def test_what_cannot_be_polished(
    arguments: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not arguments:
        (folder.parent / "process.json").write_text('{"thickness_um": 0.2}')
        arguments = ["--process", str(folder.parent / "process.json")]
    check_refusal(folder, arguments, message, capfd)


def test_polishing_on_a_model_without_gradients_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predicted = np.full((2, 4, len(Process().wavelengths_nm)), 0.25, np.float32)
    folder = write_run_folder(tmp_path / "designs", some_designs(2), predicted, process=Process())
    with running_server("--repository", str(write_repository(tmp_path / "models", small_model()))) as server:
        status = give(["polish", folder, "--source", "surrogate", "--url", server.url])
    printed, errors = capfd.readouterr()
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert "diffractionnet_vjp" in errors
    assert not (folder / "polished").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "report.json").unlink(), "report.json is missing"),
        (lambda folder: np.save(folder / "designs.npy", some_designs(2)), "has 2 rows but the report lists 3 designs"),
        (lambda folder: np.save(folder / "designs.npy", np.full((3, 128, 128), 0.5)), "structures must be binary"),
    ],
)
def test_a_damaged_folder_is_refused(
    damage: Any, message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    check_refusal(folder, ["--best", "1"], message, capfd)


@pytest.mark.parametrize("width", ["80", [80], True, -5])
def test_a_width_that_is_no_number_is_not_ignored(width: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = json.loads((folder / "report.json").read_text())
    report["settings"]["min_feature_nm"] = width
    (folder / "report.json").write_text(json.dumps(report))
    message = f"report.json: settings.min_feature_nm must be a number of at least 0, got {width!r}"
    check_refusal(folder, ["--best", "1"], message, capfd)


@pytest.mark.parametrize("width", [None, 80.0])
def test_a_polished_design_is_never_worse(width: float | None, server: RunningServer, tmp_path: Path) -> None:
    designs = some_designs(2)
    start = designs if width is None else np.stack([without_small_features(one, width) for one in designs])
    with Surrogate(server.url, progress=False) as surrogate:
        problem = Problem(surrogate, by_name("bayer"), Parameterisation(80.0, min_feature_nm=width))
        before = np.asarray(by_name("bayer")(surrogate.predict(start))[0])

        def stop(progress: Progress) -> None:
            if progress.step == 2:
                raise KeyboardInterrupt

        whole = polish(problem, designs, 6, progress=False)
        with pytest.raises(KeyboardInterrupt):
            polish(problem, designs, 6, checkpoint=tmp_path / "run.npz", callback=stop, progress=False)
        resumed = polish(problem, designs, 6, checkpoint=tmp_path / "run.npz", progress=False)
        with pytest.raises(ValueError, match="is the checkpoint of another run: "):
            polish(problem, designs[::-1], 6, checkpoint=tmp_path / "run.npz", progress=False)
    assert (whole.value >= before[whole.row] - 1e-6).all()
    assert whole.history.checked[0] == -1
    np.testing.assert_allclose(whole.history.binary_value[0], before, atol=1e-6)
    np.testing.assert_array_equal(resumed.structure, whole.structure)
    np.testing.assert_array_equal(resumed.history.value, whole.history.value)
    if width is not None:
        assert all(min(feature_size(one)) >= width for one in whole.structure)
