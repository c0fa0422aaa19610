"""The base of `Surrogate` and `AsyncSurrogate`: settings, requests, pauses; nothing that does I/O."""

from __future__ import annotations

import math
import random
import threading
from types import ModuleType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from numpy.typing import ArrayLike
from tqdm import tqdm

from metaspec._errors import MetaSpecError
from metaspec._extras import missing_extra
from metaspec._surrogate.call import Call
from metaspec._transport.protocol import ModelInfo, Request
from metaspec_contract.model import DEFAULT_MODEL, STRUCTURE

DEFAULT_URL = "http://127.0.0.1:8000"
_LONGEST_PAUSE = 8.0  # seconds before another attempt, if the server does not ask for more


class Sent(NamedTuple):
    """Counts of what a surrogate has sent so far; retries do not count.

    Attributes:
        requests: number of requests for spectra or gradients.
        structures: number of structures in them; a structure with K cotangents counts K times.
    """

    requests: int
    structures: int


class SurrogateBase:
    """Settings shared by both clients. The arguments are those of `Surrogate`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = DEFAULT_MODEL,
        version: str | int | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        batch_size: int = 256,
        concurrency: int = 4,
        progress: bool = True,
    ) -> None:
        for name, value, least in (
            ("retries", retries, 0),
            ("batch_size", batch_size, 1),
            ("concurrency", concurrency, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be above 0 seconds and finite, got {timeout}")
        if not model:
            raise ValueError("model must be a name, got ''")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key must consist of printable ASCII characters")
        scheme = _scheme(url)
        self.url, self.model, self.version = url.rstrip("/"), model, None if version is None else str(version)
        self._timeout, self._retries = timeout, retries
        self._batch_size, self._concurrency, self._progress = batch_size, concurrency, progress
        self._info: ModelInfo | None = None
        self._gradient_info: tuple[ModelInfo, ModelInfo] | None = None  # with the forward model it was checked against
        self._sent, self._counting = Sent(0, 0), threading.Lock()
        self._connect(scheme, self.url, api_key)

    def _connect(self, scheme: Literal["http", "grpc"], url: str, api_key: str | None) -> None:
        """Create the transport, and the gate that limits requests in flight for all callers that share a surrogate."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model} at {self.url}>"

    @property
    def sent(self) -> Sent:
        """Requests and structures sent so far."""
        return self._sent

    def _count(self, request: Request) -> None:
        with self._counting:
            self._sent = Sent(self._sent.requests + 1, self._sent.structures + len(request.inputs[STRUCTURE]))

    def _question(
        self, operation: Literal["server", "model", "config", "ready"], version: str = "", model: str = ""
    ) -> Request:
        if operation == "server":
            return Request(operation)
        return Request(operation, model or self.model, version or self.version or "")

    def _knows_gradient_model(self, forward: ModelInfo, version: str) -> bool:
        """Whether the gradient model has been checked against this description of the forward model.

        Args:
            forward: description of the forward model.
            version: version of the gradient model; "" for any.
        """
        if self._gradient_info is None:
            return False
        gradient, checked = self._gradient_info
        return checked is forward and version in ("", gradient.version)

    def _call(self, structures: ArrayLike, cotangent: ArrayLike | None, info: ModelInfo) -> Call:
        """A call with checked arguments, which are not copied."""
        return Call(
            structures,
            cotangent,
            info=info,
            model=self.model,
            version=self.version or "",
            batch_size=self._batch_size,
        )

    def _bar(self, call: Call) -> Any:
        """A progress bar that appears after two seconds, in terminals only."""
        disable = None if self._progress and len(call) > 1 else True
        return tqdm(total=call.rows, unit="structure", delay=2.0, leave=False, disable=disable)

    def _pause(self, attempt: int, error: MetaSpecError) -> float:
        """Seconds before the next attempt: what the server asks for, plus exponential back-off with full jitter.

        Raises:
            MetaSpecError: the given error, if no attempt is left or the server asks for a pause longer than `timeout`.
        """
        asked: float = getattr(error, "retry_after", None) or 0.0
        if attempt == self._retries or asked > self._timeout:
            raise error
        return asked + random.uniform(0, min(_LONGEST_PAUSE, 0.25 * 2 ** min(attempt, 10)))


def grpc_transports() -> ModuleType:
    """The module of the gRPC transports, which need the extra "grpc".

    Raises:
        ImportError: the extra is not installed.
    """
    try:
        from metaspec._transport import grpc as _grpc
    except ImportError as error:
        raise missing_extra("grpc:// needs", "tritonclient", "grpc") from error
    return _grpc


def _scheme(url: str) -> Literal["http", "grpc"]:
    """The protocol of a URL.

    Raises:
        ValueError: not a URL of HTTP or gRPC.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url must be an address, got {url!r}: {error}") from None
    if parts.scheme in ("http", "https") and host:
        return "http"
    if parts.scheme in ("grpc", "grpcs") and host and port and not parts.path.strip("/"):
        return "grpc"
    raise ValueError(f"url must be http://..., https://..., grpc://host:port or grpcs://host:port, got {url!r}")
