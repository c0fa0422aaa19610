"""A micro-batching inference server for a model repository in Triton's layout."""

from importlib.metadata import version

__version__ = version("metaspec-server")

__all__ = ["__version__"]
