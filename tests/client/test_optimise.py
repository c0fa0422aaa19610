"""Inverse design: problems, every optimiser, the loop, and checkpoints, against a running server."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch

from metaspec import AsyncSurrogate, MetaSpecError, ServerUnreachable, Spectra, Surrogate
from metaspec.objectives import MinEfficiency
from metaspec.optimise import (
    NAMES,
    Adam,
    ControlPoints,
    Optimiser,
    Problem,
    Progress,
    Refinement,
    Result,
    by_name,
    refine,
    run,
)
from metaspec.optimise.optax import Optax
from metaspec.optimise.torch import Torch
from metaspec.topology import Parameterisation, feature_size, random_latents
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.process import Process
from metaspec_server.settings import bundled_repository
from metaspec_testing.scripted import METADATA, scripted
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import Array, small_gradient_model, small_model, write_repository

SETTINGS: dict[str, dict[str, Any]] = {  # small and quick ones
    "adam": {"learning_rate": 0.05},
    "lbfgs": {},
    "torch": {"algorithm": "AdamW", "lr": 0.05},
    "optax": {"algorithm": "lion", "learning_rate": 0.05},
    "invrs": {},
    "cmaes": {"points": 6},
    "de": {"points": 6},
    "ga": {"points": 6},
    "botorch": {"points": 4, "initial": 2},
}
STEPS = dict.fromkeys(NAMES, 8) | {"botorch": 4, "cmaes": 12}  # a Gaussian process takes a second, CMA-ES gains late
WITHOUT_GRADIENTS = ("cmaes", "de", "ga", "botorch")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """The matrices are small: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def problem(surrogate: Surrogate) -> Problem:
    return Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0))


class Stop(Exception):
    pass


def stop_after(step: int, error: BaseException | None = None) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise error or Stop

    return callback


def assert_same(one: Result, other: Result) -> None:
    for name in ("structure", "value", "latent", "row", "found", "trajectory"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    for name in ("beta", "value", "checked", "binary_value"):
        np.testing.assert_array_equal(getattr(one.history, name), getattr(other.history, name), name)
    np.testing.assert_array_equal(one.spectra.values, other.spectra.values)
    assert (one.structures_evaluated, one.server_calls) == (other.structures_evaluated, other.server_calls)


# Problems


@pytest.mark.parametrize("robust", [{}, {"robust_delta": 0.1}, {"robust_delta": 0.1, "robust": "mean"}])
def test_the_gradient_is_that_of_the_value(surrogate: Surrogate, robust: dict[str, Any]) -> None:
    """Against finite differences along a random direction; the server computes in float32, so the step is large."""
    problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0, "diagonal"), **robust)
    latent = random_latents(3, seed=5)
    direction = random_latents(3, seed=6) - 0.5
    value, gradient, *_ = problem.evaluate(latent, 4.0)
    assert gradient is not None
    ahead, behind = (problem.score(latent + step * direction, 4.0).value for step in (0.002, -0.002))
    expected: Array = (ahead - behind) / 0.004
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2)), expected, rtol=0.03)
    np.testing.assert_allclose(value, problem.score(latent, 4.0).value)


def test_variants_are_eroded_and_dilated(surrogate: Surrogate) -> None:
    objective, parameterisation, latent = MinEfficiency(), Parameterisation(80.0), random_latents(4)
    structures = [parameterisation.density(latent, np.inf, eta) for eta in (0.5, 0.6, 0.4)]
    assert structures[1].sum() < structures[0].sum() < structures[2].sum()
    values = np.array([objective(surrogate.predict(each))[0] for each in structures])
    worst = Problem(surrogate, objective, parameterisation, robust_delta=0.1).score(latent)
    mean = Problem(surrogate, objective, parameterisation, robust_delta=0.1, robust="mean").score(latent)
    np.testing.assert_allclose(worst.value, values.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean.value, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(worst.spectra.values, surrogate.predict(structures[0]).values)


def test_all_starts_and_variants_are_two_requests(surrogate: Surrogate) -> None:
    problem = Problem(surrogate, MinEfficiency(), Parameterisation(80.0), robust_delta=0.1)
    before = surrogate.sent
    problem.evaluate(random_latents(4), 8.0)
    sent = surrogate.sent
    # 12 predictions, and gradients of the worst variant of each start alone.
    assert (sent.requests - before.requests, sent.structures - before.structures) == (2, 12 + 4)
    problem.score(random_latents(4), 8.0)
    assert (surrogate.sent.requests - sent.requests, surrogate.sent.structures - sent.structures) == (1, 12)
    assert (problem.server_calls, problem.structures_evaluated) == (3, 24)


def test_problems_refuse_bad_settings(surrogate: Surrogate, problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"robust_delta must be at least 0 and below 0.5, got 0.7"):
        Problem(surrogate, MinEfficiency(), Parameterisation(80.0), robust_delta=0.7)
    with pytest.raises(ValueError, match="robust must be 'worst' or 'mean', got 'best'"):
        Problem(surrogate, MinEfficiency(), Parameterisation(80.0), robust="best")
    before = surrogate.sent
    with pytest.raises(ValueError, match="beta must be positive and finite for a gradient"):
        problem.evaluate(random_latents(1), np.inf)
    assert surrogate.sent == before


@pytest.mark.parametrize("robust_delta", [0.0, 0.1])
@pytest.mark.parametrize(
    ("returned", "kind", "match"),
    [
        (np.zeros(2), TypeError, r"must return N values and N derivatives .*, got ndarray of shape \(2,\)"),
        ((0.0, np.zeros((2, 4, 301))), ValueError, r"one value for each of 2 structures, got shape \(\)"),
        ((np.zeros(3), np.zeros((2, 4, 301))), ValueError, r"one value for each of 2 structures, got shape \(3,\)"),
    ],
)
def test_objectives_of_ones_own_return_values_and_derivatives(
    surrogate: Surrogate, robust_delta: float, returned: Any, kind: type[Exception], match: str
) -> None:
    latent = random_latents(2)
    problem = Problem(surrogate, lambda spectra: returned, Parameterisation(80.0), robust_delta=robust_delta)
    for evaluate in (lambda: problem.evaluate(latent, 4.0), lambda: problem.score(latent), lambda: problem.settings(2)):
        with pytest.raises(kind, match=match):
            evaluate()


def test_an_asynchronous_surrogate_is_no_source() -> None:
    message = r"source must be a Surrogate or another Source, got <AsyncSurrogate .*>, whose methods must be awaited"
    for use in (
        lambda source: Problem(source, MinEfficiency(), Parameterisation(80.0)),
        lambda source: refine(source, MinEfficiency(), np.zeros((1, 128, 128)), 78),
    ):
        with pytest.raises(TypeError, match=message):
            use(AsyncSurrogate())


def test_lengths_must_be_those_of_the_models_device() -> None:
    process = Process(period_um=1.6)
    with scripted() as server, Surrogate(server.url) as surrogate:
        server.describe = lambda path: (
            METADATA | {"parameters": METADATA["parameters"] | {"process": process.model_dump()}}
        )
        problem = Problem(surrogate, MinEfficiency(), Parameterisation(80.0))
        with pytest.raises(
            ValueError, match=r"of the parameterisation is 15\.625, but that of the source's process is 12\.5"
        ):
            problem.score(random_latents(1))


# Optimisers


def test_every_optimiser_has_a_test() -> None:
    assert set(SETTINGS) == set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "invrs" else n for n in NAMES])
def test_optimises_and_resumes_exactly(problem: Problem, tmp_path: Path, name: str) -> None:
    """A run that is interrupted twice ends as one that is not, bit for bit, and better than it began."""

    starts = 4 if name in WITHOUT_GRADIENTS else 2

    def optimiser() -> Optimiser:
        return by_name(name, starts, seed=3, **SETTINGS[name])

    def arguments(file: str) -> dict[str, Any]:
        betas = None if name in WITHOUT_GRADIENTS else [8.0] * 5 + [16.0] * 3
        more: dict[str, Any] = {"check_every": 3, "checkpoint": tmp_path / file, "progress": False}
        return {"steps": STEPS[name], "betas": betas, **more}

    whole = run(problem, optimiser(), **arguments("whole.npz"))
    for step in (STEPS[name] // 4, STEPS[name] * 3 // 4):
        with pytest.raises(Stop):
            run(problem, optimiser(), **arguments("parts.npz"), callback=stop_after(step))
    resumed = run(problem, optimiser(), **arguments("parts.npz"))
    assert_same(whole, resumed)
    value = whole.history.value
    assert value.shape == (STEPS[name], starts)
    assert value[1:].max() > value[0].max() + 1e-4
    assert ((whole.latent >= 0) & (whole.latent <= 1)).all()


@pytest.mark.parametrize("name", ["adam", "cmaes", "de", "ga", "botorch"])
def test_another_seed_starts_elsewhere(name: str) -> None:
    asked = [by_name(name, starts=4, seed=seed, shape=(16, 16), **SETTINGS[name]).ask() for seed in (3, 3, 4)]
    np.testing.assert_array_equal(asked[0], asked[1])
    assert not np.array_equal(asked[0], asked[2])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_GRADIENTS])
def test_gradient_methods_keep_the_box_and_find_the_optimum(name: str) -> None:
    """Of a concave function whose maximum lies outside the box for some pixels."""
    settings: dict[str, Any] = {"algorithm": "lbfgsb"} if name == "invrs" else {}
    optimiser = by_name(name, starts=3, shape=(16, 16), **settings)
    target = np.random.default_rng(1).uniform(-0.5, 1.5, (3, 16, 16))
    for _ in range(100):
        latent = optimiser.ask()
        assert latent.min() >= 0
        assert latent.max() <= 1
        optimiser.tell(-((latent - target) ** 2).sum(axis=(1, 2)), -2 * (latent - target))
    np.testing.assert_allclose(optimiser.ask(), np.clip(target, 0, 1), atol=0.02)


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_methods_without_gradients_leave_random_numbers_alone(name: str) -> None:
    """They draw from their own seed only: not from numpy's or torch's global generators, nor do they change these."""
    optimisers = [by_name(name, starts=4, shape=(16, 16), **SETTINGS[name]) for _ in range(2)]
    for step in range(3):
        first = optimisers[0].ask()
        np.random.seed(step)  # noqa: NPY002
        torch.manual_seed(step)
        expected = np.random.random(), torch.rand(1)  # noqa: NPY002
        np.random.seed(step)  # noqa: NPY002
        torch.manual_seed(step)
        np.testing.assert_array_equal(optimisers[1].ask(), first)
        for optimiser in optimisers:
            optimiser.tell(-((first - 0.8) ** 2).mean(axis=(1, 2)))
        assert (np.random.random(), torch.rand(1)) == expected  # noqa: NPY002


def test_cmaes_starts_again_when_it_has_converged() -> None:
    optimiser = by_name("cmaes", starts=8, points=4, shape=(16, 16))
    spreads = []
    for _ in range(400):
        latent = optimiser.ask()
        spreads.append(latent.std(axis=0).mean())
        optimiser.tell(-((latent - 0.6) ** 2).sum(axis=(1, 2)))
    smallest = int(np.argmin(spreads))
    assert spreads[smallest] < 1e-3
    assert max(spreads[smallest:]) > 0.05


def test_threads_of_lbfgs_end_with_it() -> None:
    before = threading.active_count()
    optimiser = by_name("lbfgs", starts=3, shape=(16, 16))
    optimiser.ask()
    optimiser.tell(np.zeros(3), np.ones((3, 16, 16)))
    assert threading.active_count() == before + 3
    optimiser.restart()
    assert threading.active_count() == before + 3
    del optimiser
    assert threading.active_count() == before


def test_lbfgs_restarts_where_it_was_best() -> None:
    optimiser = by_name("lbfgs", starts=2, shape=(16, 16))
    start = optimiser.ask()
    optimiser.tell(np.array([1.0, 1.0]), np.ones((2, 16, 16)))
    second = optimiser.ask()
    optimiser.tell(np.array([2.0, 0.5]), np.ones((2, 16, 16)))
    optimiser.restart()
    np.testing.assert_array_equal(optimiser.ask(), [second[0], start[1]])


@pytest.mark.parametrize(
    ("value", "gradient", "match"),
    [
        (np.zeros(2), np.zeros((3, 8, 8)), r"value must be finite numbers of shape \(3,\)"),
        (np.array([0, np.nan, 0]), np.zeros((3, 8, 8)), r"value must be finite numbers of shape \(3,\)"),
        (np.zeros(3), None, r"gradient must be finite numbers of shape \(3, 8, 8\), got none"),
        (np.zeros(3), np.full((3, 8, 8), np.inf), r"gradient must be finite numbers of shape \(3, 8, 8\)"),
    ],
)
def test_tell_refuses_what_is_no_answer(value: Array, gradient: Array | None, match: str) -> None:
    optimiser = Adam(np.full((3, 8, 8), 0.5))
    asked = optimiser.ask()
    with pytest.raises(ValueError, match=match):
        optimiser.tell(value, gradient)
    np.testing.assert_array_equal(optimiser.ask(), asked)
    optimiser.tell(np.zeros(3), np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="ask before you tell"):
        optimiser.tell(np.zeros(3), np.zeros((3, 8, 8)))


@pytest.mark.parametrize(("name", "fewest"), [("adam", 1), ("cmaes", 2), ("de", 4), ("ga", 2), ("botorch", 1)])
def test_too_few_starts(name: str, fewest: int) -> None:
    for starts in (fewest - 1, -1, 2.5, True):
        with pytest.raises(ValueError, match=f'^starts must be a whole number of at least {fewest} for "{name}", got '):
            by_name(name, starts, shape=(16, 16))  # type: ignore[arg-type]
    optimiser = by_name(name, fewest, shape=(16, 16), **SETTINGS[name])
    for _ in range(3):
        latent = optimiser.ask()
        optimiser.tell(-((latent - 0.5) ** 2).sum(axis=(1, 2)), 1 - 2 * latent)
    if name not in ("adam", "botorch"):
        with pytest.raises(ValueError, match=f"candidates must be at least {fewest}"):
            type(optimiser.optimiser)(fewest - 1)  # type: ignore[attr-defined]


def test_starts_must_be_latents() -> None:
    with pytest.raises(ValueError, match=r"start must be latents \(M, y, x\), got shape \(8, 8\)"):
        Adam(np.zeros((8, 8)))
    with pytest.raises(ValueError, match="start must lie between 0 and 1, got 0 to 2"):
        Adam(np.array([[[0.0, 2.0]]]))


def test_names_and_algorithms() -> None:
    with pytest.raises(ValueError, match=r"optimiser must be one of adam, lbfgs, .*, got 'newton'"):
        by_name("newton")
    with pytest.raises(ValueError, match=r"algorithm must be a class of torch.optim other than LBFGS, got 'LBFGS'"):
        by_name("torch", shape=(8, 8), algorithm="LBFGS")
    with pytest.raises(ValueError, match="algorithm must be a function of optax, got 'nothing'"):
        by_name("optax", shape=(8, 8), algorithm="nothing")
    with pytest.raises(ValueError, match="algorithm must be a function of invrs_opt, got 'nothing'"):
        by_name("invrs", shape=(8, 8), algorithm="nothing")


def test_algorithms_of_ones_own() -> None:
    start = np.full((2, 8, 8), 0.5)
    for optimiser in (Torch(start, lambda p: torch.optim.SGD(p, lr=0.1)), Optax(start, optax.chain(optax.sgd(0.1)))):
        optimiser.ask()
        optimiser.tell(np.zeros(2), np.ones((2, 8, 8)))
        np.testing.assert_allclose(optimiser.ask(), 0.6, rtol=1e-6)


def test_a_missing_package_says_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaspec.optimise.population", None)
    with pytest.raises(ImportError, match=r'the optimiser "cmaes" needs cma: pip install "metaspec\[optimise\]"'):
        by_name("cmaes")


# Control points


class Fixed(Optimiser):
    """Asks for the same points for ever, and remembers the gradient."""

    def __init__(self, points: Array) -> None:
        self.points, self.settings = points, {"name": "fixed"}

    def _propose(self) -> Array:
        return self.points

    def _learn(self, value: Array, gradient: Array) -> None:
        self.gradient = gradient

    def state(self) -> dict[str, Array]:
        return {}

    def restore(self, state: dict[str, Array]) -> None:
        pass


def test_control_points_are_periodic_splines() -> None:
    points = np.random.default_rng(0).random((2, 8, 4))
    latent = ControlPoints(Fixed(points), (64, 64)).ask()
    assert latent.shape == (2, 64, 64)
    assert ((latent >= 0) & (latent <= 1)).all()
    np.testing.assert_allclose(ControlPoints(Fixed(np.ones((1, 4, 4))), (64, 64)).ask(), 1)
    rolled = ControlPoints(Fixed(np.roll(points, (1, 1), (1, 2))), (64, 64)).ask()
    np.testing.assert_allclose(rolled, np.roll(latent, (8, 16), (1, 2)), atol=1e-12)


def test_control_points_pull_gradients_back() -> None:
    """The adjoint: <gradient, latent> = <pulled back, points>."""
    points, gradient = np.random.default_rng(0).random((2, 6, 6)), np.random.default_rng(1).normal(size=(2, 32, 32))
    inner = Fixed(points)
    optimiser = ControlPoints(inner, (32, 32))
    latent = optimiser.ask()
    optimiser.tell(np.zeros(2), gradient)
    np.testing.assert_allclose((inner.gradient * points).sum(), (gradient * latent).sum())


def test_too_few_control_points() -> None:
    with pytest.raises(ValueError, match=r"points must be from 4 to as many as the \(16, 16\) pixels .*, got \(3, 3\)"):
        by_name("cmaes", points=3, shape=(16, 16))


# The loop


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal, also where the tests run in the background and would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_results_are_what_the_server_says_of_binary_structures(surrogate: Surrogate, problem: Problem) -> None:
    seen: list[Progress] = []
    result = run(problem, Adam(random_latents(4), 0.05), 11, check_every=4, callback=seen.append, progress=False)
    assert result.structure.dtype == np.uint8
    assert np.isin(result.structure, (0, 1)).all()
    np.testing.assert_array_equal(problem.parameterisation.binary(result.latent.astype(float)), result.structure)
    spectra = surrogate.predict(result.structure)
    np.testing.assert_allclose(result.spectra.values, spectra.values, atol=1e-6)
    np.testing.assert_allclose(result.value, np.asarray(problem.objective(spectra)[0]), rtol=1e-5)
    assert (np.diff(result.value) <= 0).all()
    assert sorted(result.row) == [0, 1, 2, 3]
    np.testing.assert_array_equal(result.history.checked, [0, 4, 8, 10])
    np.testing.assert_array_equal(result.value, result.history.binary_value.max(axis=0)[result.row])
    best = result.history.checked[result.history.binary_value.argmax(axis=0)]
    np.testing.assert_array_equal(result.found, best[result.row])
    visited = result.trajectory.reshape(4, 4, 128, 128)
    for design, row, found in zip(result.structure, result.row, result.found, strict=True):
        np.testing.assert_array_equal(visited[list(result.history.checked).index(found), row], design)
    assert (result.structures_evaluated, result.server_calls) == (4 * (11 + 4), 2 * 11 + 4)
    assert [progress.step for progress in seen] == list(range(1, 12))
    np.testing.assert_array_equal(np.sort(seen[-1].best)[::-1], result.value)


def test_methods_without_gradients_ask_for_no_gradients(surrogate: Surrogate, problem: Problem) -> None:
    before = surrogate.sent
    result = run(problem, by_name("de", starts=5, points=4), 6, progress=False)
    assert np.isinf(result.history.beta).all()
    sent = surrogate.sent
    # Structures are binary anyway: nothing is evaluated twice.
    assert (sent.requests - before.requests, sent.structures - before.structures) == (6, 30)
    assert result.value[0] == result.history.value[[0, 5]].max()


def test_ctrl_c_leaves_a_checkpoint(problem: Problem, tmp_path: Path, interruptible: None) -> None:
    """A real signal, while the run waits for the server or wherever it is."""

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    arguments: dict[str, Any] = {"steps": 8, "checkpoint": tmp_path / "run" / "checkpoint.npz", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        run(problem, Adam(random_latents(2), 0.05), **arguments, callback=interrupt)
    steps: list[int] = []
    resumed = run(
        problem, Adam(random_latents(2), 0.05), **arguments, callback=lambda progress: steps.append(progress.step)
    )
    assert steps[0] in (6, 7)
    assert steps[-1] == 8
    assert_same(resumed, run(problem, Adam(random_latents(2), 0.05), 8, progress=False))
    assert os.listdir(tmp_path / "run") == ["checkpoint.npz"]


def test_a_server_that_is_gone_leaves_a_checkpoint(small_repository: Path, problem: Problem, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.npz"
    with (
        running_server("--repository", str(small_repository)) as server,
        Surrogate(server.url, retries=0, progress=False) as surrogate,
    ):
        gone = Problem(surrogate, problem.objective, problem.parameterisation)

        def leave(progress: Progress) -> None:
            if progress.step == 3:
                server.process.kill()
                server.process.wait()

        with pytest.raises(ServerUnreachable):
            run(gone, Adam(random_latents(2)), 6, checkpoint=file, callback=leave, progress=False)
    steps: list[int] = []
    resumed = run(
        problem,
        Adam(random_latents(2)),
        6,
        checkpoint=file,
        callback=lambda progress: steps.append(progress.step),
        progress=False,
    )
    assert steps == [4, 5, 6]
    assert_same(resumed, run(problem, Adam(random_latents(2)), 6, progress=False))


def test_a_finished_run_is_not_run_again(surrogate: Surrogate, problem: Problem, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 3, "checkpoint": tmp_path / "checkpoint.npz", "progress": False}
    first = run(problem, Adam(random_latents(2)), **arguments)
    before = surrogate.sent
    assert_same(run(problem, Adam(random_latents(2)), **arguments), first)
    assert surrogate.sent == before


def test_values_of_two_versions_of_a_model_are_not_compared(tmp_path: Path) -> None:
    """A new version, published in the middle of a run, begins with what is at hand."""
    for build in (small_model, small_gradient_model):
        write_repository(tmp_path / "models", build(seed=0))
    with (
        running_server("--repository", str(tmp_path / "models"), "--poll-interval", "0.2") as server,
        Surrogate(server.url, progress=False) as surrogate,
    ):
        problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0))

        def publish(progress: Progress) -> None:
            if progress.step == 3:
                for build in (small_gradient_model, small_model):
                    write_repository(tmp_path / "models", build(seed=1), version=2)
                deadline = time.monotonic() + 60
                while surrogate.predict(np.zeros((1, 128, 128))).version != "2":
                    assert time.monotonic() < deadline, "the server does not take up the new version"
                    time.sleep(0.02)

        result = run(problem, Adam(random_latents(2), 0.05), 6, check_every=1, callback=publish, progress=False)
        assert result.spectra.version == "2"
        assert (result.found >= 3).all()
        again = np.asarray(problem.objective(surrogate.predict(result.structure))[0])
        np.testing.assert_allclose(result.value, again, rtol=1e-5)


def test_run_refuses_bad_settings(surrogate: Surrogate, problem: Problem) -> None:
    before = surrogate.sent
    with pytest.raises(ValueError, match="steps and check_every must be at least 1, got 0 and 5"):
        run(problem, Adam(random_latents(1)), 0)
    with pytest.raises(ValueError, match="betas must be 3 positive numbers, one for each step, got"):
        run(problem, Adam(random_latents(1)), 3, betas=[1.0, 2.0])
    with pytest.raises(ValueError, match="betas must be 2 positive numbers, one for each step, got"):
        run(problem, Adam(random_latents(1)), 2, betas=[1.0, -2.0])
    with pytest.raises(ValueError, match="beta must be positive and finite for a gradient"):
        run(problem, Adam(random_latents(1)), 1, betas=[np.inf])
    assert surrogate.sent == before


def test_the_projection_gets_steeper_in_stages(problem: Problem) -> None:
    result = run(problem, Adam(random_latents(1)), 16, check_every=16, progress=False)
    beta = result.history.beta
    assert (beta[0], beta[-1]) == pytest.approx((4, 64))
    np.testing.assert_array_equal(beta[::2], beta[1::2])
    np.testing.assert_allclose(beta[2::2] / beta[:-2:2], 16 ** (1 / 7))
    assert len(run(problem, Adam(random_latents(1)), 3, progress=False).history.beta) == 3


# Minimum feature size


WIDTH = 90.0


@pytest.fixture
def ruled(surrogate: Surrogate) -> Problem:
    return Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0, "diagonal", min_feature_nm=WIDTH))


def test_all_designs_of_a_run_keep_the_minimum_feature_size(ruled: Problem, tmp_path: Path) -> None:
    """And an interrupted run, also in the refinement, ends as one that is not, bit for bit."""
    more: dict[str, Any] = {"steps": 20, "check_every": 8, "progress": False}
    seen: list[Progress] = []
    whole = run(ruled, Adam(random_latents(2), 0.05), **more, callback=seen.append)
    for step in (3, 18, 19):
        with pytest.raises(Stop):
            run(
                ruled,
                Adam(random_latents(2), 0.05),
                **more,
                checkpoint=tmp_path / "parts.npz",
                callback=stop_after(step),
            )
    assert_same(run(ruled, Adam(random_latents(2), 0.05), **more, checkpoint=tmp_path / "parts.npz"), whole)
    assert min(map(min, map(feature_size, whole.structure))) >= WIDTH
    np.testing.assert_array_equal(whole.structure, whole.structure.transpose(0, 2, 1))
    np.testing.assert_array_equal(np.isinf(whole.history.beta), [False] * 17 + [True] * 3)
    np.testing.assert_array_equal(whole.history.checked, [0, 8, 16, 19])
    searched = whole.history.binary_value[:3].max(axis=0)
    assert (whole.history.value[17:] >= searched).all()  # the refinement begins with the best
    assert (whole.history.value[-1] > searched).all()
    np.testing.assert_array_equal(seen[-1].value[whole.row], whole.value)
    spectra = ruled.source.predict(whole.structure)
    np.testing.assert_allclose(whole.value, np.asarray(ruled.objective(spectra)[0]), rtol=1e-5)


def test_the_gradient_includes_the_minimum_feature_size(surrogate: Surrogate, ruled: Problem) -> None:
    free = Problem(surrogate, ruled.objective, Parameterisation(80.0, "diagonal"))
    latent = random_latents(2, seed=5)
    violation, by_latent = ruled.parameterisation.violation(latent, 32.0)
    bound, other = ruled.evaluate(latent, 32.0), free.evaluate(latent, 32.0)
    assert bound.gradient is not None
    assert other.gradient is not None
    weights = (other.value - bound.value) / violation
    assert (weights > 1).all()
    np.testing.assert_allclose(other.gradient - bound.gradient, weights[:, None, None] * by_latent, atol=1e-12)
    assert (violation > 0).all()
    np.testing.assert_array_equal(bound.objective, other.value)


def test_the_history_shows_the_objective_without_the_penalty_of_the_minimum_feature_size(ruled: Problem) -> None:
    """Which at this steepness is larger than the objective."""
    latent, seen = random_latents(2, seed=5), list[Progress]()
    result = run(ruled, Adam(latent, 0.05), steps=1, betas=[64.0], progress=False, callback=seen.append)
    spectra = ruled.source.predict(ruled.parameterisation.density(latent, 64.0))
    objective = np.asarray(ruled.objective(spectra)[0])
    assert (ruled.evaluate(latent, 64.0).value < 0).all()
    np.testing.assert_allclose(result.history.value[0], objective, rtol=1e-5)
    np.testing.assert_allclose(seen[0].value, objective, rtol=1e-5)


@pytest.mark.parametrize("name", ["lbfgs", "cmaes"])
def test_every_optimiser_keeps_the_minimum_feature_size(ruled: Problem, name: str) -> None:
    result = run(ruled, by_name(name, 4 if name == "cmaes" else 1, **SETTINGS[name]), 3, progress=False)
    assert min(map(min, map(feature_size, result.structure))) >= WIDTH
    value = np.asarray(ruled.objective(ruled.source.predict(result.structure))[0])
    np.testing.assert_allclose(result.value, value, rtol=1e-5)


def test_robust_designs_keep_the_minimum_feature_size(surrogate: Surrogate) -> None:
    """Etched variants need not: the nominal structures do."""
    parameterisation = Parameterisation(80.0, min_feature_nm=WIDTH)
    problem = Problem(surrogate, MinEfficiency(0.05), parameterisation, robust_delta=0.1)
    result = run(problem, Adam(random_latents(2), 0.05), 3, progress=False)
    assert min(map(min, map(feature_size, result.structure))) >= WIDTH
    assert np.isfinite(result.history.beta).all()


@pytest.fixture
def structures() -> Array:
    return Parameterisation(80.0, "diagonal", min_feature_nm=WIDTH).binary(random_latents(2, seed=7))


def test_refinement_improves_and_keeps_the_rule(surrogate: Surrogate, structures: Array) -> None:
    objective, values = MinEfficiency(0.05), []
    refined = refine(
        surrogate, objective, structures, WIDTH, 6, symmetry="diagonal", callback=lambda r: values.append(r.value)
    )
    first = np.asarray(objective(surrogate.predict(structures))[0])
    np.testing.assert_allclose(values[0], first, rtol=1e-5)
    assert (np.diff(values, axis=0) >= 0).all()
    assert (refined.value > first).all()
    np.testing.assert_allclose(refined.value, np.asarray(objective(refined.spectra)[0]), rtol=1e-6)
    np.testing.assert_allclose(refined.spectra.values, surrogate.predict(refined.structure).values, atol=1e-6)
    assert min(map(min, map(feature_size, refined.structure))) >= WIDTH
    np.testing.assert_array_equal(refined.structure, refined.structure.transpose(0, 2, 1))


def test_a_refinement_costs_a_gradient_only_where_it_improves(surrogate: Surrogate, structures: Array) -> None:
    refinement = Refinement(surrogate, MinEfficiency(0.05), structures, WIDTH)
    before = surrogate.sent
    refinement.step()
    assert surrogate.sent.structures - before.structures == 2 + 2
    for _ in range(5):
        previous, value, sent = refinement.size, refinement.value.copy(), surrogate.sent
        refinement.step()
        better = refinement.value > value
        assert (refinement.size[better] > previous[better] / 2).all()
        assert (refinement.size[~better] <= previous[~better] / 2).all()
        assert surrogate.sent.structures - sent.structures == 2 + better.sum()


def test_a_refinement_ends_where_no_step_improves(surrogate: Surrogate, structures: Array) -> None:
    def flat(spectra: Spectra) -> tuple[Array, Array]:
        return np.ones(len(spectra)), np.full(spectra.values.shape, 1e-3)

    steps: list[Refinement] = []
    refined = refine(surrogate, flat, structures, WIDTH, 50, callback=steps.append)
    np.testing.assert_array_equal(refined.structure, structures)
    assert steps[-1].finished
    assert len(steps) <= 9  # 64 pixels, halved until there is less than one


# Checkpoints


@pytest.fixture
def checkpoint(problem: Problem, tmp_path: Path) -> Path:
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(Stop):
        run(problem, Adam(random_latents(2)), 4, checkpoint=file, callback=stop_after(2), progress=False)
    return file


def pickled(file: Path) -> None:
    np.savez(file, allow_pickle=True, format=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("not a checkpoint"),
        lambda file: np.savez(file, latent=np.zeros(3)),
        lambda file: np.savez(file, format=np.array("another program's checkpoint"), settings=np.array("{}")),
        pickled,
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused(
    problem: Problem, checkpoint: Path, damage: Callable[[Path], object]
) -> None:
    damage(checkpoint)
    content = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged or not a checkpoint of this program"):
        run(problem, Adam(random_latents(2)), 4, checkpoint=checkpoint, progress=False)
    assert checkpoint.read_bytes() == content


def test_a_checkpoint_of_another_run_is_refused(surrogate: Surrogate, problem: Problem, checkpoint: Path) -> None:
    def scaled(factor: float) -> Problem:
        def objective(spectra: Spectra) -> tuple[Array, Array]:
            return factor * spectra.values.mean(axis=(1, 2)), np.full_like(spectra.values, factor / 1204)

        return Problem(surrogate, objective, problem.parameterisation)

    others: list[tuple[str, Problem, Optimiser, int]] = [
        ("steps was 4, is 5", problem, Adam(random_latents(2)), 5),
        ("optimiser.start was .*, is .*", problem, Adam(random_latents(2, seed=1)), 4),
        ("optimiser.name was adam, is torch", problem, by_name("torch", starts=2), 4),
        (
            r"problem.objective was MinEfficiency\(softness=0.05\), is MinEfficiency\(softness=None\)",
            Problem(surrogate, MinEfficiency(), problem.parameterisation),
            Adam(random_latents(2)),
            4,
        ),
    ]
    for match, other, optimiser, steps in others:
        with pytest.raises(ValueError, match=f"is the checkpoint of another run: {match}"):
            run(other, optimiser, steps, checkpoint=checkpoint, progress=False)
    # Functions of one name are told apart by what they say of the same spectra.
    file = checkpoint.with_name("scaled.npz")
    for _ in range(2):
        run(scaled(1.0), Adam(random_latents(2)), 1, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match=r"another run: problem\.objective_of_noise was"):
        run(scaled(2.0), Adam(random_latents(2)), 1, checkpoint=file, progress=False)


def test_checkpoints_are_written_on_the_way(problem: Problem, tmp_path: Path) -> None:
    file, sizes = tmp_path / "checkpoint.npz", []

    def look(progress: Progress) -> None:
        sizes.append(file.exists())

    run(problem, Adam(random_latents(2)), 3, checkpoint=file, save_every_s=0, callback=look, progress=False)
    assert sizes == [True, True, True]


# The network that comes with the server


@pytest.mark.slow
def test_the_bundled_network_finds_better_routers(tmp_path: Path) -> None:
    for name in (DEFAULT_MODEL, gradient_model(DEFAULT_MODEL)):  # the other models take long to load
        (tmp_path / name).symlink_to(bundled_repository() / name)
    with running_server("--repository", str(tmp_path)) as server, Surrogate(server.url, progress=False) as surrogate:
        problem = Problem(surrogate, MinEfficiency(0.02), Parameterisation(80.0))
        result = run(problem, by_name("adam", starts=2, learning_rate=0.05), 8, check_every=7, progress=False)
    first = result.history.binary_value[0].max()
    assert result.value.max() > first + 0.03
    assert result.spectra.min_efficiency()[0] > 0.25


def test_errors_are_those_of_the_surrogate(surrogate: Surrogate) -> None:
    problem = Problem(surrogate, MinEfficiency(), Parameterisation(80.0))
    with pytest.raises(MetaSpecError, match=r"structures must be \(128, 128\).* got \(1, 64, 64\)"):
        run(problem, Adam(random_latents(1, shape=(64, 64))), 1, progress=False)
