from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from metaspec_simulation.dataset import Samples, load
from metaspec_training.data import AugmentedSpectra, Spectra
from metaspec_training.loss import AdaptiveSpectralLoss
from metaspec_training.module import load_network
from metaspec_training.report import errors, mean_predictor, nearest_predictor

ROOT = Path(__file__).parents[2]
DATA = ROOT / "datasets" / "bayer-600nm"


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load(DATA)


def test_loss_terms_follow_their_formulas() -> None:
    rng = np.random.default_rng(0)
    p, t = (rng.random((3, 2, 2, 9)).astype(np.float32) for _ in range(2))
    terms = AdaptiveSpectralLoss(2, 0.1, 100, 7)(torch.from_numpy(p), torch.from_numpy(t))
    error = p - t
    assert float(terms.mse) == pytest.approx(2 * np.mean(error**2), rel=1e-5)
    ratio = np.clip(error / (np.abs(t) + 1e-4), -10, 10)
    assert float(terms.rel) == pytest.approx(0.1 * np.mean(ratio**2), rel=1e-4)
    assert float(terms.grad) == pytest.approx(100 * np.mean(np.diff(error, axis=-1) ** 2), rel=1e-5)
    assert float(terms.curv) == pytest.approx(7 * np.mean(np.diff(error, 2, axis=-1) ** 2), rel=1e-5)
    assert float(terms.total) == pytest.approx(sum(map(float, terms)), rel=1e-6)
    with pytest.raises(ValueError, match="w_grad must not be negative, got -1"):
        AdaptiveSpectralLoss(w_grad=-1)


def test_the_blue_weight_counts_the_blue_detector_more() -> None:
    p, t = torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 2, 5)
    p[0, 1, 1] = 0.1
    plain, weighted = AdaptiveSpectralLoss()(p, t).mse, AdaptiveSpectralLoss(blue_weight=2)(p, t).mse
    assert float(weighted) == pytest.approx(2 * float(plain))


def test_augmented_labels_are_those_of_the_moved_structure(samples: Samples) -> None:
    """A translation by half a period, and D4, permute the stored spectra: compare where both ways are known."""
    data = AugmentedSpectra(samples, seed=3, epoch=1)
    plain = Spectra(samples)
    again = AugmentedSpectra(samples, seed=3, epoch=1)
    for item in range(5):
        density, spectra = data[item]
        original, labels = plain[item]
        assert density.shape == (1, 128, 128)
        assert density.sum() == original.sum()
        assert not torch.equal(density, original)
        torch.testing.assert_close(again[item], (density, spectra))
        torch.testing.assert_close(spectra.sum(dim=(0, 1)), labels.sum(dim=(0, 1)), atol=2e-2, rtol=0)
        other_epoch, _ = AugmentedSpectra(samples, seed=3, epoch=2)[item]
        assert not torch.equal(other_epoch, density)


def test_trivial_predictors(samples: Samples) -> None:
    train, test = samples.of("train"), samples.of("test")
    mean = errors(mean_predictor(train, test), test.spectra)
    assert mean.mae == pytest.approx(np.abs(train.spectra.mean(axis=0) - test.spectra).mean(), rel=1e-5)
    assert errors(test.spectra, test.spectra).mae == 0
    assert errors(test.spectra, test.spectra).r2 == 1
    nearest = nearest_predictor(train, train.take(np.arange(10)))
    np.testing.assert_array_equal(nearest, train.spectra[:10])


def test_train_resume_report(tmp_path: Path) -> None:
    """The entry points as a user calls them, with a tiny network, for two epochs and then a third."""
    run = tmp_path / "run"

    def train(*arguments: str) -> None:
        small = ["--model.config.init_args.width", "32", "--model.config.init_args.blocks", "1", "--data.limit", "48"]
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(run)]
        config = [
            "--config",
            "training/configs/field.yaml",
            "--trainer.precision",
            "32",
            "--trainer.limit_val_batches",
            "1",
        ]
        command = [sys.executable, "training/train.py", *config, *small, *quiet, *arguments]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    train("--trainer.max_epochs", "1")
    last = run / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    first = load_network(last).state_dict()
    train("--trainer.max_epochs", "2", "--ckpt_path", str(last))
    resumed = run / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt"
    assert torch.load(resumed, weights_only=True)["epoch"] == 1
    second = load_network(resumed).state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)

    out = tmp_path / "report"
    command = [sys.executable, "-m", "metaspec_training.cli", "report", "--checkpoint", str(resumed)]
    subprocess.run([*command, "--data", str(DATA), "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    report = json.loads((out / "report.json").read_text())
    assert set(report["errors"]) == {"network", "mean spectrum", "nearest training structure"}
    assert (out / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint that this version can read"):
        load_network(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match="network"):
        load_network(file)


@pytest.mark.parametrize("preset", ["field", "full", "baseline"])
def test_presets_are_valid(preset: str) -> None:
    command = [sys.executable, "training/train.py", "--config", f"training/configs/{preset}.yaml", "--print_config"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "class_path: metaspec_training" in result.stdout
