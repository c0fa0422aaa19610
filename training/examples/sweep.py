"""A sweep over learning rate, weight decay and width of the network, with Optuna.

Trials that lie behind are stopped early. The study is kept in OUT: repeat the command to resume it. Needs Optuna
(`pip install optuna`).

python training/examples/sweep.py --data datasets/bayer-600nm --out runs/sweep [--trials 20] [--epochs 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.averaging import MovingAverage
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.trainer import RunTrainer
from metaspec_training.networks.field import DiffractionFieldNetConfig


class Pruning(Callback):
    """Reports the validation loss of every epoch to a trial, and ends the trial if Optuna says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop the training if the trial is behind."""
        if not trainer.sanity_checking:
            self.trial.report(float(trainer.callback_metrics["validation/loss"]), trainer.current_epoch)
            trainer.should_stop |= self.trial.should_prune()


def train(trial: optuna.Trial, data: SpectraDataModule, epochs: int, blocks: int) -> float:
    """Train with the settings of a trial; returns the last validation loss."""
    seed_everything(0, verbose=False)
    module = SpectraModule(
        DiffractionFieldNetConfig(width=trial.suggest_categorical("width", [64, 96, 128]), blocks=blocks, beam=True),
        AdaptiveSpectralLoss(),
        learning_rate=trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True),
        optimizer="muon",
        provenance=data.provenance,
    )
    trainer = RunTrainer(
        precision="auto",
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[MovingAverage(), Pruning(trial)],
    )
    trainer.fit(module, data)
    if trainer.current_epoch < epochs:
        raise optuna.TrialPruned
    return float(trainer.callback_metrics["validation/loss"])


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing of the trials and print the best settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of training structures")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--positions", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=2)
    asked = parser.parse_args(arguments)

    asked.out.mkdir(parents=True, exist_ok=True)
    data = SpectraDataModule(asked.data, asked.batch_size, limit=asked.limit, positions=asked.positions)
    study = optuna.create_study(
        storage=f"sqlite:///{asked.out / 'sweep.db'}",
        study_name="sweep",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
    )
    finished = len([trial for trial in study.trials if trial.state.is_finished()])
    study.optimize(
        lambda trial: train(trial, data, asked.epochs, asked.blocks), n_trials=max(0, asked.trials - finished)
    )
    flags = {"width": "model.config.init_args.width"}
    best = " ".join(f"--{flags.get(name, f'model.{name}')} {value:.4g}" for name, value in study.best_params.items())
    print(f"Validation loss {study.best_value:.3e} with {best}")


if __name__ == "__main__":
    main()
