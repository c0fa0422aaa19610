"""LiveWeights: callback that keeps a module's weights and `weights.json` in the run's folder the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.trainer import run_folder
from metaspec_training.fit.weights import FILE, LossWeights


class LiveWeights(Callback):
    """Takes up changes of `weights.json` while training runs, and writes into it what the training itself has changed.

    The file is read at the start of every epoch, after every `every_n_steps` batches of it, and after validation, so that
    checkpoints hold what was asked for. A file of invalid weights is refused with a message, and the old weights stay. The
    weights are logged at the start of every epoch, the curvature weight as far as it has come.

    Args:
        every_n_steps: largest number of batches before a change is taken up.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._file = Path()
        self._known: LossWeights | None = None  # content of the file when it was last read or written
        self._seen: int | None = None  # its time of modification then

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder."""
        self._file = run_folder(trainer) / FILE
        self._known = self._seen = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, also for a run that resumes in mid-epoch."""
        self._exchange(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up changes and log the weights."""
        assert isinstance(pl_module, SpectraModule)
        self._exchange(trainer, pl_module)
        weights = pl_module.loss_weights.model_dump() | {"w_curv": pl_module.curvature_weight}
        pl_module.log_dict({f"weights/{name}": value for name, value in weights.items()}, rank_zero_only=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take up changes every few batches."""
        if batch_idx and batch_idx % self.every_n_steps == 0:
            self._exchange(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what other callbacks have changed, and take up changes before a checkpoint is saved."""
        if not trainer.sanity_checking:
            self._exchange(trainer, pl_module)

    def _exchange(self, trainer: Trainer, module: LightningModule) -> None:
        """The first process reads and writes the file and sends the weights to the others."""
        assert isinstance(module, SpectraModule)
        weights = self._merged(module.loss_weights) if trainer.is_global_zero else module.loss_weights
        weights = LossWeights(**trainer.strategy.broadcast(weights.model_dump()))
        if weights != module.loss_weights:
            rank_zero_info(f"Loss weights are now {weights}")
            module.change_weights(weights)

    def _merged(self, weights: LossWeights) -> LossWeights:
        """The module's weights with those that were changed in the file since it was last read; the file gets the same."""
        if self._file.exists() and (modified := self._file.stat().st_mtime_ns) != self._seen:
            self._seen = modified
            try:
                found = LossWeights.read(self._file)
            except ValueError as error:
                rank_zero_warn(f"Loss weights not changed. {error}")
                return weights
            before = self._known or weights
            weights = weights.changed(**{name: value for name, value in found if value != getattr(before, name)})
            self._known = found
        if weights != self._known or not self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            weights.write(self._file)
            self._known, self._seen = weights, self._file.stat().st_mtime_ns
        return weights
