"""The loss, and the optimiser that follows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metaspec_training.fit.averaging import MovingAverage
from metaspec_training.fit.loss import AdaptiveSpectralLoss, merge_greens
from metaspec_training.fit.optimizer import MuonAdamW, orthogonalise
from metaspec_training.fit.precision import bf16_units
from metaspec_training.fit.trainer import RunTrainer


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


def test_merged_greens_are_the_mean_in_both_places() -> None:
    spectra = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert merge_greens(spectra).tolist() == [[[[0, 1], [3, 4]], [[3, 4], [6, 7]]]]


def test_muon_steps_along_the_nearest_orthogonal_matrix() -> None:
    """From zero momentum the step of a kernel has equal singular values; vectors take AdamW's step."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 5, 3)
    assert layer.bias is not None
    kernel, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = MuonAdamW(list(layer.parameters()), lr=0.1, weight_decay=0.0)
    layer(torch.randn(2, 6, 8, 8)).square().sum().backward()
    optimizer.step()
    values = torch.linalg.svdvals((layer.weight.detach() - kernel).flatten(1) / (0.1 * 0.2 * 54**0.5))
    assert values.min() > 0.5, "the iteration of five steps is that coarse, by design"
    assert values.max() < 1.5
    torch.testing.assert_close((layer.bias.detach() - bias).abs(), torch.full((5,), 0.1), atol=1e-4, rtol=0)
    other = MuonAdamW(list(torch.nn.Conv2d(6, 5, 3).parameters()), lr=0.1, weight_decay=0.0)
    other.load_state_dict(optimizer.state_dict())
    momentum = next(iter(optimizer.muon.state.values()))["momentum_buffer"]
    torch.testing.assert_close(next(iter(other.muon.state.values()))["momentum_buffer"], momentum)
    assert {id(group) for group in other.param_groups} >= {id(group) for group in other.muon.param_groups}
    optimizer.zero_grad()
    assert layer.weight.grad is None


def test_muon_is_that_of_torch_in_bfloat16() -> None:
    """Our step differs from torch's in the choice of dtype only: states are interchangeable."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 7, bias=False)
    matrix = torch.nn.Parameter(layer.weight.detach().clone())
    ours = MuonAdamW(list(layer.parameters()), lr=0.1, weight_decay=0.2, dtype=torch.bfloat16)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        layer.weight.grad = torch.randn(7, 24)
        matrix.grad = layer.weight.grad.clone()
        ours.step()
        theirs.step()  # type: ignore[no-untyped-call]
    assert torch.equal(layer.weight, matrix)
    theirs.load_state_dict(ours.state_dict()["muon"])


def test_muon_orthogonalises_in_the_dtype_that_the_processor_computes_in() -> None:
    optimizer = MuonAdamW(list(torch.nn.Linear(4, 4).parameters()), lr=0.1, weight_decay=0.0)
    expected = torch.bfloat16 if bf16_units(torch.device("cpu")) else torch.float32
    assert optimizer.muon.dtype == expected
    matrix = torch.randn(40, 30)
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.linalg.svdvals(orthogonalise(matrix.to(dtype), (3.4445, -4.775, 2.0315), 5).float())
        assert 0.6 < values.min() < values.max() < 1.3


def test_automatic_precision_follows_the_processor(caplog: pytest.LogCaptureFixture) -> None:
    """Its flags say whether it has bfloat16 units; torch would accept bfloat16 on all."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    if flags:
        assert bool(bf16_units(torch.device("cpu"))) == bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    assert bf16_units(torch.device("mps")) == ""
    with caplog.at_level("INFO"):
        trainer = RunTrainer(precision="auto", accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.precision == ("bf16-mixed" if bf16_units(torch.device("cpu")) else "32-true")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Precision")]
    assert line.startswith(f"Precision {trainer.precision}: this CPU has ")


def test_the_average_follows_its_decay_only_once_it_is_long() -> None:
    average = MovingAverage(decay=0.9)
    kept = [float(average._mix(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(n))) for n in (0, 8, 10_000)]
    assert kept == pytest.approx([0.1, 0.5, 0.9])
    with pytest.raises(ValueError, match="decay must be from 0 to below 1, got 1"):
        MovingAverage(decay=1)
