"""The stop rule: which steps it leaves out, what the result says of it, and that a resumed run does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import Spectra, Surrogate
from metaspec.objectives import MinEfficiency
from metaspec.optimise import Adam, Problem, Progress, Result, by_name, run
from metaspec.optimise.stopping import Patience, next_stage
from metaspec.topology import Parameterisation, random_latents
from metaspec_testing.commands import give
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

BETAS = [8.0] * 8 + [16.0] * 8 + [32.0] * 8


def constant(spectra: Spectra) -> tuple[Array, Array]:
    """An objective that nothing improves."""
    return np.full(len(spectra), 0.25), np.zeros_like(spectra.values)


class Stop(Exception):
    pass


def test_stages_end_without_a_gain() -> None:
    waiting = Patience(2, 0.01)
    best = np.array([0.2, 0.1])
    over = [waiting.is_over(8.0, np.array([value, 0.0]), best) for value in (0.3, 0.305, 0.32, 0.32, 0.325)]
    assert over == [False, False, False, False, True]  # .32 is a gain over .3, .325 none over .32
    assert not waiting.is_over(16.0, np.array([0.1, 0.0]), best)  # another steepness: values start over
    assert not waiting.is_over(16.0, np.array([0.1, 0.0]), best)
    assert not waiting.is_over(16.0, np.array([0.1, 0.0]), best + 0.02)  # a better binary structure is a gain
    again = Patience(2, 0.01)
    again.restore(waiting.state())
    assert [one.is_over(16.0, np.zeros(2), best) for one in (waiting, again, waiting, again)] == [
        False,
        False,
        True,
        True,
    ]
    assert not any(Patience(None, 0.01).is_over(8.0, best, best) for _ in range(99))


def test_next_stage() -> None:
    assert [next_stage([4, 4, 8, 8, 8], step) for step in range(5)] == [2, 2, 5, 5, 5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patience": 0}, "patience must be at least 1, or None for no stop rule, got 0"),
        ({"patience": 3, "min_gain": -0.1}, "min_gain must be at least 0 and finite, got -0.1"),
        ({"patience": 3, "min_gain": float("nan")}, "min_gain must be at least 0 and finite, got nan"),
    ],
)
def test_bad_rules(surrogate: Surrogate, wrong: dict[str, Any], message: str) -> None:
    problem = Problem(surrogate, constant, Parameterisation(80.0))
    before = surrogate.sent
    with pytest.raises(ValueError, match=message):
        run(problem, Adam(random_latents(1)), 4, **wrong, progress=False)
    assert surrogate.sent == before


def test_each_stage_is_cut_short_and_the_history_says_so(surrogate: Surrogate, tmp_path: Path) -> None:
    """Nothing improves, so each stage has its first step and `patience` more."""
    seen: list[int] = []

    def optimise(stop: int | None = None, checkpoint: Path | None = None) -> Result:
        def callback(progress: Progress) -> None:
            seen.append(progress.step)
            if progress.step == stop:
                raise Stop

        problem = Problem(surrogate, constant, Parameterisation(80.0))
        settings: dict[str, Any] = {"betas": BETAS, "check_every": 2, "patience": 3, "checkpoint": checkpoint}
        return run(problem, Adam(random_latents(2)), 24, **settings, callback=callback, progress=False)

    result = optimise()
    # Steps 0-3, 8-11 and 16-20: the first of a stage is a gain, and the last one of all is evaluated.
    whole = [1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 20, 24]
    assert seen == whole
    np.testing.assert_array_equal(result.history.beta, np.repeat([8.0, 16.0, 32.0], [4, 4, 5]))
    assert result.history.value.shape == (13, 2)
    assert np.isfinite(result.history.value).all()
    np.testing.assert_array_equal(result.history.checked, [0, 2, 4, 6, 8, 10, 12])
    assert result.history.binary_value.shape == (7, 2)
    assert len(result.trajectory) == 14
    assert (result.found == 0).all()
    for stop in (2, 8):
        seen.clear()
        with pytest.raises(Stop):
            optimise(stop, tmp_path / f"{stop}.npz")
        resumed = optimise(checkpoint=tmp_path / f"{stop}.npz")
        np.testing.assert_array_equal(resumed.history.value, result.history.value)
        np.testing.assert_array_equal(resumed.structure, result.structure)
        assert seen[seen.index(stop) + 1 :] == [step for step in whole if step > stop]


def test_a_population_ends_and_gains_go_on(surrogate: Surrogate) -> None:
    parameterisation = Parameterisation(80.0)
    idle = Problem(surrogate, constant, parameterisation)
    result = run(idle, by_name("ga", 4, points=6), 20, patience=4, check_every=1, progress=False)
    assert len(result.history.value) == 5
    problem = Problem(surrogate, MinEfficiency(0.05), parameterisation)
    more: dict[str, Any] = {"betas": [8.0] * 8, "check_every": 2, "progress": False}
    plain = run(problem, Adam(random_latents(2)), 8, **more)
    patient = run(problem, Adam(random_latents(2)), 8, patience=3, min_gain=0.0, **more)
    np.testing.assert_array_equal(plain.history.value, patient.history.value)


def test_a_checkpoint_without_a_rule_still_resumes(surrogate: Surrogate, tmp_path: Path) -> None:
    """Checkpoints of earlier versions know no rule."""
    problem = Problem(surrogate, MinEfficiency(0.05), Parameterisation(80.0))
    file = tmp_path / "run.npz"
    run(problem, Adam(random_latents(1)), 2, checkpoint=file, progress=False)
    with np.load(file) as old:
        arrays = {name: old[name] for name in old if not name.startswith("waiting.")}
    np.savez(file, **arrays)
    run(problem, Adam(random_latents(1)), 2, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="another run: patience was None, is 5"):
        run(problem, Adam(random_latents(1)), 2, checkpoint=file, patience=5, progress=False)


def test_the_command_line(server: RunningServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With an objective that has no arguments, by its name."""
    out = tmp_path / "designs"
    arguments = [
        "optimise",
        "--url",
        server.url,
        "--out",
        out,
        "--objective",
        "information",
        "--steps",
        40,
        "--starts",
        1,
    ]
    assert give([*arguments, "--patience", 2, "--min-gain", "inf"]) == 2
    assert "min_gain must be at least 0 and finite, got inf" in capfd.readouterr().err
    assert not out.exists()
    assert give([*arguments, "--patience", 2, "--min-gain", 9]) == 0
    # Eight stages of five steps: seven end after the third.
    assert "14 of 40 steps left out: no gain of 9 in 2 steps before them" in capfd.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert (report["objective"], report["settings"]["patience"], report["settings"]["min_gain"]) == (
        "information",
        2,
        9,
    )
    with (out / "history.csv").open() as lines:
        assert len(lines.readlines()) == 1 + 26
