"""What happens in a training step: forward, loss, clipping, schedule, and what is logged of it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaspec_training.data import Batch
from metaspec_training.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.loss import AdaptiveSpectralLoss
from metaspec_training.model import DiffractionNet, DiffractionNetConfig

ModelConfig = DiffractionNetConfig | DiffractionFieldNetConfig

_CONFIGS: dict[str, type[DiffractionNetConfig] | type[DiffractionFieldNetConfig]] = {
    kind.__name__: kind for kind in (DiffractionNetConfig, DiffractionFieldNetConfig)
}

_REPORTED = AdaptiveSpectralLoss()


def build(config: ModelConfig) -> nn.Module:
    """The network of a configuration, freshly initialised."""
    return DiffractionNet(config) if isinstance(config, DiffractionNetConfig) else DiffractionFieldNet(config)


def load_network(checkpoint: Path) -> nn.Module:
    """The trained network of a checkpoint, on the CPU, in evaluation mode. No code in the file is run.

    Raises:
        ValueError: the file is no checkpoint, one of another version, or has weights that are not finite.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        name, settings = state["network"]
        network = build(_CONFIGS[name].from_dict(settings))
        weights = {key.removeprefix("network."): value for key, value in state["state_dict"].items()}
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{checkpoint} is not a checkpoint that this version can read: {first}") from error
    for key, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{checkpoint} has weights that are not finite, in {key}")
    return network.eval()


class SpectraModule(LightningModule):
    """A network and how it is trained.

    Args:
        config: which network.
        loss: of training; validation always reports the loss with weights 2, 0.1, 100, 0.
        learning_rate: peak of the schedule: linear warm-up, then cosine to a hundredth.
        weight_decay: of AdamW, on matrices and kernels only.
        warm_up: share of all steps.
        clip_norm: gradients are scaled down to this norm.
    """

    def __init__(
        self,
        config: ModelConfig,
        loss: AdaptiveSpectralLoss,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-3,
        warm_up: float = 0.05,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.network = build(config)
        self.loss = loss
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        self.clip_norm = clip_norm

    def forward(self, density: Tensor) -> Tensor:
        """Efficiencies (B, 2, 2, W) of densities (B, 1, 128, 128)."""
        spectra: Tensor = self.network(density)
        return spectra

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch's loss; logs each term's contribution."""
        density, target = batch
        terms = self.loss(self(density).float(), target)
        self.log("train/loss", terms.total, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in terms._asdict().items()})
        return torch.as_tensor(terms.total)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Mean absolute error and the reported loss."""
        density, target = batch
        prediction = self(density).float()
        size = len(density)
        self.log("validation/mae", (prediction - target).abs().mean(), prog_bar=True, batch_size=size)
        self.log("validation/loss", _REPORTED(prediction, target).total, prog_bar=True, batch_size=size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store which network the weights belong to."""
        checkpoint["network"] = (type(self.config).__name__, self.config.to_dict())

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and log the norm and whether it was clipped (the mean over steps is the clipped fraction)."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        self.log("train/gradient_norm", norm)
        self.log("train/clipped_fraction", (norm > self.clip_norm).float())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; vectors (norms, biases) are not decayed."""
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.99))
        total = int(self.trainer.estimated_stepping_batches)
        warm = max(1, int(self.warm_up * total))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, total - warm))))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
