"""The version of this package, and the name it gives servers."""

from importlib.metadata import version

__version__ = version("metaspec")

USER_AGENT = f"metaspec/{__version__}"
