"""Loss weights that can be changed while training runs, through a file in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaspec_contract import files
from metaspec_contract.validation import first_error
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule

FILE = "weights.json"

_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class LossWeights(BaseModel):
    """Weights of `AdaptiveSpectralLoss`, as stored in the run's folder.

    Attributes:
        w_mse: weight of the error.
        w_rel: weight of the relative error.
        w_grad: weight of the error of first differences.
        w_curv: weight of the error of second differences.
        blue_weight: extra factor on the squared errors of detector B.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    w_mse: _Weight
    w_rel: _Weight
    w_grad: _Weight
    w_curv: _Weight
    blue_weight: _Weight

    @classmethod
    def of(cls, loss: AdaptiveSpectralLoss) -> LossWeights:
        """The current weights of a loss."""
        return cls(**{name: getattr(loss, name) for name in cls.model_fields})

    @classmethod
    def read(cls, file: Path) -> LossWeights:
        """Read and check a file.

        Raises:
            ValueError: it cannot be read, or holds bad weights; the first bad field is named.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{file}: {first_error(error)}") from None
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from None

    def write(self, file: Path) -> None:
        """Write the file as a whole: a training that reads it never sees half of it."""
        files.write_text(file, self.model_dump_json(indent=2) + "\n")

    def apply(self, loss: AdaptiveSpectralLoss) -> None:
        """Set the weights of a loss."""
        for name, value in self:
            setattr(loss, name, value)


def change_weights(
    run: Path,
    w_mse: float | None = None,
    w_rel: float | None = None,
    w_grad: float | None = None,
    w_curv: float | None = None,
    blue_weight: float | None = None,
) -> LossWeights:
    """Change the loss weights of a running training, from its next epoch on.

    Args:
        run: folder of the run, which holds `weights.json`.
        w_mse: weight of the error.
        w_rel: weight of the relative error.
        w_grad: weight of the error of first differences.
        w_curv: weight of the error of second differences.
        blue_weight: extra factor on the squared errors of detector B.

    Raises:
        ValueError: there is no run, or a weight that is negative or not finite.
    """
    file = run / FILE
    if not file.exists():
        raise ValueError(f"{run} is not the folder of a run: it holds no {FILE}")
    current = LossWeights.read(file).model_dump()
    asked = {"w_mse": w_mse, "w_rel": w_rel, "w_grad": w_grad, "w_curv": w_curv, "blue_weight": blue_weight}
    changed = {name: value for name, value in asked.items() if value is not None}
    try:
        weights = LossWeights(**current | changed)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    weights.write(file)
    return weights


class LiveWeights(Callback):
    """Reads the loss weights from `weights.json` in the run's folder at the start of every epoch.

    A file of invalid weights is refused with a message and the old weights stay. The weights are logged beside the terms of
    the loss, and a resumed run starts with the weights that it was stopped with.
    """

    def __init__(self) -> None:
        self._seen: int | None = None
        self._resumed: dict[str, float] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the file if it has changed; the first process reads it and sends the weights to the others."""
        assert isinstance(pl_module, SpectraModule)
        loss = pl_module.loss
        if self._resumed is not None:
            LossWeights(**self._resumed).apply(loss)
            self._resumed = None
        folder = trainer.log_dir  # a broadcast: every process must take part
        if trainer.is_global_zero and folder is not None:
            self._exchange(Path(folder) / FILE, loss)
        names = list(LossWeights.model_fields)
        values = torch.tensor([getattr(loss, name) for name in names], dtype=torch.float64)
        values = trainer.strategy.broadcast(values)
        LossWeights(**dict(zip(names, values.tolist(), strict=True))).apply(loss)
        pl_module.log_dict({f"weights/{name}": value for name, value in LossWeights.of(loss)}, rank_zero_only=True)

    def _exchange(self, file: Path, loss: AdaptiveSpectralLoss) -> None:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            LossWeights.of(loss).write(file)
        changed = file.stat().st_mtime_ns
        if changed == self._seen:
            return
        self._seen = changed
        try:
            weights = LossWeights.read(file)
        except ValueError as error:
            rank_zero_warn(f"Loss weights not changed. {error}")
            return
        if weights != LossWeights.of(loss):
            rank_zero_info(f"Loss weights are now {weights}")
            weights.apply(loss)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the current weights."""
        assert isinstance(pl_module, SpectraModule)
        checkpoint["loss_weights"] = LossWeights.of(pl_module.loss).model_dump()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the stored weights, at the start of the next epoch."""
        self._resumed = checkpoint.get("loss_weights")
