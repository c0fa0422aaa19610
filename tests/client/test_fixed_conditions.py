"""A source at fixed conditions: spectra, optimisations, `--condition`, run folders, polishing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaspec import AsyncSurrogate, InvalidCondition, Spectra, Surrogate, objectives
from metaspec._cli.conditions import read_conditions
from metaspec.conditions import FixedConditions, at_conditions
from metaspec.optimise import Problem, Progress, by_name, run
from metaspec.topology import Parameterisation
from metaspec.torch import spectra_of
from metaspec_contract.process import Process
from metaspec_contract.run_folder import read_report
from metaspec_simulation.data.designs import read_designs
from metaspec_simulation.source import SolverSource
from metaspec_testing.commands import Command
from metaspec_testing.conditioned_models import DISTANCE, INCIDENCE
from metaspec_testing.direct import Direct
from metaspec_testing.run_folders import write_run_folder
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

AT: dict[str, Any] = {"distance_um": 1.25, "incidence": [3.0, -4.5]}
RUN = ["--steps", 6, "--starts", 2, "--radius-nm", 120, "--seed", 3, "--distance-um", 1.25]


@pytest.fixture(scope="module")
def surrogate(conditioned: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(conditioned.url, progress=False) as surrogate:
        yield surrogate


def close(found: Any, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def blue(spectra: Spectra) -> tuple[Array, Array]:
    """The mean of channel B, and its derivative."""
    cotangent = np.zeros_like(spectra.values)
    cotangent[:, 3] = 1 / spectra.values.shape[2]
    return spectra.channel("B").mean(axis=1), cotangent


def test_a_source_at_fixed_conditions(surrogate: Surrogate, direct: Direct, structures: Array) -> None:
    source, cotangent = FixedConditions(surrogate, AT), np.random.default_rng(1).normal(size=(5, 4, 301))
    assert source.fixed == AT
    expected = direct.gradients(structures, cotangent, **AT)
    close(source.predict(structures).values, expected["spectra"])
    close(source.gradient(structures, cotangent), expected["gradient"][:, 0])
    assert source.gradients(structures, cotangent).conditions == {}
    _, mean = blue(source.predict(structures))
    evaluation = source.predict_and_gradient(structures, blue)
    close(evaluation.gradient, direct.gradients(structures, mean, **AT)["gradient"][:, 0])
    assert evaluation.conditions == {}
    close(spectra_of(torch.tensor(structures), source), expected["spectra"])
    info = source.metadata()
    assert (info.process, info.conditions) == (Process(distance_um=1.25), ())
    assert surrogate.metadata().process == Process()
    assert repr(source) == f"<FixedConditions: {surrogate!r} at distance_um 1.25, incidence (3, -4.5)>"
    assert at_conditions(surrogate, {}) is surrogate


def test_the_documentation(conditioned: RunningServer) -> None:
    text = (Path(__file__).parents[2] / "docs" / "inverse-design.md").read_text(encoding="utf-8")
    section = text[text.index("### At another distance") : text.index("### Minimum feature size")]
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(block.replace("http://127.0.0.1:8000", conditioned.url), names)
    with names["nearer"] as nearer:
        assert nearer.metadata().process.distance_um == 1.25


def test_conditions_that_are_not_fixed_are_taken(surrogate: Surrogate, direct: Direct, structures: Array) -> None:
    source = FixedConditions(surrogate, {"distance_um": 1.25, "incidence": None})
    assert (source.metadata().conditions, source.fixed) == ((INCIDENCE,), {"distance_um": 1.25})
    incidence = np.random.default_rng(2).uniform(-20, 20, (5, 2))
    expected = direct.gradients(structures, np.ones((5, 4, 301)), distance_um=1.25, incidence=incidence)
    close(source.predict(structures, incidence=incidence).values, expected["spectra"])
    found = source.gradients(structures, np.ones((4, 301)), incidence=incidence)
    close(found.conditions["incidence"], expected["gradient_incidence"])
    assert set(found.conditions) == {"incidence"}
    with pytest.raises(InvalidCondition, match=r"^distance_um is fixed: distance_um 1\.25$"):
        source.predict(structures, distance_um=2)


def test_what_cannot_be_fixed(surrogate: Surrogate, server: RunningServer) -> None:
    with pytest.raises(InvalidCondition, match=r"^distance_um must lie between 1 and 3 um, got 4$"):
        FixedConditions(surrogate, {"distance_um": 4})
    with pytest.raises(InvalidCondition, match=r"^incidence must be "):
        FixedConditions(surrogate, {"incidence": 3})
    with (
        Surrogate(server.url) as other,
        pytest.raises(InvalidCondition, match=r"^distance_um is no condition .* none$"),
    ):
        FixedConditions(other, {"distance_um": 2})
    with pytest.raises(TypeError, match="source must be a Surrogate or another Source"):
        FixedConditions(AsyncSurrogate(), {})  # type: ignore[arg-type]


def test_the_solver_at_a_distance() -> None:
    thin, structure = Process(thickness_um=0.1, wavelength_step_nm=50), np.random.default_rng(3).random((1, 128, 128))
    there = Process(thickness_um=0.1, wavelength_step_nm=50, distance_um=1.25)
    with (
        SolverSource(thin, cells=24, workers=1) as solver,
        SolverSource(there, cells=24, workers=1) as expected,
    ):
        source = FixedConditions(solver, {"distance_um": 1.25})
        assert source.metadata().process == there
        close(source.predict(structure).values, expected.predict(structure).values)


def test_a_run_resumes_at_the_same_conditions(surrogate: Surrogate, tmp_path: Path, direct: Direct) -> None:
    def problem(**conditions: Any) -> Problem:
        source = at_conditions(surrogate, conditions)
        return Problem(source, objectives.by_name("bayer"), Parameterisation(radius_nm=120.0))

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    whole = run(problem(**AT), by_name("adam", starts=2), 6, progress=False)
    kept: dict[str, Any] = {"checkpoint": tmp_path / "checkpoint.npz", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        run(problem(**AT), by_name("adam", starts=2), 6, callback=stop, **kept)
    for other in ({}, AT | {"distance_um": 2.0}):
        with pytest.raises(ValueError, match=r"conditions\.distance_um was 1\.25, is (None|2\.0)"):
            run(problem(**other), by_name("adam", starts=2), 6, **kept)
    resumed = run(problem(**AT), by_name("adam", starts=2), 6, **kept)
    np.testing.assert_array_equal(resumed.structure, whole.structure)
    close(resumed.spectra.values, direct.spectra(resumed.structure, **AT))


def test_the_command(conditioned: RunningServer, metaspec: Command, direct: Direct, tmp_path: Path) -> None:
    """Designs, the report and its page, what is refused, and polishing and verification at the same conditions."""
    out, url = tmp_path / "run", ["--url", conditioned.url]
    status, printed, errors = metaspec("optimise", "--out", out, *RUN, "--condition", "incidence=3,-4.5", *url)
    assert (status, errors) == (0, "")
    assert ", distance_um 1.25, incidence (3, -4.5)\n" in printed
    report, designs = read_report(out), np.load(out / "designs.npy")
    assert (report.conditions, report.process, report.url) == (AT, Process(distance_um=1.25), conditioned.url)
    close(np.load(out / "spectra.npy"), direct.spectra(designs, **AT))
    assert json.loads((out / "settings.json").read_text())["conditions"] == AT
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "version 1, at distance_um 1.25, incidence (3, -4.5). " in page
    assert "/?model=diffractionnet&amp;distance_um=1.25&amp;incidence=3.0,-4.5#structure=" in page
    assert "<dt>conditions</dt><dd>distance_um 1.25, incidence 3.0, -4.5</dd>" in page

    status, _, errors = metaspec("optimise", "--out", out, *RUN, *url)
    assert status == 2
    assert "other settings: conditions distance_um 1.25, incidence 3.0, -4.5 (now distance_um 1.25)" in errors
    status, printed, _ = metaspec("optimise", "--out", out, *RUN, "--condition", "incidence=3,-4.5", *url)
    assert (status, "nothing to do" in printed) == (0, True)

    status, _, errors = metaspec("polish", out, "--source", "surrogate", "--best", 1, "--steps", 2, *url)
    assert (status, errors) == (0, "")
    polished = read_report(out / "polished")
    assert (polished.conditions, polished.process) == (AT, report.process)
    close(np.load(out / "polished" / "spectra.npy"), direct.spectra(np.load(out / "polished" / "designs.npy"), **AT))

    status, _, errors = metaspec("polish", out, "--out", tmp_path / "solver", "--cells", 24)
    assert (
        status,
        errors.startswith("metaspec: incidence is no condition of this model, which takes distance_um "),
    ) == (2, True)
    with pytest.raises(ValueError, match="made at a condition that the solver does not have, incidence"):
        read_designs(out)


def test_the_command_refuses_before_it_writes(conditioned: RunningServer, metaspec: Command, tmp_path: Path) -> None:
    for given, message in (
        (["--distance-um", 4], "distance_um must lie between 1 and 3 um, got 4"),
        (["--condition", "thickness_um=1"], "thickness_um is no condition of this model, which takes distance_um"),
        (["--condition", "distance_um"], "--condition must be NAME=VALUE, such as distance_um=1.25, got 'distance_um'"),
    ):
        out = tmp_path / "run"
        status, printed, errors = metaspec("optimise", "--out", out, *given, "--url", conditioned.url)
        assert (status, printed, errors) == (2, "", errors)
        assert errors.startswith(f"metaspec: {message}")
        assert not out.exists()


def test_predictions_of_the_command(
    conditioned: RunningServer, metaspec: Command, direct: Direct, structures: Array, tmp_path: Path
) -> None:
    np.save(tmp_path / "structures.npy", structures)
    out, given = tmp_path / "spectra.npy", ["--distance-um", 1.25, "--condition", "incidence=3,-4.5"]
    status, _, errors = metaspec("predict", tmp_path / "structures.npy", "--out", out, *given, "--url", conditioned.url)
    assert (status, errors) == (0, "")
    close(np.load(out), direct.spectra(structures, **AT))


@pytest.mark.parametrize(
    ("given", "distance_um", "message"),
    [
        (["distance_um=1", "distance_um=2"], None, "--condition distance_um is given twice"),
        (["distance_um=1"], 2.0, "--condition distance_um is given twice"),
        (["=1"], None, "--condition must be NAME=VALUE"),
        (["incidence=1,x"], None, "--condition incidence=1,x: must be a number, or numbers with commas between them"),
        (["distance_um="], None, "--condition distance_um=: must be a number"),
        (["distance_um=inf"], None, "--condition distance_um=inf: must be finite"),
        ([], float("nan"), "--distance-um nan: must be finite"),
    ],
)
def test_what_is_no_condition(given: list[str], distance_um: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read_conditions(given, distance_um)


def test_designs_at_a_distance_are_simulated_there(tmp_path: Path, structures: Array) -> None:
    """The report's process has the distance: what reads run folders needs to know nothing of conditions."""
    process = Process(distance_um=1.25, wavelength_step_nm=5)
    predicted = np.zeros((5, 4, 61), np.float32)
    folder = write_run_folder(
        tmp_path / "run", structures, predicted, process=process, conditions={DISTANCE.name: 1.25}
    )
    assert read_designs(folder).process.distance_um == 1.25


@pytest.mark.slow
def test_polishing_on_the_solver(metaspec: Command, tmp_path: Path, structures: Array) -> None:
    thin = Process(thickness_um=0.1, distance_um=1.25)
    predicted = np.full((5, 4, 301), 0.25, np.float32)
    folder = write_run_folder(tmp_path / "run", structures, predicted, process=thin, conditions={DISTANCE.name: 1.25})
    status, printed, errors = metaspec("polish", folder, "--cells", 24, "--best", 1, "--steps", 1, "--workers", 1)
    assert (status, errors) == (0, "")
    assert ", distance_um 1.25\n" in printed
    report = read_report(folder / "polished")
    assert (report.process, report.conditions) == (thin, {DISTANCE.name: 1.25})
    with SolverSource(thin, cells=24, workers=1, progress=False) as source:
        before = source.predict(structures[:1])
    assert report.designs[0].unpolished is not None
    found = report.designs[0].unpolished.simulated.min_efficiency
    assert found == pytest.approx(before.min_efficiency()[0], abs=1e-6)
