"""ONNX graphs of a network: forward, gradient, and the operators that they may use."""
