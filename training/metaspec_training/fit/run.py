"""The `fit` command: settings from files and flags become a training, which ends with a message when it is stopped."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.alignment import field_phase
from metaspec_training.fit.checkpoint import require_resumable
from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.stop import LastCheckpoint, TrainingStopped, last_saved
from metaspec_training.fit.trainer import RunTrainer
from metaspec_training.networks.field import DiffractionFieldNet


def run_training(arguments: list[str]) -> None:
    """Train as a command line says.

    Raises:
        ValueError: a setting that is refused.
        TrainingStopped: the training was interrupted, or its loss is not finite any more.
    """
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # they are those of the command line
    # Lightning calls jsonargparse as its older versions wanted it.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning.pytorch.cli")
    torch.set_float32_matmul_precision("high")
    _check_files(arguments)
    try:
        _TrainingCLI(
            SpectraModule,
            SpectraDataModule,
            trainer_class=RunTrainer,
            seed_everything_default=0,
            # Each epoch draws its own translations.
            trainer_defaults={"reload_dataloaders_every_n_epochs": 1, "callbacks": LastCheckpoint()},
            save_config_kwargs={"overwrite": True},  # a run that resumes under its name in an experiment tracker
            parser_kwargs={"exit_on_error": False},
            args=["fit", *arguments],
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(str(error)) from error


def _check_files(arguments: list[str]) -> None:
    """Refuse files of settings that are not YAML, by name; what is in them, the parser checks."""
    given = [value for flag, value in pairwise(arguments) if flag in ("-c", "--config")]
    given += [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    for file in map(Path, given):
        try:
            content = yaml.safe_load(file.read_text()) if file.is_file() else {}
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ValueError(f"{file} is not YAML, in line {line}: {error.problem}") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ValueError(f"{file} is not a file of text in YAML") from None
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no settings")


class _TrainingCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.provenance", "model.provenance", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        path = self.config.fit.ckpt_path
        if path is not None and Path(path).is_file():
            require_resumable(Path(path))

    def before_instantiate_classes(self) -> None:
        settings = self.config.fit
        if not settings.model.preset:
            files = [Path(str(file)).stem for file in settings.config or [] if file is not None]
            settings.model.preset = "+".join(files)
        if settings.trainer.accumulate_grad_batches < 1:
            raise ValueError("trainer.accumulate_grad_batches must be at least 1")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (RuntimeError, TypeError) as error:  # of torch and Lightning, for sizes and kinds that they refuse
            raise ValueError(str(error)) from error

    def before_fit(self) -> None:
        """Turn a field that was learnt from spectra alone to the phase of the orders that it is to learn."""
        settings, network = self.config.fit, self.model.network
        if settings.ckpt_path or not settings.model.weights or not settings.data.orders or not self.model.loss.w_orders:
            return
        if not isinstance(network, DiffractionFieldNet) or not all(p.requires_grad for p in network.head.parameters()):
            return
        samples = self.datamodule.samples_with_orders()
        if not (samples.grey < 0).any():
            return
        found = field_phase(network, samples)
        if not found.learnt:
            network.turn_field(found.phase)
            rank_zero_info(
                f"The field of {settings.model.weights} is not in phase with the orders, as after a training on spectra, which "
                "leave the phase open: it is turned, which hardly changes spectra. Error of the field as a share of its power: "
                f"{found.before:.2f}, now {found.after:.2f}."
            )

    def fit(self, **settings: Any) -> None:
        try:
            self.trainer.fit(**settings)
        except FloatingPointError as error:
            advice = "start from it with model.weights and a lower model.learning_rate"
            raise TrainingStopped(f"{error}: training stopped; {last_saved(self.trainer, advice)}", 1) from None
        except SystemExit:  # Lightning's answer to both signals
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            by_user = any(isinstance(each, LastCheckpoint) and each.interrupted for each in callbacks)
            what, status = ("interrupted", 130) if by_user else ("terminated", 143)
            raise TrainingStopped(f"{what}; {last_saved(self.trainer, 'resume with --ckpt_path')}", status) from None
