"""PlateauAdvice: callback for a stalled validation loss."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from metaspec_training.fit.module import SpectraModule
from metaspec_training.networks.query import DiffractionNetConfig


class PlateauAdvice(Callback):
    """Enables or recommends the next disabled improvement when the validation loss stalls.

    They come in the order in which they help convergence most: memory norm (1), FiLM scale (2), gradient clip (4), then
    detector heads (3), fine tokens (7), curvature (5). The rule changes the clip norm and the curvature weight itself
    (`SpectraModule.change_weights`); the network cannot be changed in a run, so the message says how to start a new run from
    the current weights.

    Args:
        patience: epochs without improvement before the next step.
        threshold: smallest relative improvement that counts.
        clip_norm: norm that the gradient clip is raised to.
        w_curv: weight that the curvature term is raised to, in small steps.
    """

    def __init__(
        self, patience: int = 20, threshold: float = 0.01, clip_norm: float = 1.0, w_curv: float = 1000.0
    ) -> None:
        if patience < 1 or not 0 < threshold < 1:
            raise ValueError(
                f"patience must be at least 1 and threshold between 0 and 1, got {patience} and {threshold}"
            )
        if not clip_norm > 0 or not w_curv >= 0:
            raise ValueError(f"clip_norm must be above 0 and w_curv must not be negative, got {clip_norm} and {w_curv}")
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
            ("clip_norm", module.loss_weights.clip_norm < self.clip_norm),
            ("detector_heads", transformer is not None and not transformer.detector_heads),
            ("fine_tokens", transformer is not None and not transformer.fine_tokens),
            ("w_curv", module.loss_weights.w_curv == 0),
        ]
        step = next((name for name, off in steps if off and name not in self._advised), None)
        if step is None:
            return
        self._advised.append(step)
        stalled = f"No improvement of {self.threshold:.0%} in {self.patience} epochs:"
        if step == "clip_norm":
            module.change_weights(module.loss_weights.changed(clip_norm=self.clip_norm))
            rank_zero_info(f"{stalled} gradients are now clipped at {self.clip_norm}")
        elif step == "w_curv":
            module.change_weights(module.loss_weights.changed(w_curv=self.w_curv))
            rank_zero_info(f"{stalled} the curvature weight rises to {self.w_curv} within {module.ramp_steps} steps")
        else:
            rank_zero_info(
                f"{stalled} next try {step}, from the current weights: "
                f"--model.config.init_args.{step} true --model.weights RUN/checkpoints/last.ckpt"
            )

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the steps already taken."""
        return {"best": self._best, "stalled": self._stalled, "advised": self._advised}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._best, self._stalled = state_dict["best"], state_dict["stalled"]
        self._advised = list(state_dict["advised"])
