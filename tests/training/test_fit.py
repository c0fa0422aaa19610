"""Training as a user runs it: what is logged and saved, resuming, several processes, changes while it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaspec_training.cli import main
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.checkpoint import load_network, read_checkpoint
from metaspec_training.fit.live_weights import LiveWeights, LossWeights, change_weights
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.plateau import PlateauAdvice
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.query import DiffractionNetConfig

ROOT = Path(__file__).parents[2]
TINY = DiffractionFieldNetConfig(stem=8, width=32, blocks=1, wavelength_nodes=20)


def scalars(run: Path) -> dict[str, list[float]]:
    log = EventAccumulator(str(run))
    log.Reload()
    return {name: [event.value for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(
    trained: Path, train: Callable[..., Path], three_epochs: list[str], fine: Path, tmp_path: Path
) -> None:
    """Bit for bit: weights, their average, optimiser and schedule."""
    # A limit on wall time of nothing stops after the first epoch; a signal would come at any time.
    run = train(tmp_path, fine, *three_epochs, "--trainer.min_epochs=1", "--trainer.max_time=00:00:00:00")
    stopped = run / "checkpoints" / "last.ckpt"
    assert torch.load(stopped, weights_only=True)["epoch"] == 0
    again = train(tmp_path, fine, *three_epochs, f"--ckpt_path={stopped}")
    whole, resumed = (torch.load(where / "checkpoints" / "last.ckpt", weights_only=True) for where in (trained, again))
    assert resumed["epoch"] == whole["epoch"] == 2
    assert resumed["global_step"] == whole["global_step"] == 6
    for weights in ("state_dict", "current_model_state"):
        for name, weight in whole[weights].items():
            assert torch.equal(weight, resumed[weights][name]), name
    assert str(resumed["optimizer_states"]) == str(whole["optimizer_states"])
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert resumed["provenance"] == whole["provenance"]


def test_the_average_of_a_short_run_does_not_remember_its_start(
    checkpoint: Path, train: Callable[..., Path], fine: Path, tmp_path: Path
) -> None:
    """After six steps, an average over 200 steps would still be at the first of them. The run is a warm start, too."""
    run = train(tmp_path, fine, f"--model.weights={checkpoint}", "--trainer.max_epochs=3")
    start = load_network(checkpoint).state_dict()
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    average, now = (
        {k.removeprefix("network."): v for k, v in last[s].items()} for s in ("state_dict", "current_model_state")
    )
    for name in ("head.0.weight", "head.2.weight", "stem.0.weight"):
        way = float((now[name] - start[name]).norm())
        assert 0 < float((now[name] - average[name]).norm()) < 0.4 * way


def test_what_is_logged(trained: Path) -> None:
    logged = scalars(trained)
    terms = [logged[f"train/{name}"] for name in ("mse", "rel", "grad", "curv")]
    np.testing.assert_allclose(np.sum(terms, axis=0), logged["train/loss"], rtol=1e-4)
    assert all(norm > 0 for norm in logged["train/gradient_norm"])
    assert set(logged["train/clipped_fraction"]) <= {0.0, 1.0}
    rate = logged["lr-MuonAdamW/pg1"]
    assert rate.index(max(rate)) <= 1
    assert rate[-1] < 0.3 * max(rate), "warm-up, then cosine"
    assert logged["weights/w_grad"] == [100.0] * 3


def test_a_run_started_from_its_own_settings_keeps_the_name_of_the_preset(trained: Path, tmp_path: Path) -> None:
    main(
        [
            "fit",
            f"--config={trained / 'config.yaml'}",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_epochs=1",
        ]
    )
    (last,) = tmp_path.rglob("last.ckpt")
    provenance = read_checkpoint(last).provenance
    assert provenance is not None
    assert provenance.preset == "field"


def test_live_weights(fine: Path, tmp_path: Path) -> None:
    """A running training takes up a change and refuses a bad file, as seen in its log and its messages."""
    run = tmp_path / "lightning_logs" / "version_0"
    bad = '{"w_mse": -1, "w_grad": 70, "w_rel": 0.1, "w_curv": 0, "blue_weight": 1}'

    class Edits(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                main(["weights", str(run), "--w-grad", "50"])
            elif trainer.current_epoch == 2:
                (run / "weights.json").write_text(bad)

    trainer = Trainer(
        max_epochs=5,
        callbacks=[LiveWeights(), Edits()],
        default_root_dir=tmp_path,
        accelerator="cpu",
        limit_train_batches=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    with pytest.warns(UserWarning, match="Loss weights not changed") as refusals:
        trainer.fit(SpectraModule(TINY, AdaptiveSpectralLoss()), SpectraDataModule(str(fine), batch_size=2))
    logged = scalars(run)
    assert logged["weights/w_grad"] == [100, 100, 50, 50, 50]
    assert logged["weights/w_mse"] == [2.0] * 5
    messages = [str(each.message) for each in refusals]
    (refusal,) = [message for message in messages if "Loss weights not changed" in message]
    assert refusal.endswith("weights.json: w_mse: Input should be greater than or equal to 0, got -1")


def test_weights_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        change_weights(tmp_path, w_grad=1)
    LossWeights.of(AdaptiveSpectralLoss()).write(tmp_path / "weights.json")
    before = (tmp_path / "weights.json").read_text()
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w_grad"):
            change_weights(tmp_path, w_grad=bad)
    assert (tmp_path / "weights.json").read_text() == before
    with pytest.raises(SystemExit) as exit_:
        main(["weights", str(tmp_path), "--w-grad", "-5"])
    assert exit_.value.code == 2
    assert "w_grad: Input should be greater than or equal to 0, got -5" in capsys.readouterr().err


def test_the_plateau_rule_follows_the_priority(caplog: pytest.LogCaptureFixture) -> None:
    """A loss that never improves again: the improvements that are off come up in the order of their use."""
    module = SpectraModule(
        DiffractionNetConfig(
            memory_norm=False,
            film_scale=False,
            detector_heads=False,
            fine_tokens=False,
            channels=32,
            width=32,
            blocks=1,
            heads=2,
        ),
        AdaptiveSpectralLoss(),
        clip_norm=0.5,
    )
    rule = PlateauAdvice(patience=2)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callback_metrics["validation/loss"] = torch.tensor(1e-3)
    trainer.sanity_checking = False
    with caplog.at_level("INFO"):
        for _ in range(1 + 2 * 7):
            rule.on_validation_epoch_end(trainer, module)
    advice = [record.getMessage() for record in caplog.records if "No improvement" in record.getMessage()]
    words = ["memory_norm", "film_scale", "clipped at 1.0", "detector_heads", "fine_tokens", "curvature"]
    assert len(advice) == len(words)
    assert all(word in message for word, message in zip(words, advice, strict=True))
    assert module.clip_norm == 1.0
    assert module.loss.w_curv == 1000
    trainer.callback_metrics["validation/loss"] = torch.tensor(0.9e-3)
    rule.on_validation_epoch_end(trainer, module)
    assert rule.state_dict()["stalled"] == 0
    resumed, module.clip_norm = PlateauAdvice(), 0.5
    resumed.load_state_dict(rule.state_dict())
    resumed.on_train_start(trainer, module)
    assert module.clip_norm == 1.0


@pytest.mark.slow
def test_two_processes_train_one_network(fine: Path, tmp_path: Path) -> None:
    """torchrun, gloo, two CPU processes: each sees its half of the samples, both end with the same weights."""
    launcher = [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        "--nproc-per-node=2",
        "training/train.py",
    ]
    settings = ["--config=training/configs/field.yaml", f"--data.path={fine}", "--data.batch_size=4"]
    network = [f"--model.config.init_args.{size}" for size in ("width=32", "blocks=1", "stem=8")]
    ddp = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.precision=32"]
    command = [*launcher, *settings, *network, *ddp, "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    (last,) = tmp_path.rglob("last.ckpt")
    state = torch.load(last, weights_only=True)
    assert state["epoch"] == 1
    assert state["global_step"] == 4, "16 samples are 4 batches of 4: 2 for each process in an epoch"
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())


def test_compiling_changes_how_not_what() -> None:
    modules = [SpectraModule(TINY, AdaptiveSpectralLoss(), compile=compiled) for compiled in (False, True)]
    assert [module.network._compiled_call_impl is not None for module in modules] == [False, True]
    assert modules[0].state_dict().keys() == modules[1].state_dict().keys()
