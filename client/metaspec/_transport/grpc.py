"""The Open Inference Protocol over gRPC, as served by Triton. Needs tritonclient."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from metaspec._errors import (
    DeadlineExceeded,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
)
from metaspec._transport.cancellation import Cancellation
from metaspec._transport.protocol import Reply, Request, check_id
from metaspec._transport.proxies import is_loopback
from metaspec._version import USER_AGENT

_CHANNEL = [
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else all clients of a process share one connection and its back-off
    # How long a broken connection refuses calls immediately: shorter than the pauses between attempts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_ERRORS: dict[str, type[MetaSpecError]] = {
    "ABORTED": ServerUnreachable,
    "CANCELLED": ServerUnreachable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelUnavailable,
    "PERMISSION_DENIED": NotAllowed,
    "RESOURCE_EXHAUSTED": ServerBusy,
    "UNAUTHENTICATED": NotAllowed,
    "UNAVAILABLE": ServerUnreachable,
    "UNIMPLEMENTED": ProtocolError,
}

_CAUSES: dict[str, type[MetaSpecError]] = {
    "Exceeds maximum queue size": ServerBusy,  # its status is that of a lost connection, UNAVAILABLE
    "batch-size must be <=": RequestTooLarge,
    "structures in one request": RequestTooLarge,
    "the request and its answer need": RequestTooLarge,  # more memory than all requests may have
    "message larger than max": RequestTooLarge,
    "RST_STREAM": ServerUnreachable,
}
"""Parts of messages of Triton, our server and gRPC that tell errors apart where the status does not."""


class GrpcTransport:
    """Sends requests over one connection, at most `timeout` seconds each."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self._url = url
        self._options = _options(api_key, timeout)
        self._lock = threading.Lock()
        self._client: Any = None
        # One thread starts all calls: tritonclient gives threads that start them at the same time each other's answers, and
        # Ctrl-C in the middle of a start leaves gRPC with a lock that nobody releases.
        self._starter = ThreadPoolExecutor(1)

    def send(self, request: Request, cancellation: Cancellation) -> Reply:
        """The server's answer; see `Transport`."""
        with self._lock:
            if self._client is None:
                self._client = tritonclient.grpc.InferenceServerClient(**_address(self._url))
        try:
            if request.operation == "infer":
                answer = self._infer(request, cancellation)
            else:
                answer = _call(self._client, request, **self._options)
        except InferenceServerException as error:
            raise _error_of(error, self._url, self._options) from error
        return _decode(answer, request, self._url)

    def _infer(self, request: Request, cancellation: Cancellation) -> Any:
        """The answer to an inference request, which another thread can cancel."""
        answered: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        starting = self._starter.submit(
            self._client.async_infer,
            request.model,
            model_version=request.version,
            callback=lambda result, error: answered.put((result, error)),
            **_tensors(request),
            **self._options,
        )
        try:
            with cancellation.ending(starting.result().cancel):
                answer, error = answered.get()
        except BaseException:
            if not starting.cancel():
                starting.result().cancel()
            raise
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._starter.shutdown()
        with self._lock:
            if self._client is not None:
                self._client.close()


class AsyncGrpcTransport:
    """`GrpcTransport` for asyncio."""

    def __init__(self, url: str, api_key: str | None, timeout: float, connections: int) -> None:
        self._url = url
        self._options = _options(api_key, timeout)
        self._client: Any = None

    async def send(self, request: Request) -> Reply:
        """The server's answer; see `AsyncTransport`."""
        if self._client is None:
            self._client = tritonclient.grpc.aio.InferenceServerClient(**_address(self._url))
        tensors = await asyncio.to_thread(_tensors, request)
        try:
            answer = await _call(self._client, request, **tensors, **self._options)
        except InferenceServerException as error:
            raise _error_of(error, self._url, self._options) from error
        return _decode(answer, request, self._url)

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    to_this_machine = [("grpc.enable_http_proxy", 0)] if is_loopback(parts.hostname or "") else []
    return {"url": parts.netloc, "ssl": parts.scheme == "grpcs", "channel_args": [*_CHANNEL, *to_this_machine]}


def _options(api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else None
    return {"headers": headers, "client_timeout": timeout}


def _tensors(request: Request) -> dict[str, Any]:
    """Inputs, outputs, identifier and priority of an inference request for tritonclient; empty for other operations."""
    if request.operation != "infer":
        return {}
    inputs = []
    for name, array in request.inputs.items():
        tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in request.outputs]
    return {"inputs": inputs, "outputs": outputs, "request_id": request.id, "priority": request.priority}


def _call(client: Any, request: Request, **arguments: Any) -> Any:
    """Call the client's method for an operation; with the asyncio client, the result is awaitable."""
    if request.operation == "server":
        return client.get_server_metadata(**arguments)
    if request.operation == "index":
        return client.get_model_repository_index(**arguments)
    method = {
        "model": client.get_model_metadata,
        "config": client.get_model_config,
        "ready": client.is_model_ready,
        "infer": client.infer,
    }[request.operation]
    return method(request.model, model_version=request.version, **arguments)


def _decode(answer: Any, request: Request, url: str) -> Reply:
    """A reply from an answer of tritonclient.

    Raises:
        ModelUnavailable: the model is not ready.
        ProtocolError: bytes and shape of a tensor disagree, or it is the answer to another request.
    """
    match request.operation:
        case "server":
            return Reply({"extensions": list(answer.extensions)})
        case "index":
            fields = ("name", "version", "state", "reason")
            return Reply({"models": [{name: getattr(one, name) for name in fields} for one in answer.models]})
        case "model":
            inputs, outputs = (
                [{"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)} for tensor in tensors]
                for tensors in (answer.inputs, answer.outputs)
            )
            return Reply({"name": answer.name, "versions": list(answer.versions), "inputs": inputs, "outputs": outputs})
        case "config":
            parameters = answer.config.parameters
            return Reply({"parameters": {key: {"string_value": parameters[key].string_value} for key in parameters}})
        case "ready":
            if not answer:
                raise ModelUnavailable(f"model {request.model!r} is not ready (gRPC, from {url})")
            return Reply({})
    try:
        arrays = {name: array for name in request.outputs if (array := answer.as_numpy(name)) is not None}
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"the answer from {url} cannot be read: {error!r}") from error
    check_id(request, answer.get_response().id, url)
    return Reply({"model_version": answer.get_response().model_version}, arrays)


def _error_of(error: InferenceServerException, url: str, options: dict[str, Any]) -> MetaSpecError:
    code = str(error.status()).removeprefix("StatusCode.")
    detail = error.message() or "no reason given"
    kind = next((kind for cause, kind in _CAUSES.items() if cause in detail), _ERRORS.get(code, ServerError))
    if kind is DeadlineExceeded:
        detail = f"no answer within {options['client_timeout']:g} s"
    return kind(f"{detail} (gRPC {code} from {url})")
