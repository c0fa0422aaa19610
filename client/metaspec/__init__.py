"""Client of MetaSpec: spectra and gradients of structures from a server that speaks the Open Inference Protocol."""

from metaspec._errors import (
    DeadlineExceeded,
    InvalidCotangent,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
)
from metaspec._surrogate.async_client import AsyncSurrogate
from metaspec._surrogate.base import Sent
from metaspec._surrogate.client import Surrogate
from metaspec._transport.protocol import ModelInfo
from metaspec._version import __version__
from metaspec_contract.source import Evaluation
from metaspec_contract.spectra import Spectra

__all__ = [
    "AsyncSurrogate",
    "DeadlineExceeded",
    "Evaluation",
    "InvalidCotangent",
    "InvalidStructure",
    "MetaSpecError",
    "ModelInfo",
    "ModelUnavailable",
    "NotAllowed",
    "ProtocolError",
    "RequestTooLarge",
    "Sent",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "Spectra",
    "Surrogate",
    "__version__",
]

for _name in __all__[:-1]:  # errors and reprs name the import path of users, not the module of the code
    if globals()[_name].__module__.startswith("metaspec."):
        globals()[_name].__module__ = "metaspec"
