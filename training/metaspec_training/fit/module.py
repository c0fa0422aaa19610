"""What happens in a training step: forward, loss, clipping, schedule, and what is logged of it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaspec_training.data.datamodule import Batch, SpectraDataModule
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig
from metaspec_training.networks.query import DiffractionNetConfig

_CONFIGS: dict[str, type[NetworkConfig]] = {
    kind.__name__: kind for kind in (DiffractionNetConfig, DiffractionFieldNetConfig)
}

_REPORTED = AdaptiveSpectralLoss()


def load_network(checkpoint: Path) -> nn.Module:
    """The trained network of a checkpoint, on the CPU, in evaluation mode. No code in the file is run.

    Raises:
        ValueError: the file is no checkpoint, one of another version, or has weights that are not finite.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        name, settings = state["network"]
        network = _CONFIGS[name].from_dict(settings).build()
        weights = {key.removeprefix("network."): value for key, value in state["state_dict"].items()}
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{checkpoint} is not a checkpoint that this version can read: {first}") from error
    for key, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{checkpoint} has weights that are not finite, in {key}")
    return network.eval()


def warm_start(network: nn.Module, checkpoint: Path) -> list[str]:
    """Take over the weights of a checkpoint that have the same name and shape; returns the names of those left out.

    A field in another number of splines is fitted (`DiffractionFieldNet.with_basis`).

    Raises:
        ValueError: the checkpoint cannot be read, or nothing in it fits.
    """
    source = load_network(checkpoint)
    if isinstance(source, DiffractionFieldNet) and isinstance(network, DiffractionFieldNet):
        splines = network.config.spectral_basis
        source = source if source.config.spectral_basis == splines else source.with_basis(splines)
    trained, own = source.state_dict(), network.state_dict()
    fitting = {name: value for name, value in trained.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(f"model.weights: nothing in {checkpoint} fits this network")
    network.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    if left:
        rank_zero_warn(f"{checkpoint} has no weights for {', '.join(left)}: they start from scratch")
    return left


class SpectraModule(LightningModule):
    """A network and how it is trained.

    Args:
        config: which network.
        loss: of training; validation always reports the loss with weights 2, 0.1, 100, 0.
        learning_rate: peak of the schedule: linear warm-up, then cosine to a hundredth.
        weight_decay: of AdamW, on matrices and kernels only.
        warm_up: share of all steps.
        clip_norm: gradients are scaled down to this norm.
        weights: checkpoint to start from (warm start). Weights that the new network has no place for, or that have another
            shape there, are left out and named; the schedule starts anew.
        compile: compile the network with torch.compile; pays off on GPUs.
        optimizer: adamw, or muon (see `MuonAdamW`).

    Raises:
        ValueError: a number out of range, or `weights` that fit nowhere.
    """

    def __init__(
        self,
        config: NetworkConfig,
        loss: AdaptiveSpectralLoss,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-3,
        warm_up: float = 0.05,
        clip_norm: float = 1.0,
        weights: Path | None = None,
        compile: bool = False,
        optimizer: Literal["adamw", "muon"] = "adamw",
    ) -> None:
        super().__init__()
        for name, value in (("learning_rate", learning_rate), ("clip_norm", clip_norm)):
            if not 0 < value < math.inf:
                raise ValueError(f"model.{name} must be above 0, got {value}")
        if not 0 <= warm_up < 1:
            raise ValueError(f"model.warm_up is a share of all steps, from 0 to below 1, got {warm_up}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"model.weight_decay must not be negative, got {weight_decay}")
        self.config = config
        self.network = config.build()
        if weights is not None:
            warm_start(self.network, weights)
        if compile:
            self.network.compile()
        self.loss = loss
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        self.clip_norm = clip_norm
        self.optimizer = optimizer

    def forward(self, density: Tensor) -> Tensor:
        """Efficiencies (B, 2, 2, W) of densities (B, 1, 128, 128)."""
        spectra: Tensor = self.network(density)
        return spectra

    def on_fit_start(self) -> None:
        """Refuse what only fails later, in the middle of an epoch.

        Raises:
            ValueError: several positions for a network that does not predict the field, or Muon in float16.
        """
        if self._data.positions > 1 and not isinstance(self.network, DiffractionFieldNet):
            raise ValueError("data.positions above 1 needs a network that predicts the field: DiffractionFieldNet")
        if self.optimizer == "muon" and str(self.trainer.precision).startswith("16"):
            raise ValueError("model.optimizer muon has no loss scaling for float16: train with bf16-mixed or 32")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch's loss; logs each term's contribution."""
        if not isinstance(self.network, DiffractionFieldNet):
            prediction = self(batch.density).unsqueeze(1)
        elif self._data.positions > 1:
            prediction = self.network.at(batch.density, batch.shift, batch.coarse)
        else:
            prediction = self.network(batch.density, batch.coarse).unsqueeze(1)
        terms = self.loss(self._comparable(prediction.float()), batch.spectra)
        size = len(batch.density)
        self.log("train/loss", terms.total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms._asdict().items()}, batch_size=size)
        return torch.as_tensor(terms.total)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Mean absolute error and the reported loss."""
        prediction = self._comparable(self(batch.density).unsqueeze(1).float())
        logged = {
            "validation/mae": (prediction - batch.spectra).abs().mean(),
            "validation/loss": _REPORTED(prediction, batch.spectra).total,
        }
        self.log_dict(logged, prog_bar=True, batch_size=len(batch.density), sync_dist=True)

    @property
    def _data(self) -> SpectraDataModule:
        data: SpectraDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _comparable(self, prediction: Tensor) -> Tensor:
        """Where only the mean of G1 and G2 is known, only their mean can be compared."""
        if not self._data.merged_greens:
            return prediction
        green = (prediction[..., 0, 1, :] + prediction[..., 1, 0, :]) / 2
        rows = (
            torch.stack([prediction[..., 0, 0, :], green], dim=-2),
            torch.stack([green, prediction[..., 1, 1, :]], dim=-2),
        )
        return torch.stack(rows, dim=-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store which network the weights belong to."""
        checkpoint["network"] = (type(self.config).__name__, self.config.to_dict())

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and log the norm and whether it was clipped (the mean over steps is the clipped fraction)."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        self.log("train/gradient_norm", norm)
        self.log("train/clipped_fraction", (norm > self.clip_norm).float())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule; vectors (norms, biases) are not decayed.

        Raises:
            ValueError: the training has no end.
        """
        optimizer: Optimizer
        if self.optimizer == "muon":
            optimizer = MuonAdamW(list(self.parameters()), self.learning_rate, self.weight_decay)
        else:
            decayed = [p for p in self.parameters() if p.ndim >= 2]
            others = [p for p in self.parameters() if p.ndim < 2]
            groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
            optimizer = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.99))
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                "trainer.max_epochs or trainer.max_steps must be set: the learning rate falls towards an end"
            )
        warm = max(1, int(self.warm_up * total))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, total - warm))))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
