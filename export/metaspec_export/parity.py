"""Comparison of exported graphs with the trained network: spectra with PyTorch, gradients also with finite differences."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from metaspec_contract.conditions import check_conditions, spread_conditions
from metaspec_contract.model import COTANGENT, STRUCTURE
from metaspec_export.errors import ExportRefused
from metaspec_training.networks.layers import conditions_of
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


def is_gradient(graph: ort.InferenceSession) -> bool:
    """Whether a loaded graph takes a cotangent."""
    return any(value.name == COTANGENT for value in graph.get_inputs())


def run(
    graph: ort.InferenceSession,
    structures: NDArray[Any],
    cotangent: Array | None = None,
    batch: int = 16,
    conditions: Mapping[str, Array] | None = None,
) -> list[Array]:
    """All outputs of a graph.

    Args:
        graph: loaded graph.
        structures: structures, (N, 128, 128).
        cotangent: cotangents (N, channels, wavelengths), for a gradient graph.
        batch: structures in a batch.
        conditions: values of all conditions of the graph by name, (N, size).
    """
    parts = []
    starts = range(0, len(structures), batch)
    for start in tqdm(starts, "predicting", unit="batch", delay=2.0, leave=False, disable=None):
        rows = slice(start, start + batch)
        feed = {STRUCTURE: np.ascontiguousarray(structures[rows, None], np.float32)}
        if cotangent is not None:
            feed[COTANGENT] = cotangent[rows]
        feed |= {name: values[rows] for name, values in (conditions or {}).items()}
        parts.append(graph.run(None, feed))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def spectra_of(
    graph: ort.InferenceSession, structures: NDArray[Any], conditions: Mapping[str, Array] | None = None
) -> Array:
    """Spectra of a forward or gradient graph, (N, channels, wavelengths); arguments are those of `run`."""
    shape = (len(structures), *graph.get_outputs()[0].shape[1:])
    cotangent = np.zeros(shape, np.float32) if is_gradient(graph) else None
    return run(graph, structures, cotangent, conditions=conditions)[0]


def check_parity(network: nn.Module, graph: bytes, structures: NDArray[np.uint8]) -> float:
    """Largest absolute difference of spectra between PyTorch and ONNX Runtime, both float32 on the CPU.

    Args:
        network: network in PyTorch.
        graph: serialised forward graph.
        structures: structures to compare on, (N, 128, 128): in batches, and the first one alone, too. Conditions take values
            over their range, and their defaults.

    Raises:
        ParityError: the difference exceeds `TOLERANCE`, or a value is not finite.
    """
    served = session(graph)
    worst = 0.0
    conditions = conditions_of(network)
    for rows in (structures[:1], structures):
        default = check_conditions(conditions, {}, len(rows))
        worst = max(worst, _spectra_difference(run(served, rows, conditions=default)[0], predict(network, rows)))
        if conditions:
            given = spread_conditions(conditions, len(rows))
            expected = predict(network, rows, conditions=given)
            worst = max(worst, _spectra_difference(run(served, rows, conditions=given)[0], expected))
    return worst


def check_gradient_parity(network: nn.Module, graph: bytes, structures: NDArray[np.uint8]) -> GradientParity:
    """Compare the gradient graph with `torch.autograd`, and with central finite differences in float64.

    Conditions take values over their range, and the gradients with respect to them are compared, too.

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
    largest: list[float] = []  # elements of the gradients in the whole batch: in a single row, their terms may cancel
    for rows in (structures, structures[:1]):
        given = spread_conditions(conditions_of(network), len(rows))
        density = torch.from_numpy(rows[:, None].astype(np.float32)).requires_grad_()
        values = {name: torch.from_numpy(array).requires_grad_() for name, array in given.items()}
        expected = network.eval()(density, **values).flatten(1, -2)
        cotangent = generator.standard_normal(expected.shape, np.float32)
        wanted = torch.autograd.grad(expected, (density, *values.values()), torch.from_numpy(cotangent))
        got, *gradients = run(served, rows, cotangent, conditions=given)
        spectra = max(spectra, _spectra_difference(got, expected.detach().numpy()))
        largest = largest or [float(one.abs().max()) for one in wanted]
        for ours, theirs, size in zip(gradients, wanted, largest, strict=True):
            autograd = max(autograd, float(np.abs(ours - theirs.numpy()).max()) / size)
    differences = _finite_differences(network, rows, cotangent, given, gradients, largest)
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
    network: nn.Module,
    structure: NDArray[np.uint8],
    cotangent: Array,
    conditions: Mapping[str, Array],
    gradients: Sequence[Array],
    largest: Sequence[float],
    step: float = 1e-4,
) -> float:
    """Largest difference of gradients from central differences, relative to the largest elements.

    With respect to the density at its largest pixel and three fixed ones, to a condition at every component.

    Args:
        network: network in PyTorch.
        structure: one structure, (1, y, x).
        cotangent: its cotangent, (1, channels, wavelengths).
        conditions: its conditions by name, (1, size).
        gradients: gradients with respect to the density and to each condition, with the batch axis.
        largest: size of each that differences are relative to.
        step: step of the density, and of conditions in shares of their range.
    """
    exact = copy.deepcopy(network).double().eval()
    inputs = [torch.from_numpy(structure[:, None].astype(np.float64))]
    inputs += [torch.from_numpy(values.astype(np.float64)) for values in conditions.values()]
    steps = [step, *(step * (condition.high - condition.low) for condition in conditions_of(network))]
    weights = torch.from_numpy(cotangent.astype(np.float64))

    def figure(n: int, element: int, by: float) -> float:
        moved = [one.clone() for one in inputs]
        moved[n].view(-1)[element] += by
        with torch.inference_mode():
            spectra = exact(moved[0], **dict(zip(conditions, moved[1:], strict=True)))
            return float((spectra.flatten(1, -2) * weights).sum())

    worst = 0.0
    for n, gradient in enumerate(gradients):
        flat, by = gradient.ravel(), steps[n]
        elements = range(flat.size) if n else (int(np.abs(flat).argmax()), 0, flat.size // 3, flat.size - 1)
        found = max(abs((figure(n, k, by) - figure(n, k, -by)) / (2 * by) - float(flat[k])) for k in elements)
        worst = max(worst, found / largest[n])
    return worst
