"""The same objectives, optimisers and commands on the surrogate and on the solver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metaspec import Surrogate, __version__
from metaspec.designs import write_designs
from metaspec.objectives import MinEfficiency
from metaspec.optimise import Adam, Problem, run
from metaspec.topology import Parameterisation, random_latents
from metaspec_contract.run_folder import read_report
from metaspec_contract.source import Source
from metaspec_simulation.source import SolverSource
from metaspec_testing.commands import give, interrupt_in_simulation, metaspec
from metaspec_testing.servers import RunningServer


@pytest.fixture(params=["surrogate", "solver"])
def source(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Source]:
    made: Source = (
        Surrogate(server.url, progress=False)
        if request.param == "surrogate"
        else SolverSource(cells=24, longest=15.0, workers=1, progress=False)
    )
    with made:
        yield made


@pytest.mark.slow
def test_the_same_code_on_both(source: Source, tmp_path: Path) -> None:
    problem = Problem(source, MinEfficiency(0.05), Parameterisation(120.0))
    result = run(problem, Adam(random_latents(2), learning_rate=0.1), 3, betas=[4.0] * 3, check_every=3, progress=False)
    assert (result.history.value[-1] > result.history.value[0]).all()
    assert (problem.server_calls, problem.structures_evaluated) == (8, 10)
    report = write_designs(tmp_path, result, source, objective="min")
    spectra = np.load(tmp_path / "spectra.npy")
    np.testing.assert_allclose(spectra, source.predict(result.structure).values, atol=1e-6)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    info, found = source.metadata(), read_report(tmp_path)
    assert (found.model, found.model_version, found.simulated) == (info.name, info.version, info.simulated)
    if isinstance(source, Surrogate):
        assert report["url"] == source.url
        assert "are predictions of the model diffractionnet, version 1" in page
    else:
        assert report["url"] is None
        assert "were simulated (solver, version 24 cells, longest 15 um/c, metaspec-lab" in page


@pytest.mark.slow
def test_a_run_on_the_solver_is_interrupted_and_resumed(tmp_path: Path) -> None:
    """Within its first step: what was simulated is found again. The process is of thin, quickly simulated structures."""
    (tmp_path / "thin.json").write_text('{"thickness_um": 0.1}')
    folder = tmp_path / "designs"
    arguments = ["optimise", "--source", "solver", "--cells", 24, "--process", tmp_path / "thin.json", "--out", folder]
    arguments += ["--steps", 1, "--starts", 3]
    interrupted = metaspec(*arguments, "--workers", 2)
    printed, errors = interrupt_in_simulation(interrupted, folder)
    assert interrupted.returncode == 130, errors
    assert printed.startswith("Optimising objective bayer, 3 starts, adam; solver (24 cells, metaspec-lab ")
    assert errors == "Interrupted. Repeat the command to resume.\n"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("cache/[!.]*.npy")}
    assert kept

    resumed = metaspec(*arguments, "--workers", 1)
    printed, errors = resumed.communicate(timeout=240)
    assert (resumed.returncode, errors) == (0, "")
    assert "efficiencies simulated, widths in nm" in printed
    made_by = f"simulated by solver (24 cells, metaspec-lab {__version__}): metaspec-simulate verify {folder}"
    assert made_by in printed.replace("\n", "")
    assert "predict" not in printed
    report, settings = read_report(folder), json.loads((folder / "settings.json").read_text())
    assert report.simulated
    assert report.process.thickness_um == 0.1
    assert (settings["source"], settings["cells"], settings["process"]) == ("solver", 24, {"thickness_um": 0.1})
    assert not (folder / "cache").exists()
    other = metaspec(*arguments[:4], 32, *arguments[5:])
    _, errors = other.communicate(timeout=120)
    assert (other.returncode, errors.count("\n")) == (2, 1)
    assert "belongs to an optimisation with other settings: cells 24 (now 32)" in errors


def test_predict_on_the_solver(tmp_path: Path) -> None:
    np.save(tmp_path / "structures.npy", np.zeros((1, 128, 128), np.uint8))
    out = tmp_path / "spectra.npy"
    done = metaspec("predict", tmp_path / "structures.npy", "--source", "solver", "--cells", 24, "--out", out)
    printed, errors = done.communicate(timeout=120)
    assert (done.returncode, errors) == (0, "")
    assert "Colour efficiencies, solver (24 cells, metaspec-lab" in printed
    bare_glass = np.load(out)[0].sum(axis=0)[50:]  # from 450 nm: shorter waves have three of these cells
    np.testing.assert_allclose(bare_glass, 0.965, atol=0.03)


WITHOUT_LABORATORY = """
import metaspec_contract.source
metaspec_contract.source.entry_points = lambda group: ()
from metaspec.__main__ import main
main()
"""


@pytest.mark.parametrize("command", [["optimise", "--out", "never-written"], ["predict", "nowhere.npy"]])
def test_without_the_laboratory(command: list[str]) -> None:
    done = metaspec(*command, "--source", "solver", code=WITHOUT_LABORATORY)
    printed, errors = done.communicate(timeout=120)
    line = "metaspec: --source solver needs metaspec-lab: pip install metaspec-lab\n"
    assert (done.returncode, printed, errors) == (2, "", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "maxwell"], "--source must be one of surrogate, solver, got 'maxwell'"),
        (["--source", "solver", "--url", "http://127.0.0.1:1"], "--url is not an option of --source solver"),
        (["--source", "solver", "--model", "x"], "--model is not an option of --source solver"),
        (["--source", "solver", "--api-key", "x"], "--api-key is not an option of --source solver"),
        (["--cells", "64"], "--cells is not an option of --source surrogate"),
        (["--workers", "2"], "--workers is not an option of --source surrogate"),
        (
            ["--source", "solver", "--cells", "24", "--spread-penalty", "1"],
            "--spread-penalty: solver has no channel spread",
        ),
        (["--source", "solver", "--process", "FILE"], "thicknes: unknown field"),
    ],
)
def test_options_that_do_not_belong_to_the_source(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "process.json").write_text('{"thicknes": 0.1}')
    arguments = [argument.replace("FILE", str(tmp_path / "process.json")) for argument in arguments]
    monkeypatch.setenv("METASPEC_API_KEY", "for the server")  # is none of the command line
    assert give(["optimise", "--out", tmp_path / "designs", *arguments]) == 2
    printed, errors = capfd.readouterr()
    assert (printed, errors.count("\n")) == ("", 1)
    assert errors.startswith("metaspec: ")
    assert message in errors
    assert not (tmp_path / "designs").exists()
