"""LastCheckpoint: callback that keeps `last.ckpt` up to date, also when a training is stopped by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class TrainingStopped(Exception):
    """A training that ended before its time. The message says why, and where it can go on.

    Attributes:
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` after every validation and when the training is stopped.

    Lightning's `ModelCheckpoint` saves it only together with a better one, so that a run would resume from its best epoch. The
    first Ctrl-C becomes SIGTERM, at which Lightning stops after the current batch. Trainings of several processes, which do not
    stop at the same batch, keep the checkpoint of their last validation.

    Attributes:
        interrupted: whether the signal was Ctrl-C.
    """

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to Ctrl-C; Lightning restores the handlers in the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rank_zero_info("Stopping after this batch; Ctrl-C again stops at once.")
        signal.raise_signal(signal.SIGTERM)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint if it was not saved with a better one just now."""
        best = trainer.checkpoint_callback
        saved = getattr(best, "_last_global_step_saved", None) == trainer.global_step
        if not trainer.sanity_checking and trainer.state.fn == "fit" and not saved:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint, unless weights are those of a validation, or the epoch has ended and has its own."""
        ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if isinstance(exception, SIGTERMException) and trainer.world_size == 1 and trainer.training and not ended:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.save_last and best.dirpath:
            path = Path(best.dirpath) / "last.ckpt"
            best.last_model_path = str(path)
            trainer.save_checkpoint(path)


def last_saved(trainer: Trainer, advice: str) -> str:
    """Which checkpoint a training has left, and what to do with it.

    Args:
        trainer: trainer of the training.
        advice: what to do with a checkpoint, as a command.
    """
    callback = trainer.checkpoint_callback
    path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    return f"the last good checkpoint is {path}: {advice}" if path else "no checkpoint was saved before that"
