"""A small but real model with two conditions: the small model whose logits also depend on a distance and on an incidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.conditions import Condition
from metaspec_contract.model import CONDITIONS_VERSION
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model

DISTANCE = Condition(name="distance_um", unit="um", low=1.0, high=3.0, default=2.5)
"""A number."""

INCIDENCE = Condition(name="incidence", unit="degrees", low=-20.0, high=20.0, default=(0.0, 0.0), size=2)
"""A vector of two numbers."""

CONDITIONS = (DISTANCE, INCIDENCE)
"""The conditions of the model; at their defaults, its spectra are those of `small_model`."""

CONDITIONED_METADATA: dict[str, Any] = METADATA | {
    "schema_version": CONDITIONS_VERSION,
    "conditions": [condition.model_dump(mode="json") for condition in CONDITIONS],
}
"""Metadata of the model."""


def conditioned_model(metadata: dict[str, Any] | None = None, seed: int = 0) -> onnx.ModelProto:
    """The forward model: structure (N, 1, 128, 128), distance_um (N, 1) and incidence (N, 2) to spectra (N, 4, 301).

    Args:
        metadata: metadata of the model; `CONDITIONED_METADATA` by default.
        seed: seed of the weights.
    """
    return _with_conditions(small_model(CONDITIONED_METADATA if metadata is None else metadata, seed), seed)


def conditioned_gradient_model(metadata: dict[str, Any] | None = None, seed: int = 0) -> onnx.ModelProto:
    """The gradient model, which also returns the gradient with respect to each condition.

    Args:
        metadata: metadata of the forward model; `CONDITIONED_METADATA` by default.
        seed: seed of the weights.
    """
    model = small_gradient_model(CONDITIONED_METADATA if metadata is None else metadata, seed)
    model = _with_conditions(model, seed)
    for condition in CONDITIONS:
        transposed = helper.make_node("Transpose", [f"{condition.name}_weight"], [f"{condition.name}_back"])
        product = helper.make_node("MatMul", ["pulled", f"{condition.name}_back"], [condition.gradient])
        model.graph.node.extend([transposed, product])
        model.graph.output.append(_tensor(condition.gradient, condition))
    return model


def _with_conditions(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Add to the logits what is linear in the difference of each condition from its default."""
    graph, generator = model.graph, np.random.default_rng(seed + 1)
    logits, added = "product", []
    for condition in CONDITIONS:
        name = condition.name
        scale = 1 / (condition.high - condition.low)
        weight = generator.normal(0, scale, (condition.size, 1204)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
        graph.initializer.append(numpy_helper.from_array(np.array(condition.defaults, np.float32), f"{name}_default"))
        graph.input.append(_tensor(name, condition))
        added += [
            helper.make_node("Sub", [name, f"{name}_default"], [f"{name}_moved"]),
            helper.make_node("MatMul", [f"{name}_moved", f"{name}_weight"], [f"{name}_product"]),
            helper.make_node("Add", [logits, f"{name}_product"], [f"{name}_logits"]),
        ]
        logits = f"{name}_logits"
    (sigmoid,) = (node for node in graph.node if node.op_type == "Sigmoid")
    place = list(graph.node).index(sigmoid)
    sigmoid.input[0] = logits
    nodes = [*graph.node[:place], *added, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _tensor(name: str, condition: Condition) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *condition.shape])
