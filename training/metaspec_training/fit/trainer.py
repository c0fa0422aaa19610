"""RunTrainer: Lightning's trainer with a choice of precision by the processor, and one folder for all files of a run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.utilities import rank_zero_info

from metaspec_training.fit.precision import choose_precision

_IRRELEVANT = (
    ".*does not have many workers",  # batches come from memory
    r"Found \d+ module\(s\) in eval mode",  # those of model.freeze
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # in Lightning's own code
)
"""Warnings of Lightning that a user of this package can do nothing about."""


class RunTrainer(Trainer):
    """Lightning's trainer, for `metaspec-train`.

    Args:
        accelerator: kind of processor, as Lightning names it.
        precision: precision as Lightning names it, or auto: bf16-mixed where the processor has units for it, else 32-true.
        **settings: Lightning's settings.
    """

    def __init__(
        self, *, accelerator: str | Accelerator = "auto", precision: str | int | None = None, **settings: Any
    ) -> None:
        for name in ("check_val_every_n_epoch", "val_check_interval"):
            if settings.get(name) == 0:
                raise ValueError(f"trainer.{name} must be above 0, got 0")
        if precision == "auto":
            precision, reason = choose_precision(accelerator)
            rank_zero_info(f"Precision {precision}: {reason}.")
        for message in _IRRELEVANT:
            warnings.filterwarnings("ignore", message)
        for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
            logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_relevant)
        super().__init__(accelerator=accelerator, precision=precision, **settings)  # type: ignore[arg-type]

    @property
    def log_dir(self) -> str:
        """The run's folder; Lightning's has one for all runs where the logger is neither TensorBoard's nor CSV's."""
        return str(run_folder(self))


def _is_relevant(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning is no advertisement, and does not state a default at every checkpoint."""
    message = record.getMessage()
    return "Tip: " not in message[:10] and not message.startswith("`weights_only` was not set")


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run, in which Lightning puts its `checkpoints`, whatever the logger.

    All processes of a training must call it.
    """
    logger = trainer.logger
    if logger is None:
        folder = trainer.default_root_dir
    else:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        composed = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
        folder = getattr(logger, "log_dir", None) or str(composed)
    return Path(trainer.strategy.broadcast(folder))
