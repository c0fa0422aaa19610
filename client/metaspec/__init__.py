"""Ask a MetaSpec server, or any Open Inference Protocol server with its models, for the spectra of structures."""

from metaspec._client import AsyncSurrogate, Surrogate
from metaspec._errors import (
    DeadlineExceeded,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
)
from metaspec._spectra import Spectra

__all__ = [
    "AsyncSurrogate",
    "DeadlineExceeded",
    "InvalidStructure",
    "MetaSpecError",
    "ModelUnavailable",
    "ProtocolError",
    "RequestTooLarge",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "Spectra",
    "Surrogate",
]

for _name in __all__:  # errors and reprs show where users import from, not where the code lies
    globals()[_name].__module__ = "metaspec"
