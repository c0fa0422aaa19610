"""Comparison of exported graphs with the trained network: spectra with PyTorch, gradients also with finite differences."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from metaspec_contract.model import COTANGENT, STRUCTURE
from metaspec_export.errors import ExportRefused
from metaspec_training.report.evaluation import predict

TOLERANCE = 1e-5
"""Largest absolute difference of an efficiency between PyTorch and ONNX Runtime that is allowed."""

GRADIENT_TOLERANCE = 1e-4
"""Largest allowed difference of the gradient from autograd and finite differences, relative to its largest element."""

Array = NDArray[np.float32]


class ParityError(ExportRefused):
    """An exported graph deviates from the network."""


@dataclass(frozen=True)
class GradientParity:
    """Differences between the gradient graph and the network.

    Attributes:
        spectra: largest absolute difference of the spectra.
        autograd: largest difference from `torch.autograd`, relative to the gradient's largest element.
        finite_differences: largest difference from central differences in float64 on a few pixels, relative likewise.
    """

    spectra: float
    autograd: float
    finite_differences: float


def session(graph: bytes) -> ort.InferenceSession:
    """Load a serialised graph into ONNX Runtime on the CPU."""
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run(
    graph: ort.InferenceSession, structures: NDArray[Any], cotangent: Array | None = None, batch: int = 16
) -> list[Array]:
    """All outputs of a graph.

    Args:
        graph: loaded graph.
        structures: structures, (N, 128, 128).
        cotangent: cotangents (N, channels, wavelengths), for a gradient graph.
        batch: structures in a batch.
    """
    parts = []
    starts = range(0, len(structures), batch)
    for start in tqdm(starts, "predicting", unit="batch", delay=2.0, leave=False, disable=None):
        rows = slice(start, start + batch)
        feed = {STRUCTURE: np.ascontiguousarray(structures[rows, None], np.float32)}
        if cotangent is not None:
            feed[COTANGENT] = cotangent[rows]
        parts.append(graph.run(None, feed))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def check_parity(network: nn.Module, graph: bytes, structures: NDArray[np.uint8]) -> float:
    """Largest absolute difference of spectra between PyTorch and ONNX Runtime, both float32 on the CPU.

    Args:
        network: network in PyTorch.
        graph: serialised forward graph.
        structures: structures to compare on, (N, 128, 128): in batches, and the first one alone, too.

    Raises:
        ParityError: the difference exceeds `TOLERANCE`, or a value is not finite.
    """
    served = session(graph)
    worst = 0.0
    for rows in (structures[:1], structures):
        (got,) = run(served, rows)
        worst = max(worst, _spectra_difference(got, predict(network, rows)))
    return worst


def check_gradient_parity(network: nn.Module, graph: bytes, structures: NDArray[np.uint8]) -> GradientParity:
    """Compare the gradient graph with `torch.autograd`, and with central finite differences in float64.

    Args:
        network: network in PyTorch.
        graph: serialised gradient graph.
        structures: structures to compare on, (N, 128, 128): in a batch, and the first one alone, too.

    Raises:
        ParityError: a difference exceeds `TOLERANCE` or `GRADIENT_TOLERANCE`, or a value is not finite.
    """
    served = session(graph)
    generator = np.random.default_rng(0)
    spectra = autograd = 0.0
    for rows in (structures[:1], structures):
        density = torch.from_numpy(rows[:, None].astype(np.float32)).requires_grad_()
        expected = network.eval()(density).flatten(1, -2)
        cotangent = generator.standard_normal(expected.shape, np.float32)
        (wanted,) = torch.autograd.grad(expected, density, torch.from_numpy(cotangent))
        got, gradient = run(served, rows, cotangent)
        spectra = max(spectra, _spectra_difference(got, expected.detach().numpy()))
        autograd = max(autograd, float(np.abs(gradient - wanted.numpy()).max() / wanted.abs().max()))
    differences = _finite_differences(network, rows[:1], cotangent[:1], gradient[0, 0])
    for name, share in (("torch.autograd", autograd), ("finite differences", differences)):
        if not share <= GRADIENT_TOLERANCE:
            raise ParityError(
                f"the gradient deviates from {name} by {share:.1e} of its largest element, allowed is {GRADIENT_TOLERANCE:.0e}"
            )
    return GradientParity(spectra, autograd, differences)


def _spectra_difference(got: Array, expected: Array) -> float:
    difference = float(np.abs(got - expected).max())
    if not difference <= TOLERANCE:  # this form also rejects NaN
        raise ParityError(f"ONNX Runtime deviates from PyTorch by {difference:.1e}, allowed is {TOLERANCE:.0e}")
    return difference


def _finite_differences(
    network: nn.Module, structure: NDArray[np.uint8], cotangent: Array, gradient: Array, step: float = 1e-4
) -> float:
    """Largest difference of a gradient (y, x) from central differences, at its largest pixel and three fixed ones."""
    exact = copy.deepcopy(network).double().eval()
    density = torch.from_numpy(structure[:, None].astype(np.float64))
    weights = torch.from_numpy(cotangent.astype(np.float64))
    largest = np.abs(gradient).argmax()
    worst = 0.0
    for pixel in (largest, 0, gradient.size // 3, gradient.size - 1):
        row, column = divmod(int(pixel), gradient.shape[1])
        values = []
        for sign in (1, -1):
            moved = density.clone()
            moved[0, 0, row, column] += sign * step
            with torch.inference_mode():
                values.append(float((exact(moved).flatten(1, -2) * weights).sum()))
        worst = max(worst, abs((values[0] - values[1]) / (2 * step) - float(gradient[row, column])))
    return worst / float(np.abs(gradient).max())
