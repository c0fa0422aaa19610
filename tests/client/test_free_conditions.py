"""Free conditions: a distance for each start, varied with the structure; in runs, `--free`, folders, polish, verification."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gdstk
import numpy as np
import pytest

from metaspec import InvalidCondition, Surrogate, objectives
from metaspec._cli.conditions import read_free
from metaspec._jobs.figures import figures
from metaspec.conditions import FixedConditions
from metaspec.designs import mended, shifted_edges, write_designs
from metaspec.fabrication import BlurAndBias
from metaspec.figures import draw_history
from metaspec.optimise import NAMES, Adam, Problem, Progress, Result, by_name, find, polish, refine, run
from metaspec.optimise.free_conditions import STEPPING, BatchConditions, varies_conditions
from metaspec.topology import Parameterisation, random_latents
from metaspec_contract.process import Process
from metaspec_contract.run_folder import read_report
from metaspec_simulation.data.designs import read_designs
from metaspec_simulation.source import SolverSource
from metaspec_testing.commands import Command
from metaspec_testing.conditioned_models import CONDITIONS, DISTANCE
from metaspec_testing.direct import Direct
from metaspec_testing.run_folders import write_run_folder
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

FREE = {"distance_um": (1.5, 2.75)}
RUN = ["--steps", 6, "--starts", 3, "--radius-nm", 120, "--seed", 3, "--free", "distance_um:1.5:2.75"]


@pytest.fixture(scope="module")
def surrogate(conditioned: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(conditioned.url, progress=False) as surrogate:
        yield surrogate


@pytest.fixture
def problem(surrogate: Surrogate) -> Problem:
    return Problem(surrogate, objectives.by_name("bayer"), Parameterisation(120.0), free=FREE)


def stop_after(step: int) -> Any:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return stop


def close(found: Any, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Problems


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"robust_delta": 0.1},
        {"robust_delta": 0.1, "robust": "mean"},
        {"fabrication": BlurAndBias(blur_nm=(10, 25), bias_nm=(-10, 10), corners=2)},
    ],
)
def test_the_gradient_is_that_of_the_value(surrogate: Surrogate, settings: dict[str, Any]) -> None:
    problem = Problem(surrogate, objectives.by_name("bayer"), Parameterisation(120.0), free=FREE, **settings)
    latent, distance, step = random_latents(3, seed=5), np.array([1.6, 2.0, 2.6]), 0.02
    score = problem.evaluate(latent, 8.0, conditions={"distance_um": distance})
    ahead, behind = (
        problem.score(latent, 8.0, conditions={"distance_um": distance + sign * step}).value for sign in (1, -1)
    )
    np.testing.assert_allclose(score.conditions["distance_um"], (ahead - behind) / (2 * step), rtol=0.05, atol=1e-4)
    np.testing.assert_allclose(
        score.value, problem.score(latent, 8.0, conditions={"distance_um": distance}).value, rtol=1e-5
    )


def test_values_of_each_row_reach_the_model(problem: Problem, direct: Direct) -> None:
    latent, distance = random_latents(3), np.array([1.5, 2.0, 2.75])
    found = problem.score(latent, conditions={"distance_um": distance})
    close(found.spectra.values, direct.spectra(problem.parameterisation.binary(latent), distance_um=distance))
    assert problem.score(latent).conditions == {}


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ({"distance_um": (0.5, 3)}, "distance_um must lie between 1 and 3 um, got 0.5"),
        ({"distance_um": (1, 3.5)}, "distance_um must lie between 1 and 3 um, got 3.5"),
        ({"distance_um": (2, 2)}, "distance_um must have bounds that ascend, got 2 and 2"),
        ({"distance_um": (1, 2, 3)}, r"distance_um must have two bounds, \(low, high\), got \(1, 2, 3\)"),
        ({"distance_um": 2}, r"distance_um must have two bounds, \(low, high\), got 2"),
        ({"distance_um": (np.nan, 2)}, "distance_um must lie between 1 and 3 um, got nan"),
        ({"incidence": (0, 1)}, "incidence is a vector of 2 numbers, and must be fixed for all structures"),
        (
            {"thickness_um": (0.5, 1)},
            "thickness_um is no condition of this model, which takes distance_um between 1 and",
        ),
    ],
)
def test_bounds_that_are_none(surrogate: Surrogate, free: Any, message: str) -> None:
    with pytest.raises(InvalidCondition, match=f"^{message}"):
        Problem(surrogate, objectives.by_name("bayer"), Parameterisation(120.0), free=free)


def test_what_is_fixed_is_not_free(surrogate: Surrogate) -> None:
    fixed = FixedConditions(surrogate, {"distance_um": 2, "incidence": (3, -4.5)})
    with pytest.raises(InvalidCondition, match=r"^distance_um is no condition of this model, which takes none$"):
        Problem(fixed, objectives.by_name("bayer"), Parameterisation(120.0), free=FREE)
    other = FixedConditions(surrogate, {"incidence": (3, -4.5)})
    assert Problem(other, objectives.by_name("bayer"), Parameterisation(120.0), free=FREE).free == FREE


# Steps


def test_conditions_reach_their_bounds_and_leave_them() -> None:
    batch = BatchConditions(CONDITIONS, FREE, None, 4)
    close(batch.ask()[:, 0], 1.5 + 1.25 * np.array([0.125, 0.375, 0.625, 0.875]))
    up = np.array([1.0, 1.0, -1.0, -1.0])
    seen = []
    for sign in [1] * 80 + [-1] * 20:
        seen.append(batch.ask())
        batch.tell(np.zeros(4), {"distance_um": sign * up})
    np.testing.assert_array_equal(seen[79][:, 0], [2.75, 2.75, 1.5, 1.5])
    assert ((seen[99][:, 0] > 1.5) & (seen[99][:, 0] < 2.75)).all()
    assert np.all([(one >= 1.5) & (one <= 2.75) for one in seen])
    assert np.abs(np.diff(np.array(seen), axis=0)).max() <= 0.03 * 1.25


def test_two_free_conditions_are_spread_in_different_orders() -> None:
    thickness = DISTANCE.model_copy(update={"name": "thickness_um"})
    batch = BatchConditions([DISTANCE, thickness], FREE | {"thickness_um": (1.0, 2.0)}, None, 8)
    distances, thicknesses = batch.named(batch.ask()).values()
    assert (np.diff(distances) > 0).all()
    close(np.sort(thicknesses), 1 + (np.arange(8) + 0.5) / 8)
    assert not (np.diff(thicknesses) > 0).all()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"distance_um": [1.25, 2]}, "distance_um must start between its bounds 1.5 and 2.75, got 1.25"),
        ({"distance_um": [1.75, 2, 2]}, "distance_um must be a number, or "),
        ({"incidence": (0, 0)}, "incidence is a vector of 2 numbers"),
        ({"thickness_um": 1}, "thickness_um is no condition of this model"),
    ],
)
def test_starting_values_that_are_none(problem: Problem, start: Any, message: str) -> None:
    with pytest.raises(InvalidCondition, match=f"^{message}"):
        run(problem, by_name("adam", starts=2), 3, conditions=start, progress=False)


# Runs


def assert_same(one: Result, other: Result) -> None:
    for name in ("structure", "value", "latent", "row", "found", "trajectory"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    np.testing.assert_array_equal(one.conditions["distance_um"], other.conditions["distance_um"])
    np.testing.assert_array_equal(one.history.conditions["distance_um"], other.history.conditions["distance_um"])
    np.testing.assert_array_equal(one.history.value, other.history.value)


@pytest.mark.parametrize(
    "settings", [{"radius_nm": 120.0}, {"radius_nm": 120.0, "min_feature_nm": 78.0}], ids=["plain", "refined"]
)
def test_a_run_resumes_exactly_and_gains(
    surrogate: Surrogate, direct: Direct, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """With a minimum feature size, the last steps refine binary structures, each at the distance found for it."""
    problem = Problem(surrogate, objectives.by_name("bayer"), Parameterisation(**settings), free=FREE)

    def optimise(**more: Any) -> Result:
        return run(problem, by_name("adam", starts=3, seed=3), 20, check_every=3, progress=False, **more)

    seen: list[Progress] = []
    whole = optimise(callback=seen.append)
    for step in (5, 18):
        with pytest.raises(KeyboardInterrupt):
            optimise(checkpoint=tmp_path / "run.npz", callback=stop_after(step))
    assert_same(optimise(checkpoint=tmp_path / "run.npz"), whole)

    distance, path = whole.conditions["distance_um"], whole.history.conditions["distance_um"]
    close(whole.spectra.values, direct.spectra(whole.structure, distance_um=distance))
    assert path.shape == whole.history.value.shape
    assert ((path >= 1.5) & (path <= 2.75)).all()
    close(path[0], 1.5 + 1.25 * (np.arange(3) + 0.5) / 3)
    assert (path[5] != path[0]).all()
    np.testing.assert_array_equal(distance, path[whole.found, whole.row])
    assert whole.history.value[1:].max() > whole.history.value[0].max() + 1e-4
    np.testing.assert_array_equal(seen[-1].conditions["distance_um"][whole.row], distance)

    other = Problem(surrogate, problem.objective, problem.parameterisation, free={"distance_um": (1.5, 2.5)})
    with pytest.raises(ValueError, match=r"problem\.free\.distance_um was \[1\.5, 2\.75\], is \[1\.5, 2\.5\]"):
        run(other, by_name("adam", 3, 3), 20, check_every=3, checkpoint=tmp_path / "run.npz", progress=False)


def test_the_distance_is_worth_something(problem: Problem, surrogate: Surrogate) -> None:
    """Against the same starts, each at the distance that it starts from."""
    latents = random_latents(3, seed=3)
    start = {"distance_um": [1.7, 2.0, 2.4]}
    free = run(problem, Adam(latents), 30, conditions=start, progress=False)
    plain = Problem(surrogate, problem.objective, problem.parameterisation)
    fixed = run(plain, Adam(latents), 30, conditions=start, progress=False)
    np.testing.assert_array_equal(fixed.conditions["distance_um"], np.array(start["distance_um"])[fixed.row])
    assert (fixed.history.conditions["distance_um"] == start["distance_um"]).all()
    assert free.value.mean() > fixed.value.mean()


@pytest.mark.parametrize("name", NAMES)
def test_optimisers_that_can_and_those_that_cannot(problem: Problem, name: str) -> None:
    can = name in STEPPING.replace(",", "").split()
    assert varies_conditions(find(name, 4)) == can
    if can:
        result = run(problem, by_name(name, starts=2), 3, progress=False)
        assert result.conditions["distance_um"].shape == (2,)
    elif name != "invrs":  # compiles for long
        small: dict[str, Any] = {} if name == "lbfgs" else {"points": 4}
        with pytest.raises(ValueError, match="free conditions need an optimiser of single gradient steps, adam, "):
            run(problem, by_name(name, starts=4, **small), 3, progress=False)


def test_structures_are_refined_and_polished_at_their_distances(
    problem: Problem, surrogate: Surrogate, direct: Direct
) -> None:
    structure, distance = Parameterisation(100.0).binary(random_latents(2, seed=2)), np.array([1.75, 2.5])
    refined = refine(surrogate, problem.objective, structure, 78, steps=4, conditions={"distance_um": distance})
    close(refined.spectra.values, direct.spectra(refined.structure, distance_um=distance))
    plain = Problem(surrogate, problem.objective, Parameterisation(100.0))
    polished = polish(plain, structure, 5, conditions={"distance_um": distance}, progress=False)
    at = polished.conditions["distance_um"]
    np.testing.assert_array_equal(at, distance[polished.row])
    close(polished.spectra.values, direct.spectra(polished.structure, distance_um=at))


def test_designs_of_a_result_are_predicted_at_their_distances(
    surrogate: Surrogate, direct: Direct, tmp_path: Path
) -> None:
    problem = Problem(surrogate, objectives.by_name("bayer"), Parameterisation(80.0), robust_delta=0.1, free=FREE)
    result = run(problem, by_name("adam", starts=2), 4, progress=False)
    better = mended(result, problem, 100)
    close(better.spectra.values, direct.spectra(better.structure, distance_um=better.conditions["distance_um"]))
    report = write_designs(
        tmp_path / "run", result, surrogate, objective="bayer", shifted=shifted_edges(problem, result)
    )
    latents = np.asarray(result.latent, np.float64)
    eroded = problem.parameterisation.density(latents, np.inf, 0.6)
    spectra = surrogate.predict(eroded, distance_um=result.conditions["distance_um"])
    for design, value in zip(report["designs"], spectra.min_efficiency(), strict=True):
        assert design["eroded"]["predicted"]["min_efficiency"] == pytest.approx(value, abs=1e-5)
    axes = draw_history(result.history, objective="bayer").axes
    assert [one.get_ylabel() for one in axes] == ["objective bayer", "distance_um"]
    assert "distance_um" in result._repr_html_()


# The command


def test_the_command(conditioned: RunningServer, metaspec: Command, direct: Direct, tmp_path: Path) -> None:
    """Designs, report, page, layouts, history, what is refused, polishing and verification."""
    out, url = tmp_path / "run", ["--url", conditioned.url]
    at = ["--condition", "incidence=3,-4.5"]
    status, printed, errors = metaspec("optimise", "--out", out, *RUN, *at, *url)
    assert (status, errors) == (0, "")
    assert ", incidence (3, -4.5), distance_um free from 1.5 to 2.75\n" in printed
    assert " at distance_um " in printed
    assert "distance_um" in printed.partition("Ranked by")[2]

    report, designs = read_report(out), np.load(out / "designs.npy")
    assert report.conditions == {"incidence": [3.0, -4.5]}
    assert report.settings["free"] == {"distance_um": [1.5, 2.75]}
    own = [design.conditions or {} for design in report.designs]
    distance = np.array([one["distance_um"] for one in own])
    assert len(set(distance)) == 3
    close(np.load(out / "spectra.npy"), direct.spectra(designs, distance_um=distance, incidence=(3, -4.5)))
    assert report.process == Process()
    assert report.process_of(report.designs[1]) == Process(distance_um=distance[1])
    assert report.conditions_of(report.designs[1]) == {"incidence": [3.0, -4.5], "distance_um": distance[1]}

    page = (out / "report.html").read_text(encoding="utf-8")
    assert f'<td data-label="distance_um">{distance[0]:.4g}</td>' in page
    assert f"<dt>conditions</dt><dd>distance_um {distance[0]:g}</dd>" in page
    assert f"&amp;incidence=3.0,-4.5&amp;distance_um={own[0]['distance_um']!r}#structure=" in page
    assert "Each design has its own value of distance_um, at which its efficiencies are." in page
    for name in ("design_001.gds", "contours_001.gds"):
        (cell,) = gdstk.read_gds(out / name).top_level()
        assert isinstance(cell, gdstk.Cell)
        notes = [label.text for label in cell.labels if label.origin == (0, 0)]
        assert notes == [f"incidence (3, -4.5), distance_um {distance[1]:g}"]
    with (out / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = [float(row["distance_um"]) for row in rows if row["step"] == "0"]
    close(first, 1.5 + 1.25 * (np.arange(3) + 0.5) / 3)
    assert figures(out).ranked_by == "objective bayer, at incidence (3, -4.5), distance_um free"

    status, printed, _ = metaspec("optimise", "--out", out, *RUN, *at, *url)
    assert (status, "nothing to do" in printed) == (0, True)
    status, _, errors = metaspec("optimise", "--out", out, *RUN[:-1], "distance_um:1.5:2.5", *at, *url)
    assert status == 2
    assert "other settings: free distance_um 1.5, 2.75 (now distance_um 1.5, 2.5)" in errors

    status, printed, errors = metaspec("polish", out, "--source", "surrogate", "--best", 2, "--steps", 2, *url)
    assert (status, errors) == (0, "")
    assert ", each at its distance_um\n" in printed
    polished = read_report(out / "polished")
    for design in polished.designs:
        assert design.unpolished is not None
        assert design.conditions == own[design.unpolished.rank]
    at_found = [(design.conditions or {})["distance_um"] for design in polished.designs]
    expected = direct.spectra(np.load(out / "polished" / "designs.npy"), distance_um=at_found, incidence=(3, -4.5))
    close(np.load(out / "polished" / "spectra.npy"), expected)


def test_given_structures_start_at_the_default(
    conditioned: RunningServer, metaspec: Command, tmp_path: Path, structures: Array
) -> None:
    np.save(tmp_path / "a.npy", structures[:1])
    out, start = tmp_path / "run", ["--start", tmp_path / "a.npy", "--steps", 2, "--starts", 3]
    status, _, errors = metaspec(
        "optimise", "--out", out, *start, "--free", "distance_um:1:2.25", "--url", conditioned.url
    )
    assert (status, errors) == (0, "")
    with (out / "history.csv").open(newline="") as file:
        first = [float(row["distance_um"]) for row in csv.DictReader(file) if row["step"] == "0"]
    close(first, np.array([2.25, 1 + 1.25 / 2, 1 + 1.25 * 5 / 6]))  # of the default, 2.5, the nearest bound


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--free", "distance_um:0.5:3"], "distance_um must lie between 1 and 3 um, got 0.5"),
        (
            ["--free", "thickness_um:1:2"],
            "thickness_um is no condition of this model, which takes distance_um between 1",
        ),
        (["--free", "incidence:1:2"], "incidence is a vector of 2 numbers, and must be fixed for all structures"),
        (["--free", "distance_um:1:3", "--distance-um", 2], "--free distance_um: it has a fixed value, too"),
        (
            ["--free", "distance_um:1:3", "--condition", "distance_um=2"],
            "--free distance_um: it has a fixed value, too",
        ),
        (
            ["--free", "distance_um:1:3", "--optimiser", "cmaes"],
            "--free needs an optimiser of single gradient steps, adam, torch or optax, got --optimiser cmaes",
        ),
        (["--free", "distance_um:1:3", "--optimiser", "lbfgs"], "--free needs an optimiser of single gradient steps"),
    ],
)
def test_the_command_refuses_before_it_writes(
    conditioned: RunningServer, metaspec: Command, tmp_path: Path, given: list[Any], message: str
) -> None:
    out = tmp_path / "run"
    status, printed, errors = metaspec("optimise", "--out", out, *given, "--url", conditioned.url)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"metaspec: {message}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["distance_um"], "--free must be NAME:LOW:HIGH, such as distance_um:1.0:3.0, got 'distance_um'"),
        (["distance_um:1"], "--free must be NAME:LOW:HIGH"),
        (["distance_um:1:2:3"], "--free must be NAME:LOW:HIGH"),
        (["distance_um:1:x"], "--free must be NAME:LOW:HIGH"),
        (["distance_um:1:inf"], "--free must be NAME:LOW:HIGH"),
        ([":1:2"], "--free must be NAME:LOW:HIGH"),
        (["distance_um:3:1"], "--free distance_um: bounds must ascend, got 3 and 1"),
        (["distance_um:1:2", "distance_um:1:3"], "--free distance_um is given twice"),
    ],
)
def test_what_are_no_bounds(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read_free(given, ())


def test_bounds_as_text() -> None:
    assert read_free(["distance_um:1.0:3", " thickness_um : .5:6e-1"], ()) == {
        "distance_um": (1.0, 3.0),
        "thickness_um": (0.5, 0.6),
    }
    assert read_free(None, ()) == {}


# On the solver


def folder_of_two(path: Path, structures: Array, process: Process, distances: list[float]) -> Path:
    """A run folder whose designs have distances of their own."""
    predicted = np.full((2, 4, len(process.wavelengths_nm)), 0.25, np.float32)
    folder = write_run_folder(path, structures[:2], predicted, process=process)
    report = json.loads((folder / "report.json").read_text())
    for design, distance in zip(report["designs"], distances, strict=True):
        design["conditions"] = {DISTANCE.name: distance}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.mark.slow
def test_polishing_on_the_solver(metaspec: Command, tmp_path: Path, structures: Array) -> None:
    thin = Process(thickness_um=0.1, wavelength_step_nm=5)
    folder = folder_of_two(tmp_path / "run", structures, thin, [1.25, 2.0])
    status, printed, errors = metaspec("polish", folder, "--cells", 24, "--steps", 1, "--workers", 1)
    assert (status, errors) == (0, "")
    assert ", each at its distance_um\n" in printed
    report = read_report(folder / "polished")
    assert report.process == thin
    with SolverSource(thin, cells=24, workers=1, progress=False) as source:
        before = source.predict(structures[:2], distance_um=[1.25, 2.0]).min_efficiency()
    for design in report.designs:
        assert design.unpolished is not None
        rank = design.unpolished.rank
        assert design.conditions == {DISTANCE.name: [1.25, 2.0][rank]}
        assert design.unpolished.simulated.min_efficiency == pytest.approx(before[rank], abs=1e-6)


@pytest.mark.slow
def test_the_solver_varies_the_distance(tmp_path: Path) -> None:
    """Its derivative is exact, so a run on it takes the same argument."""
    thin = Process(thickness_um=0.1, wavelength_step_nm=50)
    with SolverSource(thin, cells=24, workers=1, progress=False) as source:
        problem = Problem(source, objectives.by_name("red"), Parameterisation(120.0), free={"distance_um": (1.0, 4.0)})
        result = run(problem, by_name("adam", starts=2), 3, progress=False)
        again = source.predict(result.structure, distance_um=result.conditions["distance_um"])
    close(result.spectra.values, again.values)


def test_designs_for_the_solver(tmp_path: Path, structures: Array) -> None:
    process = Process(wavelength_step_nm=5)
    designs = read_designs(folder_of_two(tmp_path / "run", structures, process, [1.25, 2.0]))
    assert [designs.report.process_of(one).distance_um for one in designs.report.designs] == [1.25, 2.0]
