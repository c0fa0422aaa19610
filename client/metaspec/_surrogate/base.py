"""The base of `Surrogate` and `AsyncSurrogate`: settings, requests, pauses; nothing that does I/O."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import weakref
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from metaspec._errors import MetaSpecError
from metaspec._extras import missing_extra
from metaspec._surrogate.call import Call
from metaspec._transport.protocol import ModelInfo, Request
from metaspec_contract.conditions import ConditionValue
from metaspec_contract.model import DEFAULT_MODEL, STRUCTURE

DEFAULT_URL = "http://127.0.0.1:8000"
_LONGEST_PAUSE = 8.0  # seconds before another attempt, if the server does not ask for more

_log = logging.getLogger("metaspec")  # says when a surrogate waits for its server, and when that is over


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
        wait: float = 0.0,
        batch_size: int = 256,
        concurrency: int = 4,
        priority: int = 0,
        progress: bool = True,
    ) -> None:
        _check_whole("retries", retries, 0)
        _check_whole("batch_size", batch_size, 1)
        _check_whole("concurrency", concurrency, 1)
        _check_whole("priority", priority, 0)
        if not _is_number(timeout) or not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be above 0 seconds and finite, got {timeout!r}")
        if not _is_number(wait) or not 0 <= wait < math.inf:
            raise ValueError(f"wait must be at least 0 seconds and finite, got {wait!r}")
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be a name, got {model!r}")
        if isinstance(version, bool) or not isinstance(version, str | int | np.integer | None):
            raise ValueError(f"version must be the number of a version, got {version!r}")
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key must consist of printable ASCII characters")
        self._scheme = _scheme(url)
        self.url, self.model, self.version = url.rstrip("/"), model, None if version is None else str(version)
        self._api_key = api_key
        self._timeout, self._retries, self._wait = timeout, int(retries), wait
        self._batch_size, self._concurrency, self._progress = int(batch_size), int(concurrency), progress
        self._priority = int(priority)
        self._info: ModelInfo | None = None
        self._gradient_info: tuple[ModelInfo, ModelInfo] | None = None  # with the forward model it was checked against
        self._sent, self._counting = Sent(0, 0), threading.Lock()
        self._known = self._waiting = self._closed = False
        self._connect()
        _living.add(self)

    def _connect(self) -> None:
        """Forget all connections without closing them, and create the gate that limits requests in flight.

        Connections belong to a process: after a fork, both would read from the same socket, and each other's answers.
        """
        raise NotImplementedError

    def _after_fork(self) -> None:
        """In the child process: new connections and new locks, because threads that held the old ones are not here."""
        self._counting = threading.Lock()
        self._connect()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the settings, and connect anew. They hold the API key, too."""
        settings: dict[str, Any] = {
            "url": self.url,
            "model": self.model,
            "version": self.version,
            "api_key": self._api_key,
            "timeout": self._timeout,
            "retries": self._retries,
            "wait": self._wait,
            "batch_size": self._batch_size,
            "concurrency": self._concurrency,
            "priority": self._priority,
            "progress": self._progress,
        }
        return partial(type(self), **settings), ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model} at {self.url}>"

    @property
    def sent(self) -> Sent:
        """Requests and structures sent so far."""
        return self._sent

    def _count(self, request: Request) -> None:
        with self._counting:
            self._sent = Sent(self._sent.requests + 1, self._sent.structures + len(request.inputs[STRUCTURE]))

    def _check_open(self) -> None:
        """Raise ValueError after `close`."""
        if self._closed:
            raise ValueError(f"{self!r} is closed: create another one")

    def _question(
        self, operation: Literal["server", "index", "model", "config", "ready"], version: str = "", model: str = ""
    ) -> Request:
        if operation in ("server", "index"):
            return Request(operation)
        return Request(operation, model or self.model, version or self.version or "")

    def _known_gradient_model(self, forward: ModelInfo, version: str) -> ModelInfo | None:
        """The gradient model, if it has been checked against this description of the forward model.

        Args:
            forward: description of the forward model.
            version: version of the gradient model; "" for any.
        """
        if self._gradient_info is None:
            return None
        gradient, checked = self._gradient_info
        return gradient if checked is forward and version in ("", gradient.version) else None

    def _call(
        self,
        structures: ArrayLike,
        cotangent: ArrayLike | None,
        conditions: Mapping[str, ConditionValue],
        info: ModelInfo,
    ) -> Call:
        """A call with checked arguments, which are not copied."""
        return Call(
            structures,
            cotangent,
            conditions,
            info=info,
            model=self.model,
            version=self.version or "",
            batch_size=self._batch_size,
            priority=self._priority,
        )

    def _bar(self, call: Call) -> Any:
        """A progress bar that appears after two seconds, in terminals only."""
        disable = None if self._progress and len(call) > 1 else True
        return tqdm(total=call.rows, unit="structure", delay=2.0, leave=False, disable=disable)

    def _pause(self, attempt: int, waited: float, error: MetaSpecError) -> float:
        """Seconds before the next attempt: what the server asks for, plus exponential back-off with full jitter.

        Args:
            attempt: number of attempts before the failed one.
            waited: seconds since the first attempt.
            error: error of the failed attempt.

        Raises:
            MetaSpecError: the given error, if neither an attempt nor time to wait is left for as long as the server asks.
        """
        asked: float = getattr(error, "retry_after", None) or 0.0
        left = self._wait - waited if self._known else 0.0
        if not (attempt < self._retries and asked <= self._timeout) and not asked < left:
            raise error
        if attempt >= self._retries:
            self._say_once(True, "%s; waiting for the server, %s at most", error.args[0], _duration(left))
        return asked + random.uniform(0, min(_LONGEST_PAUSE, 0.25 * 2 ** min(attempt, 10)))

    def _answered(self) -> None:
        """Note that the server has answered."""
        self._known = True
        if self._waiting:
            self._say_once(False, "%s answers again", self.url)

    def _say_once(self, waiting: bool, message: str, *arguments: object) -> None:
        """Log the beginning or the end of a wait, once for all requests in flight."""
        with self._counting:
            changed, self._waiting = waiting != self._waiting, waiting
        if changed:
            _log.warning(message, *arguments)


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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless a setting is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _scheme(url: str) -> Literal["http", "grpc"]:
    """The protocol of a URL.

    Raises:
        ValueError: not a URL of HTTP or gRPC.
    """
    if not isinstance(url, str):
        raise ValueError(f"url must be an address, got {url!r}")
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


_living: weakref.WeakSet[SurrogateBase] = weakref.WeakSet()


def _after_fork() -> None:
    for surrogate in list(_living):
        surrogate._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_after_fork)
