"""The client's side of the Open Inference Protocol, independent of HTTP and gRPC: requests, replies, model descriptions.

A transport has one method, `send`: a `Request` in, a `Reply` out or one of the errors of this package. Transports know
nothing of structures and spectra, and the clients nothing of HTTP and gRPC.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from metaspec._errors import ProtocolError
from metaspec._transport.cancellation import Cancellation
from metaspec_contract.model import (
    METADATA_KEY,
    PACKED_STRUCTURES,
    STRUCTURE,
    ModelMetadata,
    ModelMismatch,
    TensorSpec,
    check_same_device,
    check_tensors,
    is_gradient_model,
    parse_metadata,
)
from metaspec_contract.source import SourceInfo

_REQUIRED = ("process", "wavelengths_nm", "channels")  # fields without which spectra cannot be labelled


@dataclass(frozen=True, eq=False)
class Request:
    """A request to a server.

    Attributes:
        operation: metadata of the server or of a model, the index of all models, Triton's configuration of a model,
            readiness, or inference.
        model: name of the model.
        version: version of the model; "" for the server's choice.
        inputs: contiguous input tensors by name.
        outputs: names of the wanted output tensors.
        priority: priority in the server's queue, 1 for the highest; 0 for the server's default.
        id: identifier, which the server repeats in its answer.
    """

    operation: Literal["server", "index", "model", "config", "ready", "infer"]
    model: str = ""
    version: str = ""
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    priority: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # random bytes of the system: two forks differ


@dataclass(frozen=True, eq=False)
class Reply:
    """A server's answer.

    Attributes:
        document: its fields, named as in the protocol's JSON.
        arrays: output tensors by name.
    """

    document: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Transport(Protocol):
    """Sends requests to a server; threads may share it. It connects when it first sends."""

    def send(self, request: Request, cancellation: Cancellation) -> Reply:
        """The reply, or one of this package's errors. Makes one attempt.

        Args:
            request: request to send.
            cancellation: ends the attempt at once, with any error.
        """

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """Sends requests to a server, for one event loop of asyncio. It connects when it first sends."""

    async def send(self, request: Request) -> Reply:
        """The reply, or one of this package's errors. Makes one attempt."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, repr=False)
class ModelInfo(SourceInfo):
    """A server's description of a model, checked.

    Attributes:
        takes_bits: whether the server accepts binary structures as packed bits.
        details: the whole description as JSON; on our server also training data and measured errors.
    """

    takes_bits: bool
    details: dict[str, Any]


class ServedModel(NamedTuple):
    """A version of a model in a server's repository.

    Attributes:
        name: name of the model.
        version: its version; "" if none could be read.
        ready: whether it takes requests.
        reason: why it does not, or why its newest file is not served.
    """

    name: str
    version: str
    ready: bool
    reason: str = ""


def parse_index(index: Reply) -> tuple[ServedModel, ...]:
    """The models of a server, by name and version.

    Raises:
        ProtocolError: the index cannot be read.
    """
    try:
        found = [
            ServedModel(
                str(entry["name"]),
                str(entry.get("version") or ""),
                entry.get("state") == "READY",
                str(entry.get("reason") or ""),
            )
            for entry in index.document["models"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the server's index of models cannot be read: {error!r}") from error
    return tuple(sorted(found, key=lambda model: (model.name, model.version.zfill(20))))


def check_id(request: Request, answered: object, url: str) -> None:
    """Check that an answer belongs to its request; a server that repeats no identifier is taken at its word.

    Args:
        request: the request.
        answered: identifier in the answer, if any.
        url: address of the server.

    Raises:
        ProtocolError: it is the answer to another request.
    """
    if answered not in (None, "", request.id):
        raise ProtocolError(f"{url} sent the answer to another request: its id is {answered!r}, not {request.id!r}")


def needs_config(server: Reply, model: Reply) -> bool:
    """Whether a model's configuration has to be requested: Triton's metadata have no room for the description."""
    return "parameters" not in model.document and "model_configuration" in server.document.get("extensions", [])


def parse_model(server: Reply, model: Reply, config: Reply | None, version: str) -> ModelInfo:
    """Read a model's description, and check it against the model's tensors.

    Our server has the description among the model's metadata. On Triton it is the parameter "metaspec" of the model's
    configuration, as JSON, which metaspec-export writes.

    Args:
        server: metadata of the server.
        model: metadata of the model.
        config: configuration of the model, if it was requested.
        version: requested version; "" for the newest.

    Raises:
        ProtocolError: the description is missing, or contradicts itself or the tensors; both sides are named.
    """
    body = model.document
    try:
        name, details = str(body["name"]), body.get("parameters") or _from_config(config)
        metadata = _metadata(name, details)
        check_tensors(metadata, list(_tensors(body["inputs"])), list(_tensors(body["outputs"])))
        return ModelInfo(
            name=name,
            version=version or str((body.get("versions") or [""])[-1]),
            process=metadata.process,
            wavelengths_nm=np.array(metadata.wavelengths_nm, np.float64),
            channels=tuple(metadata.channels),
            merged_greens=metadata.merged_greens,
            conditions=metadata.conditions,
            takes_bits=PACKED_STRUCTURES in server.document.get("extensions", []),
            details=dict(details),
        )
    except ModelMismatch as error:
        raise ProtocolError(
            f"the server's description of model {body['name']!r} does not fit: {error}. Publish the model with "
            "metaspec-export, whose config.pbtxt carries the description"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ProtocolError(f"the server's description of the model cannot be read: {error!r}") from error


def check_gradient_model(gradient: ModelInfo, forward: ModelInfo) -> None:
    """Check a gradient model's description against its forward model's: of one device, with the same channels.

    Raises:
        ProtocolError: they differ; both sides are named.
    """
    metadata, other = (_metadata(info.name, info.details) for info in (gradient, forward))
    ours, theirs = (f"model {info.name!r} version {info.version}" for info in (gradient, forward))
    try:
        check_same_device(metadata, other, ours, theirs)
    except ModelMismatch as error:
        raise ProtocolError(f"the gradient would be of another device than the spectra: {error}") from None


def _metadata(name: str, details: Mapping[str, Any]) -> ModelMetadata:
    """The checked metadata of a model; a configuration states only the fields that label its spectra."""
    if missing := [field for field in _REQUIRED if field not in details]:
        raise ModelMismatch(f"it lacks {', '.join(missing)}")
    given = {
        "schema_version": 1,
        "name": name,
        "kind": "vjp" if is_gradient_model(name) else "forward",
        "units": {},
        "input": {"name": STRUCTURE, "solid": 1.0, "void": 0.0},
    }
    return parse_metadata({METADATA_KEY: json.dumps(given | dict(details))})


def _tensors(tensors: Iterable[Mapping[str, Any]]) -> Iterable[TensorSpec]:
    for tensor in tensors:
        yield TensorSpec(tensor["name"], np.dtype(np.float32), tuple(int(length) for length in tensor["shape"][1:]))


def _from_config(config: Reply | None) -> dict[str, Any]:
    parameters = {} if config is None else config.document.get("parameters") or {}
    found = parameters[METADATA_KEY]["string_value"] if METADATA_KEY in parameters else "{}"
    details: dict[str, Any] = json.loads(found)
    return details
