"""ONNX graphs of a network: spectra alone, spectra with their gradient, and the operators that a graph may use."""

from metaspec_export.graph.forward import forward_graph
from metaspec_export.graph.gradient import gradient_graph
from metaspec_export.graph.operators import OperatorError, require_portable

__all__ = ["OperatorError", "forward_graph", "gradient_graph", "require_portable"]
