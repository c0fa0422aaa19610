"""SpectraModule: the LightningModule of a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaspec_contract.provenance import Provenance
from metaspec_training.data.augmentation import Batch
from metaspec_training.fit.checkpoint import NETWORK, PROVENANCE, read_checkpoint, stored_provenance, warm_start
from metaspec_training.fit.loss import AdaptiveSpectralLoss, merge_greens
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.networks.layers import NetworkConfig

_REPORTED = AdaptiveSpectralLoss()


class SpectraModule(LightningModule):
    """A network and its training. Any loader of `Batch`es serves it.

    Args:
        config: settings of the network.
        loss: loss of training; validation always reports the loss with weights 2, 0.1, 100, 0.
        learning_rate: peak of the schedule: linear warm-up, then cosine to a hundredth.
        weight_decay: weight decay of matrices and kernels; vectors are not decayed.
        warm_up: warm-up as a share of all steps.
        clip_norm: norm that gradients are scaled down to.
        weights: checkpoint to start from (warm start). Weights for which the new network has no place, or another shape,
            are left out and named; the schedule starts anew. The checkpoint's data sets are added to the provenance if they
            have the process and the greens of the data; otherwise a warning says why they are not.
        compile: whether to compile the network with torch.compile, which pays off on GPUs.
        optimizer: adamw, or muon (see `MuonAdamW`).
        preset: name of the preset, kept in the checkpoint; `metaspec-train` takes it from the names of the config files.
        provenance: what the data are; `metaspec-train` takes it from the data. The network gets their process, and where
            only the mean of G1 and G2 is known, only the mean is compared. None leaves the network as configured and
            writes checkpoints without provenance.

    Raises:
        ValueError: a number out of range, a network of another process than the data, or `weights` that fit nowhere.
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
        preset: str = "",
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("learning_rate", learning_rate), ("clip_norm", clip_norm)):
            if not 0 < value < math.inf:
                raise ValueError(f"model.{name} must be above 0, got {value}")
        if not 0 <= warm_up < 1:
            raise ValueError(f"model.warm_up is a share of all steps, from 0 to below 1, got {warm_up}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"model.weight_decay must not be negative, got {weight_decay}")
        self.config = config if provenance is None else config.for_process(provenance.process)
        self.network = self.config.build()
        self.provenance = provenance and provenance.model_copy(update={"preset": preset})
        if weights is not None:
            self._start_from(weights)
        if compile:
            self.network.compile()
        self.loss = loss
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        self.clip_norm = clip_norm
        self.optimizer = optimizer

    def _start_from(self, weights: Path) -> None:
        """Load the weights that fit, and add their data sets to the provenance."""
        trained = read_checkpoint(weights)
        try:
            missing = warm_start(self.network, trained.network)
        except ValueError as error:
            raise ValueError(f"model.weights: nothing in {weights} fits this network: {error}") from None
        if missing:
            rank_zero_warn(f"{weights} has no weights for {', '.join(missing)}: they start from scratch")
        if self.provenance is None:
            return
        if trained.provenance is None:
            rank_zero_warn(f"{weights} does not state what it was trained on: the provenance will not list it")
            return
        try:
            self.provenance = with_earlier_data(self.provenance, trained.provenance, str(weights))
        except ValueError as error:
            rank_zero_warn(f"{error}: the provenance will not list what {weights} was trained on")

    def forward(self, density: Tensor) -> Tensor:
        """Efficiencies (B, 2, 2, W) of densities (B, 1, 128, 128)."""
        spectra: Tensor = self.network(density)
        return spectra

    def on_fit_start(self) -> None:
        """Check settings that would fail in mid-epoch.

        Raises:
            ValueError: Muon in float16.
        """
        if self.optimizer == "muon" and str(self.trainer.precision).startswith("16"):
            raise ValueError("model.optimizer muon has no loss scaling for float16: train with bf16-mixed or 32")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch's loss; logs each term's contribution.

        Raises:
            ValueError: several positions for a network that does not predict the field.
        """
        several = batch.spectra.shape[1] > 1
        if not isinstance(self.network, DiffractionFieldNet):
            if several:
                raise ValueError("data.positions above 1 needs a network that predicts the field: DiffractionFieldNet")
            prediction = self(batch.density).unsqueeze(1)
        elif several:
            prediction = self.network.at(batch.density, batch.shift, batch.low_fidelity)
        else:
            prediction = self.network(batch.density, batch.low_fidelity).unsqueeze(1)
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

    def _comparable(self, prediction: Tensor) -> Tensor:
        """The prediction, greens averaged where the labels hold only their mean."""
        merged = self.provenance is not None and self.provenance.merged_greens
        return merge_greens(prediction) if merged else prediction

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store which network the weights belong to, and what it was trained on."""
        checkpoint[NETWORK] = (type(self.config).__name__, self.config.to_dict())
        if self.provenance is not None:
            checkpoint[PROVENANCE] = self.provenance.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run on data of another device.

        Raises:
            ValueError: process, channels or merged greens differ; both sides are named.
        """
        stored = stored_provenance(checkpoint, "the checkpoint")
        if self.provenance is not None and stored is not None:
            self.provenance.require_same_device(stored, "the data", "the checkpoint to resume from")

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


def with_earlier_data(provenance: Provenance, earlier: Provenance, weights: str) -> Provenance:
    """A provenance with the data sets of the weights that training started from.

    All data sets of a provenance are of its process and greens, so data sets of other ones cannot be added.

    Args:
        provenance: provenance of the data; its data sets come first.
        earlier: provenance of the weights. Of a data set in both, the larger number of structures is kept.
        weights: name of the weights in messages.

    Raises:
        ValueError: the processes differ, or greens are merged on one side only; both sides are named.
    """
    provenance.require_same_device(earlier, "the data", weights)
    before = {source.name: source for source in earlier.data}
    data = [
        max(source, before.pop(source.name, source), key=lambda each: each.structures) for source in provenance.data
    ]
    return provenance.model_copy(update={"data": (*data, *before.values())})
