"""Client of MetaSpec: spectra and gradients of structures from a server that speaks the Open Inference Protocol.

Modules, such as `metaspec.objectives`, are imported when they are first used.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from metaspec._errors import (
    DeadlineExceeded,
    InvalidCondition,
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
from metaspec._transport.protocol import ModelInfo, ServedModel
from metaspec._version import __version__
from metaspec_contract.source import Evaluation, Gradients
from metaspec_contract.spectra import Spectra

__all__ = [
    "AsyncSurrogate",
    "DeadlineExceeded",
    "Evaluation",
    "Gradients",
    "InvalidCondition",
    "InvalidCotangent",
    "InvalidStructure",
    "MetaSpecError",
    "ModelInfo",
    "ModelUnavailable",
    "NotAllowed",
    "ProtocolError",
    "RequestTooLarge",
    "Sent",
    "ServedModel",
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

_MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]


if not TYPE_CHECKING:  # to a type checker, every misspelt name would exist

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
