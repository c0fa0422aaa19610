"""The Open Inference Protocol over HTTP, with its binary tensor extension."""

from __future__ import annotations

import json
import math
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
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
from metaspec._transport.cancellation import Cancellation, Cancelled
from metaspec._transport.protocol import Reply, Request, check_id
from metaspec._transport.proxies import proxy_for, without_password
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
    """Sends each request over a persistent connection of its own: an idle one, or else a new one.

    Bodies are written and read in pieces: an httpx.Response is part of a reference cycle, so that it would keep whole
    bodies alive until the next garbage collection.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._client, self._transport = _settings(url, api_key, timeout, connections=1)
        self._proxy: str | None = self._transport["proxy"]
        self._idle: deque[_Connection] = deque()  # its methods are atomic
        self._closed = False

    def send(self, request: Request, cancellation: Cancellation) -> Reply:
        """The server's answer; see `Transport`."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _Connection(httpx.Client(transport=httpx.HTTPTransport(**self._transport), **self._client))
        try:
            with cancellation.ending(connection.break_off):
                response, content = connection.exchange(request)
            reply = decode(request, response, content)
        except httpx.RequestError as error:
            connection.close()
            raise _failure(error, self._url, self._timeout, self._proxy) from error
        except (ServerBusy, ServerError, ModelUnavailable, NotAllowed, RequestTooLarge):
            self._keep(connection)  # an answer, read to its end
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return reply

    def close(self) -> None:
        """Close the connections, those in use after their request."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _keep(self, connection: _Connection) -> None:
        if connection.broken:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # in the meantime
            self.close()


class _Connection:
    """One persistent connection, which another thread can break off.

    Args:
        client: client with a single connection.

    Attributes:
        broken: whether it was broken off.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._socket: socket.socket | None = None
        self.broken = False

    def exchange(self, request: Request) -> tuple[httpx.Response, bytearray]:
        """Send a request and read the whole answer."""
        content = bytearray()
        with self._client.stream(**encode(request), extensions={"trace": self._trace}) as response:
            for chunk in response.iter_bytes():
                content += chunk
        return response, content

    def break_off(self) -> None:
        """End the exchange in the thread that waits for it: closing a socket would not wake it, shutting it down does."""
        self.broken = True
        if self._socket is not None:
            with suppress(OSError):  # the method of TLS sockets is not safe here: the other thread still reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.broken:
                raise Cancelled


class AsyncHttpTransport:
    """`HttpTransport` for asyncio, with up to `connections` persistent connections."""

    def __init__(self, url: str, api_key: str | None, timeout: float, connections: int) -> None:
        self._url, self._timeout = url, timeout
        client, transport = _settings(url, api_key, timeout, connections)
        self._proxy: str | None = transport["proxy"]
        self._client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(**transport), **client)

    async def send(self, request: Request) -> Reply:
        """The server's answer; see `AsyncTransport`."""
        message, content = encode(request), bytearray()
        if "content" in message:
            message["content"] = _async_pieces(message["content"])
        try:
            async with self._client.stream(**message) as response:
                async for chunk in response.aiter_bytes():
                    content += chunk
        except httpx.RequestError as error:
            raise _failure(error, self._url, self._timeout, self._proxy) from error
        return decode(request, response, content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _settings(url: str, api_key: str | None, timeout: float, connections: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a client of httpx, and of its transport.

    Raises:
        ValueError, ImportError: see `proxy_for`.
    """
    client = {
        "base_url": url,
        "timeout": httpx.Timeout(timeout),
        "headers": {"User-Agent": USER_AGENT} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
    }
    transport = {
        # Loading the certificates of all authorities takes 0.1 s.
        "verify": httpx.create_ssl_context() if url.startswith("https://") else False,
        "limits": httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        "proxy": proxy_for(url),
    }
    return client, transport


def encode(request: Request) -> dict[str, Any]:
    """Method, path, body and headers of a request."""
    path = "/v2"
    if request.model:
        path += f"/models/{quote(request.model, safe='')}"
    if request.version:
        path += f"/versions/{quote(request.version, safe='')}"
    if request.operation == "index":
        return {"method": "POST", "url": f"{path}/repository/index", "json": {}}
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
    document: dict[str, Any] = {"id": request.id, "inputs": inputs, "outputs": wanted}
    if request.priority:
        document["parameters"] = {"priority": request.priority}
    header = json.dumps(document).encode()
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
            reply = _tensors(content, int(response.headers[_HEADER_LENGTH]))
            check_id(request, reply.document.get("id"), str(response.request.url))
            return reply
        if request.operation == "index":
            return Reply({"models": list(json.loads(content))})
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
    if status == 404 and request.operation in ("server", "index"):
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


def _failure(error: httpx.RequestError, url: str, timeout: float, proxy: str | None) -> MetaSpecError:
    through = f" through the proxy {without_password(proxy)}" if proxy else ""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return DeadlineExceeded(f"{url} did not answer within {timeout:g} s{through}")
    if isinstance(error, httpx.DecodingError):
        return ProtocolError(f"the answer from {url} cannot be read: {error}")
    return ServerUnreachable(f"no connection to {url}{through}: {error or type(error).__name__}")
