"""`Surrogate` and `AsyncSurrogate`: a remote model as a function of arrays."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec import _protocol
from metaspec._errors import DeadlineExceeded, MetaSpecError, ServerUnreachable
from metaspec._protocol import ModelInfo
from metaspec._spectra import Spectra

DEFAULT_URL = "http://127.0.0.1:8000"
_LONGEST_WAIT = 30.0  # seconds between two attempts at most


class _Base:
    """What the two clients share: all that does not wait."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = "diffractionnet",
        version: str | int | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        batch_size: int = 256,
        concurrency: int = 4,
    ) -> None:
        for name, value, least in (
            ("retries", retries, 0),
            ("batch_size", batch_size, 1),
            ("concurrency", concurrency, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.url, self.model, self.version = url.rstrip("/"), model, None if version is None else str(version)
        self._retries, self._batch_size, self._concurrency = retries, batch_size, concurrency
        self._path = f"/v2/models/{model}" + (f"/versions/{self.version}" if self.version else "")
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "timeout": timeout,
            "limits": httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            "headers": {"User-Agent": "metaspec"},
        }
        self._info: ModelInfo | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model} at {self.url}>"

    def _batches(self, structures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(structures), self._batch_size):
            yield structures[start : start + self._batch_size]

    def _spectra(self, parts: list[NDArray[np.float32]], info: ModelInfo) -> Spectra:
        empty = np.empty((0, len(info.channels), len(info.wavelengths_nm)), np.float32)
        values = np.concatenate(parts) if parts else empty
        return Spectra(values, info.wavelengths_nm, info.channels, info.name, info.version)

    def _wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds before another attempt: what the server asks for, else exponential with full jitter."""
        asked = None if response is None else _protocol.retry_after(response)
        return min(_LONGEST_WAIT, asked if asked is not None else random.uniform(0, 0.25 * 2**attempt))

    def _give_up(self, error: httpx.TransportError) -> MetaSpecError:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return DeadlineExceeded(f"{self.url} did not answer within the timeout")
        return ServerUnreachable(
            f"no connection to {self.url}: {error or type(error).__name__}. Is metaspec-serve running?"
        )

    def _again(self, attempt: int, response: httpx.Response) -> bool:
        if response.status_code in _protocol.RETRIED and attempt < self._retries:
            return True
        if response.status_code >= 400:
            raise _protocol.error_of(response)
        return False


class Surrogate(_Base):
    """A surrogate model on a server. Threads may share one; it keeps its connections open until it is closed.

    Args:
        url: of the server.
        model: to ask.
        version: of the model; the server's choice by default.
        timeout: seconds to wait for an answer.
        retries: further attempts when the server is busy or unreachable, with growing, jittered pauses.
        batch_size: structures in one request.
        concurrency: requests in flight at a time.

    Example:
        >>> with Surrogate("http://127.0.0.1:8000") as surrogate:
        ...     spectra = surrogate.predict(np.random.default_rng(0).integers(0, 2, (10, 128, 128)))
        >>> spectra.colour_efficiency().shape
        (10, 3)
    """

    def __init__(self, url: str = DEFAULT_URL, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._http = httpx.Client(**self._settings)

    def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures.

        Args:
            structures: (128, 128), (N, 128, 128) or (N, 1, 128, 128); 1 is solid, 0 is void, densities between are allowed.
                Large N are sent as several requests at a time; the order is kept.

        Raises:
            InvalidStructure: before anything is sent.
            MetaSpecError: one of its kinds, see there.
        """
        info = self.metadata()
        batches = list(self._batches(_protocol.check_structures(structures, info.pixels)))
        if len(batches) < 2:
            return self._spectra([self._infer(batch, info) for batch in batches], info)
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(self._infer, batch, info) for batch in batches]
            try:
                return self._spectra([future.result() for future in futures], info)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what has not been sent never will be
                raise

    def metadata(self) -> ModelInfo:
        """What the server says of the model; asked once."""
        if self._info is None:
            self._info = _protocol.parse_model(self._send("GET", self._path))
        return self._info

    def is_ready(self) -> bool:
        """Whether the server answers and the model takes work, right now."""
        try:
            return self._http.get(f"{self._path}/ready").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _infer(self, batch: NDArray[np.float32], info: ModelInfo) -> NDArray[np.float32]:
        body, headers = _protocol.encode_infer(batch)
        response = self._send("POST", f"{self._path}/infer", content=body, headers=headers)
        return _protocol.decode_infer(response, len(batch), info)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            response = None
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if attempt == self._retries or isinstance(error, httpx.ReadTimeout):
                    raise self._give_up(error) from error
            else:
                if not self._again(attempt, response):
                    return response
            time.sleep(self._wait(attempt, response))
        raise AssertionError("the last attempt returns or raises")


class AsyncSurrogate(_Base):
    """`Surrogate` for asyncio: the same arguments and methods, to be awaited."""

    def __init__(self, url: str = DEFAULT_URL, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._http = httpx.AsyncClient(**self._settings)

    async def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures; see `Surrogate.predict`."""
        info = await self.metadata()
        gate = asyncio.Semaphore(self._concurrency)

        async def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
            async with gate:
                body, headers = _protocol.encode_infer(batch)
                response = await self._send("POST", f"{self._path}/infer", content=body, headers=headers)
            return _protocol.decode_infer(response, len(batch), info)

        tasks: list[asyncio.Task[NDArray[np.float32]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                batches = self._batches(_protocol.check_structures(structures, info.pixels))
                tasks.extend(group.create_task(infer(batch)) for batch in batches)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self._spectra([task.result() for task in tasks], info)

    async def metadata(self) -> ModelInfo:
        """What the server says of the model; asked once."""
        if self._info is None:
            self._info = _protocol.parse_model(await self._send("GET", self._path))
        return self._info

    async def is_ready(self) -> bool:
        """Whether the server answers and the model takes work, right now."""
        try:
            return (await self._http.get(f"{self._path}/ready")).is_success
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            response = None
            try:
                response = await self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if attempt == self._retries or isinstance(error, httpx.ReadTimeout):
                    raise self._give_up(error) from error
            else:
                if not self._again(attempt, response):
                    return response
            await asyncio.sleep(self._wait(attempt, response))
        raise AssertionError("the last attempt returns or raises")
