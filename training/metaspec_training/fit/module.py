"""SpectraModule: the LightningModule of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metaspec_contract.provenance import Provenance
from metaspec_training.data.augmentation import Batch
from metaspec_training.fit.checkpoint import NETWORK, PROVENANCE, stored_provenance
from metaspec_training.fit.loss import AdaptiveSpectralLoss, LossTerms, merge_greens
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.fit.start import freeze_parts, start_from
from metaspec_training.fit.weights import LossWeights
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.networks.layers import NetworkConfig

_REPORTED = AdaptiveSpectralLoss()

_WEIGHTS, _RAMP, _RANDOM = "loss_weights", "curvature_ramp", "random_state"
"""Keys of a checkpoint: weights asked for; curvature weight when another was asked for, and the step of that; state of the
random numbers of dropout."""

_CHECKED_EVERY = 50
"""Steps between two looks at whether the loss is finite on a GPU, which has to be waited for."""


class SpectraModule(LightningModule):
    """A network and its training. Any loader of `Batch`es serves it.

    Args:
        config: settings of the network.
        loss: loss of training; validation always reports the loss with weights 2, 0.1, 100, 0.
        learning_rate: peak of the schedule: linear warm-up, then cosine to a hundredth.
        weight_decay: weight decay of matrices and kernels; vectors are not decayed.
        warm_up: warm-up as a share of all steps.
        clip_norm: norm that gradients are scaled down to.
        ramp_steps: steps over which a change of the curvature weight is spread: all at once, it would multiply the gradient.
        weights: checkpoint to start from (warm start). Weights for which the new network has no place, or another shape,
            are left out and named; the schedule starts anew. The checkpoint's data sets are added to the provenance if they
            have the process and the greens of the data; otherwise a warning says why they are not.
        freeze: parts of the network that keep the weights they start from, by name, for few samples of another process.
        compile: whether to compile each step (network, loss and their gradient) with torch.compile, which pays off on GPUs.
        optimizer: adamw, or muon (see `MuonAdamW`).
        preset: name of the preset, kept in the checkpoint; `metaspec-train` takes it from the names of the config files.
        provenance: what the data are; `metaspec-train` takes it from the data. The network gets their process, and where
            only the mean of G1 and G2 is known, only the mean is compared. None leaves the network as configured and
            writes checkpoints without provenance.

    Attributes:
        loss_weights: weights of the loss and clip norm, the only place that holds them; see `change_weights`.

    Raises:
        ValueError: a number out of range, a network of another process than the data, `weights` that fit nowhere, or parts
            to freeze that the network does not have or that `weights` do not fill.
    """

    def __init__(
        self,
        config: NetworkConfig,
        loss: AdaptiveSpectralLoss,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-3,
        warm_up: float = 0.05,
        clip_norm: float = 1.0,
        ramp_steps: int = 500,
        weights: Path | None = None,
        freeze: list[str] | None = None,
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
        if ramp_steps < 1:
            raise ValueError(f"model.ramp_steps must be at least 1, got {ramp_steps}")
        self.config = config if provenance is None else config.for_process(provenance.process)
        self.network = self.config.build()
        self.provenance = provenance and provenance.model_copy(update={"preset": preset})
        fresh = set(self.network.state_dict())
        if weights is not None:
            fresh, self.provenance = start_from(self.network, weights, self.provenance)
        self._frozen = freeze_parts(self.network, freeze or [], fresh)
        self.loss = loss
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        self.optimizer = optimizer
        self.loss_weights = LossWeights.of(loss, clip_norm)
        self.ramp_steps = ramp_steps
        self._ramp = (self.loss_weights.w_curv, 0)  # curvature weight when another was asked for, and the step of that
        self._compile = compile
        self._compiled: Callable[[Batch], LossTerms] | None = None
        self._finite = torch.ones((), dtype=torch.bool)
        self._batch_size = 0
        self._random: dict[str, Tensor] | None = None  # of a checkpoint to resume from

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen parts stay in evaluation, without dropout."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def change_weights(self, weights: LossWeights) -> None:
        """Train with other weights from the next step on; the curvature weight moves there over `ramp_steps` steps."""
        if weights.w_curv != self.loss_weights.w_curv:
            self._ramp = (self.curvature_weight, self.global_step)
        self.loss_weights = weights

    @property
    def curvature_weight(self) -> float:
        """The curvature weight at the present step: on its way to that of `loss_weights`, or there."""
        start, since = self._ramp
        share = min(1.0, (self.global_step - since) / self.ramp_steps)
        return start + share * (self.loss_weights.w_curv - start)

    def forward(self, density: Tensor) -> Tensor:
        """Efficiencies (B, 2, 2, W) of densities (B, 1, 128, 128)."""
        spectra: Tensor = self.network(density)
        return spectra

    def on_fit_start(self) -> None:
        """Check settings that would fail in mid-epoch, and compile the step.

        Raises:
            ValueError: Muon in float16, or Lightning's own gradient clip.
        """
        if self.optimizer == "muon" and str(self.trainer.precision).startswith("16"):
            raise ValueError("model.optimizer muon has no loss scaling for float16: train with bf16-mixed or 32")
        if self.trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val is not used: set model.clip_norm")
        self.train()
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        if self._compile:
            # On CPUs, torch 2.13 crashes in the gradient of strided convolutions of few channels in the channels-last layout.
            options: Any = {"layout_optimization": False} if self.device.type == "cpu" else None
            self._compiled = torch.compile(self._errors, options=options)

    def on_train_start(self) -> None:
        """Take up the random numbers of dropout where a resumed run left them."""
        if self._random is not None:
            set_random_state(self._random, self.device)
            self._random = None

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the weights of this step."""
        self.loss_weights.apply(self.loss)
        self.loss.w_curv = self.curvature_weight

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch's loss; logs each term's contribution.

        Raises:
            ValueError: several positions, or orders, for a network that does not predict the field.
        """
        for name, asked in (("positions above 1", batch.spectra.shape[1] > 1), ("orders", batch.orders is not None)):
            if asked and not isinstance(self.network, DiffractionFieldNet):
                raise ValueError(f"data.{name} needs a network that predicts the field: DiffractionFieldNet")
        errors = self._compiled(batch) if self._compiled else self._errors(batch)
        terms = self.loss.weighted(errors)
        self._finite = self._finite & terms.total.detach().isfinite()
        self._batch_size = size = len(batch.density)
        self.log("train/loss", terms.total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms._asdict().items()}, batch_size=size)
        return torch.as_tensor(terms.total)

    def _errors(self, batch: Batch) -> LossTerms:
        """Errors of the network's predictions."""
        orders = None
        if isinstance(self.network, DiffractionFieldNet):
            maps = self.network.maps(batch.density, batch.low_fidelity)
            if batch.spectra.shape[1] > 1:
                prediction = self.network.spectra_at(maps, batch.shift)
            else:
                prediction = self.network.spectra(maps).unsqueeze(1)
            if batch.ordered is not None:
                orders = self.network.orders_of(maps[batch.ordered])
        else:
            prediction = self.network(batch.density).unsqueeze(1)
        return self.loss.errors(self._comparable(prediction.float()), batch.spectra, orders, batch.orders)

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
        """Store which network the weights belong to, what it was trained on, and the weights of the loss.

        Raises:
            FloatingPointError: the loss is not finite any more: the checkpoint that is there is better.
        """
        self._require_finite()
        checkpoint[NETWORK] = (type(self.config).__name__, self.config.to_dict())
        checkpoint[_WEIGHTS], checkpoint[_RAMP] = self.loss_weights.model_dump(), list(self._ramp)
        checkpoint[_RANDOM] = random_state(self.device)
        if self.provenance is not None:
            checkpoint[PROVENANCE] = self.provenance.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the weights that the run was stopped with; refuse to resume another run.

        Raises:
            ValueError: process, channels, merged greens, network or optimiser differ, and both sides are named; or bad
                weights.
        """
        stored = stored_provenance(checkpoint, "the checkpoint")
        if self.provenance is not None and stored is not None:
            self.provenance.require_same_device(stored, "the data", "the checkpoint to resume from")
        self._require_same_network(checkpoint)
        configured = self.loss_weights
        try:
            self.loss_weights = configured.changed(**checkpoint.get(_WEIGHTS, {}))
        except ValueError as error:
            raise ValueError(f"the weights of the loss in the checkpoint: {error}") from None
        start, since = checkpoint.get(_RAMP, (self.loss_weights.w_curv, 0))
        self._ramp = (float(start), int(since))
        self._random = checkpoint.get(_RANDOM)
        if self.loss_weights != configured:
            rank_zero_info(f"Resuming with the weights that the run was stopped with: {self.loss_weights}")

    def _require_same_network(self, checkpoint: dict[str, Any]) -> None:
        advice = "start from its weights (model.weights) instead"
        if NETWORK in checkpoint:
            name, settings = checkpoint[NETWORK]
            ours = self.config.to_dict()
            if name != type(self.config).__name__:
                raise ValueError(
                    f"the checkpoint to resume from is of a {name}, not {type(self.config).__name__}: {advice}"
                )
            for key, value in settings.items():
                if key != "process" and value != ours.get(key):
                    raise ValueError(
                        f"the network of the checkpoint to resume from has {key} {value}, not {ours.get(key)}: {advice}"
                    )
        for state in checkpoint.get("optimizer_states", []):
            if (found := "muon" if "muon" in state else "adamw") != self.optimizer:
                raise ValueError(f"the checkpoint to resume from has model.optimizer {found}, not {self.optimizer}")

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and log the norm, and the share of an epoch's steps that were clipped.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; on a GPU, some steps later.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.loss_weights.clip_norm)
        size = self._batch_size
        self.log("train/gradient_norm", norm, batch_size=size)
        clipped = (norm > self.loss_weights.clip_norm).float()
        self.log("train/clipped_fraction", clipped, on_step=False, on_epoch=True, batch_size=size)
        if not str(self.trainer.precision).startswith("16"):  # the loss scaling of float16 finds its scale by overflows
            self._finite = self._finite & norm.isfinite()
        if self.device.type == "cpu" or self.global_step % _CHECKED_EVERY == 0:
            self._require_finite()

    def on_validation_epoch_start(self) -> None:
        """Stop before a validation that makes no sense."""
        self._require_finite()

    def _require_finite(self) -> None:
        if not self._finite:
            raise FloatingPointError(f"the loss is not finite at step {self.global_step}, epoch {self.current_epoch}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule; vectors (norms, biases) are not decayed.

        Raises:
            ValueError: the training has no end.
        """
        optimizer: Optimizer
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "muon":
            optimizer = MuonAdamW(trained, self.learning_rate, self.weight_decay)
        else:
            decayed = [p for p in trained if p.ndim >= 2]
            others = [p for p in trained if p.ndim < 2]
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


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's random numbers on the CPU and on a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` has returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
