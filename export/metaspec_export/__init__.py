"""Export of a trained network: ONNX graphs, verified against PyTorch and published to a model repository in Triton's layout."""

from importlib.metadata import version

__version__ = version("metaspec-lab")

__all__ = ["__version__"]
