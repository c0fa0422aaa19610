"""Training as a user runs it: what is logged and saved, resuming, several processes, changes while it runs."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaspec_training.cli import main
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.checkpoint import load_network, read_checkpoint
from metaspec_training.fit.live_weights import LiveWeights
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.plateau import PlateauAdvice
from metaspec_training.fit.trainer import RunTrainer, run_folder
from metaspec_training.fit.weights import LossWeights, change_weights
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig
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
    clipped = np.reshape([norm > 1 for norm in logged["train/gradient_norm"]], (3, 2)).mean(axis=1)
    assert logged["train/clipped_fraction"] == clipped.tolist(), "of each epoch's two steps"
    rate = logged["lr-MuonAdamW/pg1"]
    assert rate.index(max(rate)) <= 1
    assert rate[-1] < 0.3 * max(rate), "warm-up, then cosine"
    assert logged["weights/w_grad"] == [100.0] * 3
    assert logged["weights/clip_norm"] == [1.0] * 3


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
    bad = '{"w_mse": -1, "w_grad": 70, "w_rel": 0.1, "w_curv": 0, "blue_weight": 1, "clip_norm": 1}'

    class Edits(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                main(["weights", str(run), "--w-grad", "50", "--clip-norm", "0.3"])
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
    assert logged["weights/clip_norm"] == pytest.approx([1, 1, 0.3, 0.3, 0.3])
    messages = [str(each.message) for each in refusals]
    (refusal,) = [message for message in messages if "Loss weights not changed" in message]
    assert refusal.endswith("weights.json: w_mse: Input should be greater than or equal to 0, got -1")


def test_weights_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        change_weights(tmp_path, w_grad=1)
    LossWeights.of(AdaptiveSpectralLoss(), clip_norm=1.0).write(tmp_path / "weights.json")
    before = (tmp_path / "weights.json").read_text()
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w_grad"):
            change_weights(tmp_path, w_grad=bad)
    assert (tmp_path / "weights.json").read_text() == before
    with pytest.raises(SystemExit) as exit_:
        main(["weights", str(tmp_path), "--w-grad", "-5"])
    assert exit_.value.code == 2
    assert "w_grad: Input should be greater than or equal to 0, got -5" in capsys.readouterr().err
    with pytest.raises(ValueError, match="clip_norm: Input should be greater than 0, got 0"):
        change_weights(tmp_path, clip_norm=0)


class Tracker(Logger):
    """An experiment tracker such as Weights & Biases or MLflow: it has no folder of its own for a run's files."""

    def __init__(self, save_dir: Path | None) -> None:
        super().__init__()
        self._save_dir = save_dir
        self.logged: list[dict[str, float]] = []

    @property
    def save_dir(self) -> str | None:
        return str(self._save_dir) if self._save_dir else None

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str:
        return "run-1"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append(metrics)


def wandb_logger(folder: Path) -> tuple[Logger, Callable[[str], float]]:
    """An offline run of Weights & Biases, and the last value that it has logged of a name."""
    pytest.importorskip("wandb")
    logger = WandbLogger(project="project", save_dir=folder, offline=True)
    return logger, lambda name: float(logger.experiment.summary[name])


def mlflow_logger(folder: Path) -> tuple[Logger, Callable[[str], float]]:
    """A run of MLflow in a local data base, and the last value that it has logged of a name."""
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(experiment_name="project", tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return logger, lambda name: float(logger.experiment.get_run(logger.run_id).data.metrics[name])


def fake_logger(folder: Path | None) -> tuple[Logger, Callable[[str], float]]:
    logger = Tracker(folder)
    return logger, lambda name: next(metrics[name] for metrics in reversed(logger.logged) if name in metrics)


@pytest.mark.parametrize("tracker", [fake_logger, lambda folder: fake_logger(None), wandb_logger, mlflow_logger])
def test_live_weights_with_an_experiment_tracker(fine: Path, tmp_path: Path, tracker: Any) -> None:
    """weights.json lies beside the checkpoints; a change in mid-epoch is taken up, the curvature weight little by little."""
    seen = []
    logger, logged = tracker(tmp_path)

    class Edits(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, SpectraModule)
            run = run_folder(trainer)
            seen.append((pl_module.loss.w_grad, pl_module.loss.w_curv))
            if batch_idx == 2:
                main(["weights", str(run), "--w-grad", "50", "--w-curv", "300"])
            if batch_idx == 3:  # by another callback, before the file was read
                pl_module.change_weights(pl_module.loss_weights.changed(clip_norm=0.25))

    checkpoints = ModelCheckpoint(save_last=True)
    trainer = RunTrainer(
        max_epochs=1,
        callbacks=[LiveWeights(every_n_steps=4), Edits(), checkpoints],
        logger=logger,
        default_root_dir=tmp_path,
        accelerator="cpu",
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    module = SpectraModule(TINY, AdaptiveSpectralLoss(), ramp_steps=3)
    trainer.fit(module, SpectraDataModule(str(fine), batch_size=2))
    assert seen == [(100, 0)] * 4 + [(50, 0), (50, 100), (50, 200), (50, 300)]
    run = tmp_path / str(logger.name) / str(logger.version)
    asked = LossWeights.read(run / "weights.json")
    assert (asked.w_grad, asked.w_curv, asked.clip_norm) == (50, 300, 0.25), "neither change undoes the other"
    assert Path(checkpoints.last_model_path).parent == run / "checkpoints"
    assert trainer.log_dir == str(run)
    assert logged("weights/clip_norm") == 1.0, "when the epoch began"
    assert logged("train/loss") > 0


def test_messages_of_the_trainer_hold_no_advertisements(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("lightning.pytorch")
    log.addHandler(caplog.handler)
    try:
        RunTrainer(accelerator="cpu", default_root_dir=tmp_path, precision="auto")
    finally:
        log.removeHandler(caplog.handler)
    assert "Precision " in caplog.text
    assert "Tip" not in caplog.text


def test_the_file_of_weights_lies_in_the_folder_of_any_logger(tmp_path: Path) -> None:
    csv = CSVLogger(tmp_path, name="csv", version=3)
    cases: list[tuple[Logger | bool, Path]] = [(csv, tmp_path / "csv" / "version_3"), (False, tmp_path / "root")]
    for logger, folder in cases:
        assert run_folder(Trainer(logger=logger, default_root_dir=tmp_path / "root", accelerator="cpu")) == folder


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
    module.trainer = trainer
    trainer.callback_metrics["validation/loss"] = torch.tensor(1e-3)
    trainer.sanity_checking = False
    with caplog.at_level("INFO"):
        for _ in range(1 + 2 * 7):
            rule.on_validation_epoch_end(trainer, module)
    advice = [record.getMessage() for record in caplog.records if "No improvement" in record.getMessage()]
    words = [
        "memory_norm",
        "film_scale",
        "clipped at 1.0",
        "detector_heads",
        "fine_tokens",
        "curvature weight rises to 1000",
    ]
    assert len(advice) == len(words)
    assert all(word in message for word, message in zip(words, advice, strict=True))
    assert module.loss_weights.clip_norm == 1.0
    assert module.loss_weights.w_curv == 1000
    assert module.curvature_weight == 0, "it rises from here"
    trainer.callback_metrics["validation/loss"] = torch.tensor(0.9e-3)
    rule.on_validation_epoch_end(trainer, module)
    assert rule.state_dict()["stalled"] == 0
    with pytest.raises(ValueError, match="clip_norm must be above 0 and w_curv must not be negative, got 0 and 1000"):
        PlateauAdvice(clip_norm=0)


STALLING = """
trainer:
  callbacks:
    - class_path: metaspec_training.fit.averaging.MovingAverage
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: validation/mae, save_last: true, filename: best}
    - class_path: metaspec_training.fit.live_weights.LiveWeights
    - class_path: metaspec_training.fit.plateau.PlateauAdvice
      init_args: {patience: 1, threshold: 0.99}
"""
TINY_FULL = [f"--model.config.init_args.{size}" for size in ("channels=32", "width=32", "blocks=1", "heads=2")]


def test_a_run_stopped_in_mid_epoch_after_the_plateau_rule_has_acted_resumes_exactly(
    fine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, with dropout, the clip raised after epoch 1, and the curvature weight on its way up since epoch 2."""
    (tmp_path / "stalling.yaml").write_text(STALLING)
    settings = [f"--config={ROOT}/training/configs/full.yaml", f"--config={tmp_path / 'stalling.yaml'}", *TINY_FULL]
    settings += [f"--data.path={fine}", "--data.batch_size=8", "--model.clip_norm=0.01", "--model.ramp_steps=3"]
    settings += ["--model.loss.init_args.w_curv=0", "--trainer.max_epochs=5", "--trainer.precision=32"]
    settings += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]

    def train(name: str, *more: str) -> Path:
        main(["fit", *settings, f"--trainer.default_root_dir={tmp_path / name}", *more])
        (last,) = (tmp_path / name).rglob("last.ckpt")
        return last

    def stop(module: SpectraModule, *args: Any) -> None:
        if module.global_step == 7:  # the first of the two batches of epoch 3
            signal.raise_signal(signal.SIGTERM)

    whole = torch.load(train("whole"), weights_only=True)
    monkeypatch.setattr(SpectraModule, "on_train_batch_end", stop)
    with pytest.raises(SystemExit) as exit_:
        train("stopped")
    monkeypatch.undo()
    assert exit_.value.code == 143
    (stopped,) = (tmp_path / "stopped").rglob("last.ckpt")
    assert f"terminated; the last good checkpoint is {stopped}: resume with --ckpt_path" in capsys.readouterr().err
    state = torch.load(stopped, weights_only=True)
    assert (state["epoch"], state["global_step"]) == (3, 7)
    assert state["loss_weights"] == whole["loss_weights"]
    assert (whole["loss_weights"]["clip_norm"], whole["loss_weights"]["w_curv"]) == (1.0, 1000.0)
    last = train("resumed", f"--ckpt_path={stopped}")
    assert LossWeights.read(last.parents[1] / "weights.json").w_curv == 1000
    resumed = torch.load(last, weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == 10
    for weights in ("state_dict", "current_model_state"):
        for name, weight in whole[weights].items():
            assert torch.equal(weight, resumed[weights][name]), name
    assert str(resumed["optimizer_states"]) == str(whole["optimizer_states"])
    assert resumed["curvature_ramp"] == whole["curvature_ramp"] == [0.0, 6]
    stages = [state["callbacks"] for state in (whole, resumed)]
    assert stages[0]["PlateauAdvice"] == stages[1]["PlateauAdvice"]


def test_training_stops_where_the_loss_is_not_finite(
    train: Callable[..., Path],
    fine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With status 1 and one line, and the checkpoint of the epoch before stays."""

    def break_down(module: SpectraModule, *args: Any) -> None:
        if module.global_step == 3:
            next(module.parameters()).data.fill_(torch.inf)

    monkeypatch.setattr(SpectraModule, "on_train_batch_end", break_down)
    with pytest.raises(SystemExit) as exit_:
        train(tmp_path, fine, "--trainer.max_epochs=3")
    assert exit_.value.code == 1
    (last,) = tmp_path.rglob("last.ckpt")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("metaspec-train: the loss is not finite at step 3, epoch 1: training stopped;")
    assert f"the last good checkpoint is {last}: start from it with model.weights" in line
    assert torch.load(last, weights_only=True)["epoch"] == 0
    read_checkpoint(last)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as exit_:
        train(tmp_path / "at once", fine, "--model.learning_rate=1e15", "--trainer.max_epochs=3")
    assert exit_.value.code == 1
    assert "no checkpoint was saved before that" in capsys.readouterr().err.splitlines()[-1]


def test_few_samples_of_another_process_train_the_last_layers_only(
    train: Callable[..., Path], checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    """The preset `adapt` on top of that of the trained network; what is frozen has no dropout, either."""
    adapt = f"--config={ROOT}/training/configs/adapt.yaml"
    where = f"--trainer.default_root_dir={tmp_path}"
    run = train(tmp_path, other, adapt, where, f"--model.weights={checkpoint}", "--trainer.max_epochs=2")
    start, (last,) = load_network(checkpoint), run.rglob("last.ckpt")
    trained = read_checkpoint(last)
    before = start.state_dict()
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, before[name]) != name.startswith("head."), name
    assert trained.provenance is not None
    assert trained.provenance.process.period_um == 1.6
    momenta = torch.load(last, weights_only=True)["optimizer_states"][0]["muon"]["state"]
    assert len(momenta) == 3, "kernels of the heads"


def test_parts_that_cannot_be_frozen_are_refused(checkpoint: Path) -> None:
    def made(config: NetworkConfig, freeze: list[str], weights: Path | None = None) -> SpectraModule:
        return SpectraModule(config, AdaptiveSpectralLoss(), freeze=freeze, weights=weights)

    trained = load_network(checkpoint).config
    assert isinstance(trained, DiffractionFieldNetConfig)
    with pytest.raises(ValueError, match="the network has no part encoder; its parts are stem, beam, body, head"):
        made(trained, ["encoder"], checkpoint)
    with pytest.raises(ValueError, match=r"model.freeze: stem would stay random: model.weights states no stem.0.bias"):
        made(trained, ["stem"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        made(trained, ["stem", "beam", "body", "head", "coarse_head"], checkpoint)
    module = made(trained, ["stem", "head.0"], checkpoint).train()
    assert not module.network.get_submodule("stem").training
    assert module.network.get_submodule("body").training


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize(("positions", "backend"), [(1, "aot_eager"), (2, "inductor")])
def test_a_compiled_step_learns_the_same(
    fine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: int, backend: str
) -> None:
    """Network, loss and their gradient, on the CPU. One network is compiled, the other is traced only: it has many kernels."""
    config: NetworkConfig = TINY if positions > 1 else DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2)
    if backend != "inductor":
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda function, options: compile_(function, backend=backend))
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = SpectraModule(config, AdaptiveSpectralLoss(w_curv=10), compile=compiled)
        for part in module.modules():
            if isinstance(part, (torch.nn.Dropout, torch.nn.Dropout2d)):
                part.p = 0.0  # its random numbers are others when compiled
        data = SpectraDataModule(str(fine), batch_size=8, positions=positions)
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
        results.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        assert (module._compiled is not None) == compiled
    assert results[1] == pytest.approx(results[0], rel=2e-3)
