"""Steering a training while it runs: live loss weights, and what to do when it no longer improves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.networks.query import DiffractionNetConfig

FILE = "weights.json"

_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class LossWeights(BaseModel):
    """The weights of `AdaptiveSpectralLoss`, as they lie in the run's folder.

    Attributes:
        w_mse: of the error.
        w_rel: of the relative error.
        w_grad: of the error of first differences.
        w_curv: of the error of second differences.
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
        """The weights that a loss has now."""
        return cls(**{name: getattr(loss, name) for name in cls.model_fields})

    @classmethod
    def read(cls, file: Path) -> LossWeights:
        """Read and check a file.

        Raises:
            ValueError: what is wrong with it, field by field.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}, got {e['input']!r:.60}" for e in error.errors()
            ]
            raise ValueError(f"{file}: {'; '.join(wrong)}") from None
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from None

    def write(self, file: Path) -> None:
        """Replace a file as a whole: a training that reads it never sees half of it."""
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_text(self.model_dump_json(indent=2) + "\n")
        beside.replace(file)

    def apply(self, loss: AdaptiveSpectralLoss) -> None:
        """Set them."""
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
    """Change the loss weights of a running training; it takes them up at its next epoch.

    Args:
        run: folder of the run; it holds `weights.json`.
        w_mse: of the error.
        w_rel: of the relative error.
        w_grad: of the error of first differences.
        w_curv: of the error of second differences.
        blue_weight: extra factor on the squared errors of detector B.

    Raises:
        ValueError: no run there, or a weight that is negative or not finite.
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
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg']}, got {first['input']}") from None
    weights.write(file)
    return weights


class LiveWeights(Callback):
    """Keeps the loss weights in step with `weights.json` in the run's folder, at the start of every epoch.

    A file that does not hold valid weights is refused with a message and the old weights stay. The weights are logged beside
    the contributions of the terms, and a resumed run starts with those it was stopped with.
    """

    def __init__(self) -> None:
        self._seen: int | None = None
        self._resumed: dict[str, float] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the file if it has changed; the first process reads, all take over."""
        assert isinstance(pl_module, SpectraModule)
        loss = pl_module.loss
        if self._resumed is not None:
            LossWeights(**self._resumed).apply(loss)
            self._resumed = None
        folder = trainer.log_dir  # all processes must ask: the first tells the others
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
        """Note the weights in force."""
        checkpoint["loss_weights"] = LossWeights.of(pl_module.loss).model_dump()  # type: ignore[arg-type]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find them again."""
        self._resumed = checkpoint.get("loss_weights")


class PlateauAdvice(Callback):
    """When the validation loss stalls, takes the next of the improvements that are still off.

    Their order is the order in which they help convergence most: normalised memory (1), FiLM scale (2), gradient clip (4), then
    detector heads (3), fine tokens (7), curvature (5). The clip and the curvature weight are changed at once; a part of the
    network cannot be, so the message says how to go on with it from the weights so far.

    Args:
        patience: epochs without improvement.
        threshold: relative improvement that counts.
        clip_norm: what the gradient clip is raised to.
        w_curv: the weight of the curvature term when it is switched on.
    """

    def __init__(
        self, patience: int = 20, threshold: float = 0.01, clip_norm: float = 1.0, w_curv: float = 1000.0
    ) -> None:
        if patience < 1 or not 0 < threshold < 1:
            raise ValueError(
                f"patience must be at least 1 and threshold between 0 and 1, got {patience} and {threshold}"
            )
        self.patience, self.threshold, self.clip_norm, self.w_curv = patience, threshold, clip_norm, w_curv
        self._best, self._stalled = float("inf"), 0
        self._advised: list[str] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count epochs without improvement."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, SpectraModule)
        loss = float(trainer.callback_metrics["validation/loss"])
        if loss < self._best * (1 - self.threshold):
            self._best, self._stalled = loss, 0
            return
        self._stalled += 1
        if self._stalled >= self.patience:
            self._stalled = 0
            self._advise(pl_module)

    def _advise(self, module: SpectraModule) -> None:
        config = module.config
        transformer = config if isinstance(config, DiffractionNetConfig) else None
        steps = [
            ("memory_norm", transformer is not None and not transformer.memory_norm),
            ("film_scale", transformer is not None and not transformer.film_scale),
            ("clip_norm", module.clip_norm < self.clip_norm),
            ("detector_heads", transformer is not None and not transformer.detector_heads),
            ("fine_tokens", transformer is not None and not transformer.fine_tokens),
            ("w_curv", module.loss.w_curv == 0),
        ]
        step = next((name for name, off in steps if off and name not in self._advised), None)
        if step is None:
            return
        self._advised.append(step)
        stalled = f"No improvement of {self.threshold:.0%} in {self.patience} epochs:"
        if step == "clip_norm":
            module.clip_norm = self.clip_norm
            rank_zero_info(f"{stalled} gradients are now clipped at {self.clip_norm}")
        elif step == "w_curv":
            module.loss.w_curv = self.w_curv
            rank_zero_info(f"{stalled} the curvature term is now on, w_curv = {self.w_curv}")
        else:
            rank_zero_info(
                f"{stalled} next try {step}, from the weights so far: "
                f"--model.config.init_args.{step} true --model.weights RUN/checkpoints/last.ckpt"
            )

    def state_dict(self) -> dict[str, Any]:
        """Counters and what was already done."""
        return {"best": self._best, "stalled": self._stalled, "advised": self._advised}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint stopped."""
        self._best, self._stalled = state_dict["best"], state_dict["stalled"]
        self._advised = list(state_dict["advised"])
