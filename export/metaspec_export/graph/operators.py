"""The operators that a graph may use: those that ONNX Runtime's CUDA provider and TensorRT run themselves.

An operator outside this list would be computed on the CPU in the middle of a GPU graph, at the cost of two copies.
After ONNX Runtime's `docs/OperatorKernels.md` and TensorRT's list of supported ONNX operators.
"""

from __future__ import annotations

import onnx

from metaspec_export.errors import ExportRefused

_ALLOWED = """
    Abs Add BatchNormalization Cast Clip Concat Conv ConvTranspose Cos DequantizeLinear Div Erf Exp Expand Gather Gelu Gemm
    Identity InstanceNormalization LayerNormalization MatMul Max Min Mul Neg Pad Pow QuantizeLinear Reciprocal ReduceMax
    ReduceMean ReduceSum Reshape Round Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
ALLOWED = frozenset(_ALLOWED.split())


class OperatorError(ExportRefused):
    """A graph has operators that not every engine runs."""


def require_portable(model: onnx.ModelProto) -> None:
    """Refuse graphs that would not run as a whole on GPUs.

    `Shape` is allowed on inputs only: the batch size is known before anything is computed.

    Raises:
        OperatorError: there are other operators; they are named.
    """
    inputs = {value.name for value in model.graph.input}
    others = sorted(
        {
            node.op_type
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx")
            or (node.op_type not in ALLOWED and not (node.op_type == "Shape" and node.input[0] in inputs))
        }
    )
    if others:
        raise OperatorError(f"the graph has operators that would leave the GPU: {', '.join(others)}")
