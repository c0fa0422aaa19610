"""Optimisers from torch.optim, one vectorised step for all starts. Needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike

from metaspec.optimise.base import Array, Optimiser, check_latents, digest


class Torch(Optimiser):
    """An optimiser from torch.optim on the box [0, 1]: after each step, latents are clipped.

    Args:
        start: latents (M, y, x) in [0, 1]; a single float64 tensor for the optimiser.
        algorithm: name of a class of torch.optim, or a function from parameters to an optimiser. It must step without a
            closure, unlike LBFGS.
        **settings: arguments of the class; `lr` is 0.03 by default.

    Raises:
        ValueError: no such class, or it needs a closure.
    """

    def __init__(
        self,
        start: ArrayLike,
        algorithm: str | Callable[[list[torch.Tensor]], torch.optim.Optimizer] = "Adam",
        **settings: Any,
    ) -> None:
        latents = check_latents(start)
        self._latent = torch.from_numpy(latents)
        if isinstance(algorithm, str):
            found = getattr(torch.optim, algorithm, None)
            if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)) or algorithm == "LBFGS":
                raise ValueError(f"algorithm must be a class of torch.optim other than LBFGS, got {algorithm!r}")
            settings = {"lr": 0.03, **settings}
            self._optimizer = found([self._latent], **settings)
        else:
            self._optimizer = algorithm([self._latent])
        name = type(self._optimizer).__name__
        self.settings = {"name": "torch", "algorithm": name, "start": digest(latents), **settings}

    def _propose(self) -> Array:
        return self._latent.numpy().copy()

    def _learn(self, value: Array, gradient: Array) -> None:
        self._latent.grad = torch.from_numpy(-gradient)
        self._optimizer.step()
        self._latent.clamp_(0, 1)

    def state(self) -> dict[str, Array]:
        """The latents and the optimiser's tensors."""
        kept = {name: tensor for name, tensor in self._optimizer.state[self._latent].items() if tensor is not None}
        arrays = {f"state.{name}": torch.as_tensor(tensor).numpy().copy() for name, tensor in kept.items()}
        return {"latent": self._latent.numpy().copy(), **arrays}

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state returned by `state`."""
        self._latent.copy_(torch.from_numpy(state["latent"]))
        for name, array in state.items():
            if name.startswith("state."):
                self._optimizer.state[self._latent][name.removeprefix("state.")] = torch.from_numpy(array.copy())
        self._asked = None
