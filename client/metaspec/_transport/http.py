"""The Open Inference Protocol over HTTP, with its binary tensor extension."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

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
from metaspec._transport.protocol import Reply, Request
from metaspec._version import USER_AGENT

_PIECE = 2**18  # bytes of a body copied at a time
_HEADER_LENGTH = "Inference-Header-Content-Length"
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_ERRORS: dict[int, type[MetaSpecError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: ModelUnavailable,
    408: DeadlineExceeded,
    413: RequestTooLarge,
    429: ServerBusy,
    502: ServerUnreachable,
    503: ServerBusy,
    504: DeadlineExceeded,
}


class HttpTransport:
    """Sends requests over up to `connections` persistent connections.

    Bodies are written and read in pieces: an httpx.Response is part of a reference cycle, so that it would keep whole
    bodies alive until the next garbage collection.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, connections: int) -> None:
        self._url, self._timeout = url, timeout
        self._client = httpx.Client(**_settings(url, api_key, timeout, connections))

    def send(self, request: Request) -> Reply:
        """The server's answer; see `Transport`."""
        content = bytearray()
        try:
            with self._client.stream(**encode(request)) as response:
                for chunk in response.iter_bytes():
                    content += chunk
        except httpx.RequestError as error:
            raise _failure(error, self._url, self._timeout) from error
        return decode(request, response, content)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """`HttpTransport` for asyncio."""

    def __init__(self, url: str, api_key: str | None, timeout: float, connections: int) -> None:
        self._url, self._timeout = url, timeout
        self._client = httpx.AsyncClient(**_settings(url, api_key, timeout, connections))

    async def send(self, request: Request) -> Reply:
        """The server's answer; see `Transport`."""
        message, content = encode(request), bytearray()
        if "content" in message:
            message["content"] = _async_pieces(message["content"])
        try:
            async with self._client.stream(**message) as response:
                async for chunk in response.aiter_bytes():
                    content += chunk
        except httpx.RequestError as error:
            raise _failure(error, self._url, self._timeout) from error
        return decode(request, response, content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _settings(url: str, api_key: str | None, timeout: float, connections: int) -> dict[str, Any]:
    return {
        "base_url": url,
        "verify": url.startswith("https://"),  # loading the certificates of all authorities takes 0.1 s
        "timeout": httpx.Timeout(timeout, pool=None),  # waiting for a connection is not waiting for an answer
        "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        "headers": {"User-Agent": USER_AGENT} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
    }


def encode(request: Request) -> dict[str, Any]:
    """Method, path, body and headers of a request."""
    path = "/v2"
    if request.model:
        path += f"/models/{quote(request.model, safe='')}"
    if request.version:
        path += f"/versions/{quote(request.version, safe='')}"
    if request.operation != "infer":
        return {"method": "GET", "url": path + {"config": "/config", "ready": "/ready"}.get(request.operation, "")}
    inputs = [
        {
            "name": name,
            "datatype": _NAMES[array.dtype],
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in request.inputs.items()
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    header = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    parts: list[bytes | memoryview] = [header, *(array.data.cast("B") for array in request.inputs.values())]
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(sum(map(len, parts))),
        _HEADER_LENGTH: str(len(header)),
    }
    return {"method": "POST", "url": f"{path}/infer", "content": _pieces(parts), "headers": headers}


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    for part in parts:
        for start in range(0, len(part), _PIECE):
            yield bytes(part[start : start + _PIECE])


async def _async_pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def decode(request: Request, response: httpx.Response, content: bytearray) -> Reply:
    """Decode an answer.

    Args:
        request: the answered request.
        response: status and headers of the answer.
        content: body of the answer.

    Raises:
        ProtocolError: the answer cannot be read.
        MetaSpecError: the error that its status stands for.
    """
    if not response.is_success:
        raise _error_of(request, response, content)
    try:
        if request.operation == "ready":
            return Reply({})
        if request.operation == "infer":
            return _tensors(content, int(response.headers[_HEADER_LENGTH]))
        return Reply(dict(json.loads(content)))
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"the answer from {response.request.url} cannot be read: {error!r}") from error


def _tensors(content: bytearray, length: int) -> Reply:
    document = json.loads(content[:length])
    arrays: dict[str, NDArray[Any]] = {}
    offset = length
    for tensor in document["outputs"]:
        count, size = math.prod(tensor["shape"]), tensor["parameters"]["binary_data_size"]
        array = np.frombuffer(content, _DTYPES[tensor["datatype"]], count, offset)  # a view, not a copy
        if array.nbytes != size:
            raise ValueError(f"{size} bytes for {tensor['datatype']} of shape {tensor['shape']}")
        arrays[tensor["name"]] = array.reshape(tensor["shape"])
        offset += size
    return Reply(document, arrays)


def _error_of(request: Request, response: httpx.Response, content: bytearray) -> MetaSpecError:
    """The error that an unsuccessful answer stands for."""
    status = response.status_code
    try:
        body = json.loads(content)
        detail = str(body.get("error") or body.get("detail") or body)
    except (ValueError, AttributeError, RecursionError):
        detail = content[:200].decode(errors="replace") or response.reason_phrase
    if response.has_redirect_location:
        detail = f"the server redirects to {response.headers['Location']}: use that address as url"
    message = f"{detail} (HTTP {status} from {response.request.url})"
    if status == 400 and "batch-size must be <=" in detail:  # Triton's 413
        return RequestTooLarge(message)
    if status == 404 and request.operation == "server":
        return ProtocolError(message)
    kind = _ERRORS.get(status, ServerError)
    return ServerBusy(message, retry_after(response)) if kind is ServerBusy else kind(message)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait that the server asks for, if it does: a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _failure(error: httpx.RequestError, url: str, timeout: float) -> MetaSpecError:
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return DeadlineExceeded(f"{url} did not answer within {timeout:g} s")
    if isinstance(error, httpx.DecodingError):
        return ProtocolError(f"the answer from {url} cannot be read: {error}")
    return ServerUnreachable(f"no connection to {url}: {error or type(error).__name__}")
