"""The networks, their training data, their training and its report."""

from importlib.metadata import version

__version__ = version("metaspec-lab")

__all__ = ["__version__"]
