"""Ask a MetaSpec server, or any Open Inference Protocol server with its models, for spectra of structures and gradients."""

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
from metaspec._spectra import Spectra
from metaspec._surrogate.async_client import AsyncSurrogate
from metaspec._surrogate.base import Evaluation, Sent
from metaspec._surrogate.client import Surrogate
from metaspec._transport.protocol import ModelInfo

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
]

for _name in __all__:  # errors and reprs show where users import from, not where the code lies
    globals()[_name].__module__ = "metaspec"
