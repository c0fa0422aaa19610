"""Engines: ONNX Runtime in this process, or a Triton server."""

from metaspec_server.engines.onnx import OnnxEngine

__all__ = ["OnnxEngine"]
