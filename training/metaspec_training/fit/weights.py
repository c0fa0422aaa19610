"""Weights that can change while training runs: those of the loss, and the norm that gradients are clipped at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaspec_contract import files
from metaspec_contract.validation import first_error
from metaspec_training.fit.loss import AdaptiveSpectralLoss

FILE = "weights.json"
"""Name of the file in a run's folder."""

_Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Norm = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class LossWeights(BaseModel):
    """Weights of `AdaptiveSpectralLoss` and the clip norm, as a `SpectraModule` and the file in its run's folder hold them.

    Attributes:
        w_mse: weight of the error.
        w_rel: weight of the relative error.
        w_grad: weight of the error of first differences.
        w_curv: weight of the error of second differences.
        blue_weight: extra factor on the squared errors of detector B.
        w_orders: weight of the error of the field, where its orders are known.
        clip_norm: norm that gradients are scaled down to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    w_mse: _Weight
    w_rel: _Weight
    w_grad: _Weight
    w_curv: _Weight
    blue_weight: _Weight
    w_orders: _Weight = 0.2  # of runs that know nothing of it
    clip_norm: _Norm

    @classmethod
    def of(cls, loss: AdaptiveSpectralLoss, clip_norm: float) -> Self:
        """The weights of a loss, and a clip norm.

        Raises:
            ValueError: one that is negative or not finite.
        """
        names = [name for name in cls.model_fields if name != "clip_norm"]
        return cls._checked({name: getattr(loss, name) for name in names} | {"clip_norm": clip_norm})

    @classmethod
    def read(cls, file: Path) -> Self:
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

    def changed(self, **values: Any) -> Self:
        """The same weights with some changed.

        Raises:
            ValueError: a weight that is unknown, negative or not finite.
        """
        return self._checked(self.model_dump() | values)

    @classmethod
    def _checked(cls, values: dict[str, Any]) -> Self:
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(first_error(error)) from None

    def apply(self, loss: AdaptiveSpectralLoss) -> None:
        """Set the weights of a loss."""
        for name in type(self).model_fields.keys() - {"clip_norm"}:
            setattr(loss, name, getattr(self, name))


def change_weights(
    run: Path,
    w_mse: float | None = None,
    w_rel: float | None = None,
    w_grad: float | None = None,
    w_curv: float | None = None,
    blue_weight: float | None = None,
    w_orders: float | None = None,
    clip_norm: float | None = None,
) -> LossWeights:
    """Change the loss weights and the clip norm of a running training.

    Args:
        run: folder of the run, which holds `weights.json`.
        w_mse: weight of the error.
        w_rel: weight of the relative error.
        w_grad: weight of the error of first differences.
        w_curv: weight of the error of second differences, which the training takes up in small steps.
        blue_weight: extra factor on the squared errors of detector B.
        w_orders: weight of the error of the field, where its orders are known.
        clip_norm: norm that gradients are scaled down to.

    Raises:
        ValueError: there is no run, or a weight that is negative or not finite.
    """
    file = run / FILE
    if not file.exists():
        raise ValueError(f"{run} is not the folder of a run: it holds no {FILE}")
    asked = {
        "w_mse": w_mse,
        "w_rel": w_rel,
        "w_grad": w_grad,
        "w_curv": w_curv,
        "blue_weight": blue_weight,
        "w_orders": w_orders,
        "clip_norm": clip_norm,
    }
    weights = LossWeights.read(file).changed(**{name: value for name, value in asked.items() if value is not None})
    weights.write(file)
    return weights
