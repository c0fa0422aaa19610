"""The Open Inference Protocol as a client speaks it, whatever carries it: requests, replies, what a model is.

A transport has one method, `send`: a `Request` in, a `Reply` out or one of the errors of this package. Those for HTTP and
for gRPC know nothing of structures and spectra, and the clients nothing of HTTP and gRPC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from metaspec._errors import ProtocolError

_PACKED = "metaspec_packed_structures"  # the extension of servers that take structures as bits


@dataclass(frozen=True, eq=False)
class Request:
    """A question to a server.

    Attributes:
        operation: metadata of the server or of a model, Triton's configuration of a model, whether it is ready, inference.
        model: that it is about.
        version: of the model; the server's choice if empty.
        inputs: tensors by name, contiguous.
        outputs: names of the tensors that are wanted.
    """

    operation: Literal["server", "model", "config", "ready", "infer"]
    model: str = ""
    version: str = ""
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reply:
    """A server's answer.

    Attributes:
        document: what it says, named as in the protocol's JSON.
        arrays: output tensors by name.
    """

    document: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Transport(Protocol):
    """Carries requests to a server, from several threads at a time."""

    def send(self, request: Request) -> Reply:
        """The reply, or one of this package's errors. Tries once."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Carries requests to a server, for asyncio."""

    async def send(self, request: Request) -> Reply:
        """The reply, or one of this package's errors. Tries once."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class ModelInfo:
    """What a server says of a model.

    Attributes:
        name: of the model.
        version: that is described: the one that was asked for, else the newest.
        pixels: rows and columns of a structure.
        wavelengths_nm: of the spectra.
        channels: names of the detectors.
        takes_bits: whether the server takes binary structures as packed bits.
        details: all that the model says of itself: process, training data, measured errors. Empty on a Triton whose
            configuration of the model does not tell them.
    """

    name: str
    version: str
    pixels: tuple[int, int]
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...]
    takes_bits: bool
    details: dict[str, Any]

    @property
    def spectra_shape(self) -> tuple[int, int]:
        """Channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)


def tells_more(server: Reply, model: Reply) -> bool:
    """Whether the configuration of a model has to be asked for: Triton's metadata have no room for what a model is."""
    return "parameters" not in model.document and "model_configuration" in server.document.get("extensions", [])


def parse_model(server: Reply, model: Reply, config: Reply | None, version: str) -> ModelInfo:
    """Read what a server says of itself and of a model.

    Wavelengths and channels are in the model's metadata on our server. On Triton they are in the parameter "metaspec" of the
    model's configuration, as JSON; if it has none, spectra of shape (4, 301) are taken to be those of the default process.

    Args:
        server: metadata of the server.
        model: metadata of the model.
        config: configuration of the model, if the server has one.
        version: that was asked for; the newest if empty.

    Raises:
        ProtocolError: they are not what the protocol says.
    """
    body = model.document
    try:
        structure = next(tensor for tensor in body["inputs"] if tensor["name"] == "structure")
        spectra = next(tensor for tensor in body["outputs"] if tensor["name"] == "spectra")
        details = body.get("parameters") or _from_config(config)
        channels, count = spectra["shape"][-2:]
        if "wavelengths_nm" not in details and (channels, count) != (4, 301):
            raise ProtocolError(f"the server does not tell the wavelengths of its {channels} x {count} spectra")
        wavelengths = np.array(details.get("wavelengths_nm", np.linspace(400, 700, 301)), float)
        names = tuple(details.get("channels", ("R", "G1", "G2", "B")))
        if (len(names), *wavelengths.shape) != (channels, count):
            raise ProtocolError(f"{len(names)} channels and {len(wavelengths)} wavelengths for spectra {spectra}")
        rows, columns = structure["shape"][-2:]
        packed = _PACKED in server.document.get("extensions", [])
        described = version or str((body.get("versions") or [""])[-1])
        return ModelInfo(body["name"], described, (rows, columns), wavelengths, names, packed, details)
    except (ValueError, KeyError, TypeError, StopIteration, IndexError, AttributeError) as error:
        raise ProtocolError(f"the server's description of the model cannot be read: {error!r}") from error


def _from_config(config: Reply | None) -> dict[str, Any]:
    parameters = {} if config is None else config.document.get("parameters") or {}
    details: dict[str, Any] = json.loads(parameters["metaspec"]["string_value"]) if "metaspec" in parameters else {}
    return details
