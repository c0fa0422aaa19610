"""The models with conditions, run by ONNX Runtime alone: what every answer of a server is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike

from metaspec_contract.conditions import check_conditions
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_testing.conditioned_models import (
    CONDITIONS,
    conditioned_gradient_model,
    conditioned_model,
)
from metaspec_testing.small_models import Array, write_repository


def conditioned_repository(root: Path) -> Path:
    """Put the model with conditions and its gradient model into a repository; returns the repository."""
    write_repository(root, conditioned_model())
    return write_repository(root, conditioned_gradient_model())


class Direct:
    """The forward and the gradient model of a repository.

    Args:
        repository: folder of the models, each in version 1.
    """

    def __init__(self, repository: Path) -> None:
        def session(name: str) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")

        self._forward, self._gradient = session(DEFAULT_MODEL), session(gradient_model(DEFAULT_MODEL))

    def spectra(self, structures: Array, **given: ArrayLike) -> Array:
        """Spectra (N, 4, 301) of structures (N, 128, 128) at some conditions."""
        spectra: Array = self._forward.run(["spectra"], _inputs(structures, given))[0]
        return spectra

    def gradients(self, structures: Array, cotangent: Array, **given: ArrayLike) -> dict[str, Array]:
        """All outputs of the gradient model, by name: `gradient` (N, 1, 128, 128), one more for each condition, and spectra."""
        names = [output.name for output in self._gradient.get_outputs()]
        inputs = _inputs(structures, given) | {"cotangent": cotangent.astype(np.float32)}
        return dict(zip(names, self._gradient.run(names, inputs), strict=True))


def _inputs(structures: Array, given: dict[str, Any]) -> dict[str, Array]:
    density = structures.reshape(-1, 1, 128, 128).astype(np.float32)
    return {"structure": density, **check_conditions(CONDITIONS, given, len(density))}
