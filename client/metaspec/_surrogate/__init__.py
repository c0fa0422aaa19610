"""`Surrogate` and `AsyncSurrogate`: a remote model as a function of arrays. Private; import from `metaspec`."""

from metaspec._surrogate.async_client import AsyncSurrogate
from metaspec._surrogate.base import Sent
from metaspec._surrogate.client import Surrogate

__all__ = ["AsyncSurrogate", "Sent", "Surrogate"]
