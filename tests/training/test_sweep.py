"""The example of a sweep."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

EXAMPLE = Path(__file__).parents[2] / "training" / "examples" / "sweep.py"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sweep_resumes_and_ends_with_flags(fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = runpy.run_path(str(EXAMPLE))
    settings = ["--data", str(fine), "--out", str(tmp_path), "--epochs=1", "--limit=8", "--batch_size=8"]
    settings += ["--positions=1", "--blocks=1"]
    for trials in (1, 2):
        sweep["main"]([*settings, f"--trials={trials}"])
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep.db'}")
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * trials
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Validation loss {study.best_value:.3e} with --model.config.init_args.width ")
    assert f"--model.learning_rate {study.best_params['learning_rate']:.4g}" in last
