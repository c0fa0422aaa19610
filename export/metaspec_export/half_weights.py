"""Weights stored in half precision and computed with in single: half the size of a file, the speed of float32.

Each weight is followed by a cast to float32, which engines compute once, when they load the graph.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx
from onnx import helper, numpy_helper

from metaspec_export.errors import ExportRefused

ALLOWED = 1e-4
"""Largest change of an efficiency by rounding weights that is allowed."""


class HalfWeightsError(ExportRefused):
    """Weights rounded to half precision change the spectra too much."""


def halve(model: onnx.ModelProto, weights: Set[str]) -> onnx.ModelProto:
    """A copy of a graph that stores weights in float16.

    Args:
        model: graph.
        weights: names of initializers; those that are not in the graph, or not float32 in it, are passed over.

    Raises:
        HalfWeightsError: a weight is too large for float16.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    casts = []
    for tensor in halved.graph.initializer:
        if tensor.name not in weights or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if not (largest := float(np.abs(values).max(initial=0))) <= float(np.finfo(np.float16).max):
            raise HalfWeightsError(
                f"--half-weights refused: {tensor.name} has values up to {largest:.1e}, float16 ends at 6.6e+04"
            )
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    onnx.checker.check_model(halved)
    return halved


def require_close(deviation: float) -> None:
    """Refuse a change of the spectra past `ALLOWED`.

    Args:
        deviation: largest change of an efficiency.

    Raises:
        HalfWeightsError: it is too large, or not finite.
    """
    if not deviation <= ALLOWED:
        raise HalfWeightsError(
            f"--half-weights refused: the largest change of an efficiency is {deviation:.1e}, allowed is {ALLOWED:.0e}"
        )
