"""`Surrogate` and `AsyncSurrogate`: a remote model as a function of arrays, with its gradient."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from metaspec import _protocol
from metaspec._errors import DeadlineExceeded, MetaSpecError, ServerUnreachable
from metaspec._protocol import Answer, ModelInfo
from metaspec._spectra import Spectra

Http = TypeVar("Http")

DEFAULT_URL = "http://127.0.0.1:8000"

Objective = Callable[[Spectra], tuple[ArrayLike, ArrayLike]]
"""From spectra of N structures to the objective's N values, and its N derivatives by the spectra (the cotangent)."""


class Evaluation(NamedTuple):
    """An objective and its gradient at N structures.

    Attributes:
        value: of the objective, (N,).
        gradient: of the objective by the density of every pixel, float32 (N, y, x).
        spectra: of the structures.
    """

    value: NDArray[Any]
    gradient: NDArray[np.float32]
    spectra: Spectra


@dataclass(frozen=True)
class _Batch:
    """Rows start .. stop - 1 of a call, as one request."""

    start: int
    stop: int
    structures: NDArray[Any]
    cotangent: NDArray[np.float32] | None


class _Base(Generic[Http]):
    """What the two clients share: all that does not wait."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = "diffractionnet",
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
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, got {url!r}")
        self.url, self.model, self.version = url.rstrip("/"), model, None if version is None else str(version)
        self._timeout, self._retries = timeout, retries
        self._batch_size, self._concurrency, self._progress = batch_size, concurrency, progress
        self._info: ModelInfo | None = None
        settings = {
            "base_url": self.url,
            "timeout": timeout,
            "limits": httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            "headers": {"User-Agent": "metaspec"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        }
        self._http: Http = self._connect(settings)

    def _connect(self, settings: dict[str, Any]) -> Http:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model} at {self.url}>"

    def _path(self, gradient: bool = False, version: str | None = None) -> str:
        model, version = f"{self.model}_vjp" if gradient else self.model, version or self.version
        return f"/v2/models/{model}" + (f"/versions/{version}" if version else "")

    def _batches(self, structures: ArrayLike, cotangent: ArrayLike | None, info: ModelInfo) -> tuple[int, list[_Batch]]:
        """The requests of a call, all of it checked, nothing of it copied; and the number of structures."""
        array = _protocol.check_structures(structures, info.pixels)
        count = len(array)
        pulled = None if cotangent is None else _protocol.check_cotangent(cotangent, count, info)
        starts = range(0, count, self._batch_size)
        stops = [min(start + self._batch_size, count) for start in starts]
        return count, [
            _Batch(start, stop, array[start:stop], None if pulled is None else pulled[start:stop])
            for start, stop in zip(starts, stops, strict=True)
        ]

    def _encode(self, batch: _Batch, info: ModelInfo) -> tuple[bytes, dict[str, str]]:
        return _protocol.encode_infer(batch.structures, batch.cotangent, info.takes_bits)

    def _decode(self, response: httpx.Response, batch: _Batch, info: ModelInfo) -> Answer:
        rows = batch.stop - batch.start
        shapes: dict[str, tuple[int, ...]] = {"spectra": (rows, *info.spectra_shape)}
        if batch.cotangent is not None:
            shapes["gradient"] = (rows, 1, *info.pixels)
        return _protocol.decode_infer(response, shapes)

    def _stale(self, answers: list[Answer]) -> tuple[str, list[int]]:
        """If a new version took over in the middle of a call: that version, and which answers are of another one."""
        versions = {answer.version for answer in answers}
        if len(versions) < 2:
            return "", []
        newest = max(versions, key=lambda version: (int(version) if version.isdigit() else -1, version))
        return newest, [n for n, answer in enumerate(answers) if answer.version != newest]

    def _joined(self, answers: list[Answer], name: str, empty: tuple[int, ...]) -> NDArray[np.float32]:
        parts = [answer.arrays[name] for answer in answers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(empty, np.float32)

    def _spectra(self, answers: list[Answer], info: ModelInfo) -> Spectra:
        values = self._joined(answers, "spectra", (0, *info.spectra_shape))
        version = answers[0].version if answers else ""
        return Spectra(values, info.wavelengths_nm, info.channels, info.name, version or info.version)

    def _gradient(self, answers: list[Answer], info: ModelInfo) -> NDArray[np.float32]:
        return self._joined(answers, "gradient", (0, 1, *info.pixels))[:, 0]

    def _bar(self, count: int) -> Any:
        """A progress bar that shows itself after two seconds, where people look."""
        return tqdm(total=count, unit="structure", delay=2.0, leave=False, disable=None if self._progress else True)

    def _wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds before another attempt: what the server asks for, else exponential with full jitter.

        Raises:
            ServerBusy: the server asks for more patience than `timeout`.
        """
        asked = None if response is None else _protocol.retry_after(response)
        if response is not None and asked is not None and asked > self._timeout:
            raise _protocol.error_of(response)
        return asked if asked is not None else random.uniform(0, 0.25 * 2**attempt)

    def _give_up(self, error: httpx.TransportError) -> MetaSpecError:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return DeadlineExceeded(f"{self.url} did not answer within {self._timeout:g} s: raise timeout")
        return ServerUnreachable(
            f"no connection to {self.url}: {error or type(error).__name__}. Is metaspec-serve running?"
        )

    def _again(self, attempt: int, response: httpx.Response) -> bool:
        if response.status_code in _protocol.RETRIED and attempt < self._retries:
            return True
        if response.status_code >= 400:
            raise _protocol.error_of(response)
        return False


class Surrogate(_Base[httpx.Client]):
    """A surrogate model on a server. Threads may share one; it keeps its connections open until it is closed.

    Args:
        url: of the server.
        model: to ask.
        version: of the model; the server's choice by default.
        api_key: for a server that wants one.
        timeout: seconds to wait for an answer, and for a busy server that names a time.
        retries: further attempts when the server is busy or unreachable, with growing, jittered pauses.
        batch_size: structures in one request.
        concurrency: requests in flight at a time.
        progress: show a progress bar in a terminal when a call takes long.

    Raises:
        ValueError: a setting out of range, or a URL that is not one of HTTP.

    Example:
        >>> with Surrogate("http://127.0.0.1:8000") as surrogate:
        ...     spectra = surrogate.predict(np.random.default_rng(0).integers(0, 2, (10, 128, 128)))
        >>> spectra.colour_efficiency().shape
        (10, 3)
    """

    def _connect(self, settings: dict[str, Any]) -> httpx.Client:
        return httpx.Client(**settings)

    def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures.

        Args:
            structures: (128, 128), (N, 128, 128) or (N, 1, 128, 128); 1 is solid, 0 is void, densities between are allowed.
                Large N are sent as several requests at a time; the order is kept, and all are of one version of the model.

        Raises:
            InvalidStructure: before anything is sent.
            MetaSpecError: one of its kinds, see there.
        """
        info = self.metadata()
        return self._spectra(self._ask(*self._batches(structures, None, info), info), info)

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) by the density of every pixel (a vector-Jacobian product).

        Args:
            structures: as for `predict`.
            cotangent: (N, channels, wavelengths), or (channels, wavelengths) for all structures: the derivative of an
                objective by the spectra gives the objective's gradient.

        Returns:
            float32 (N, 128, 128).

        Raises:
            InvalidStructure: before anything is sent.
            InvalidCotangent: before anything is sent.
            MetaSpecError: one of its kinds, see there.
        """
        info = self.metadata()
        return self._gradient(self._ask(*self._batches(structures, cotangent, info), info), info)

    def predict_and_gradient(self, structures: ArrayLike, objective: Objective) -> Evaluation:
        """An objective of the spectra, and its gradient.

        Args:
            structures: as for `predict`.
            objective: from `Spectra` of N structures to N values and N derivatives by the spectra, (N, channels,
                wavelengths). Spectra are asked for first, then the gradient for these derivatives.

        Raises:
            InvalidStructure: before anything is sent.
            InvalidCotangent: the objective's derivatives are of another shape or not finite.
            MetaSpecError: one of its kinds, see there.
        """
        spectra = self.predict(structures)
        value, cotangent = objective(spectra)
        return Evaluation(np.asarray(value), self.gradient(structures, cotangent), spectra)

    def metadata(self) -> ModelInfo:
        """What the server says of the model; asked once."""
        if self._info is None:
            self._info = _protocol.parse_model(self._send("GET", self._path()), self._send("GET", "/v2"))
        return self._info

    def is_ready(self) -> bool:
        """Whether the server answers and the model takes work, right now."""
        try:
            return self._http.get(f"{self._path()}/ready").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, count: int, batches: list[_Batch], info: ModelInfo) -> list[Answer]:
        with self._bar(count) as bar, ThreadPoolExecutor(self._concurrency) as pool:

            def infer(batch: _Batch, version: str | None = None) -> Answer:
                content, headers = self._encode(batch, info)
                path = f"{self._path(batch.cotangent is not None, version)}/infer"
                answer = self._decode(self._send("POST", path, content=content, headers=headers), batch, info)
                bar.update(0 if version else batch.stop - batch.start)
                return answer

            if len(batches) == 1:
                return [infer(batches[0])]
            try:
                answers = list(pool.map(infer, batches))
                newest, stale = self._stale(answers)
                again = pool.map(lambda n: infer(batches[n], newest), stale)
                for n, answer in zip(stale, again, strict=True):
                    answers[n] = answer
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what has not been sent never will be
                raise
        return answers

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


class AsyncSurrogate(_Base[httpx.AsyncClient]):
    """`Surrogate` for asyncio: the same arguments and methods, to be awaited.

    Large arrays are checked, packed and unpacked in threads, so that the event loop stays free.
    """

    def _connect(self, settings: dict[str, Any]) -> httpx.AsyncClient:
        return httpx.AsyncClient(**settings)

    async def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures; see `Surrogate.predict`."""
        info = await self.metadata()
        return self._spectra(await self._ask(structures, None, info), info)

    async def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra); see `Surrogate.gradient`."""
        info = await self.metadata()
        return self._gradient(await self._ask(structures, cotangent, info), info)

    async def predict_and_gradient(self, structures: ArrayLike, objective: Objective) -> Evaluation:
        """An objective of the spectra, and its gradient; see `Surrogate.predict_and_gradient`."""
        spectra = await self.predict(structures)
        value, cotangent = objective(spectra)
        return Evaluation(np.asarray(value), await self.gradient(structures, cotangent), spectra)

    async def metadata(self) -> ModelInfo:
        """What the server says of the model; asked once."""
        if self._info is None:
            self._info = _protocol.parse_model(await self._send("GET", self._path()), await self._send("GET", "/v2"))
        return self._info

    async def is_ready(self) -> bool:
        """Whether the server answers and the model takes work, right now."""
        try:
            return (await self._http.get(f"{self._path()}/ready")).is_success
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

    async def _ask(self, structures: ArrayLike, cotangent: ArrayLike | None, info: ModelInfo) -> list[Answer]:
        count, batches = await asyncio.to_thread(self._batches, structures, cotangent, info)
        gate = asyncio.Semaphore(self._concurrency)
        with self._bar(count) as bar:

            async def infer(batch: _Batch, version: str | None = None) -> Answer:
                async with gate:
                    content, headers = await asyncio.to_thread(self._encode, batch, info)
                    path = f"{self._path(batch.cotangent is not None, version)}/infer"
                    response = await self._send("POST", path, content=content, headers=headers)
                    answer = await asyncio.to_thread(self._decode, response, batch, info)
                bar.update(0 if version else batch.stop - batch.start)
                return answer

            async def infer_all(chosen: list[_Batch], version: str | None = None) -> list[Answer]:
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(infer(batch, version)) for batch in chosen]
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                return [task.result() for task in tasks]

            answers = await infer_all(batches)
            newest, stale = self._stale(answers)
            for n, answer in zip(stale, await infer_all([batches[n] for n in stale], newest), strict=True):
                answers[n] = answer
        return answers

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
