"""`Surrogate`: a remote model as a function of arrays, with its gradient."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import MetaSpecError, ProtocolError, ServerBusy, ServerUnreachable
from metaspec._spectra import Spectra
from metaspec._surrogate.base import Evaluation, Objective, SurrogateBase, grpc_transports
from metaspec._surrogate.call import Call
from metaspec._transport.http import HttpTransport
from metaspec._transport.protocol import ModelInfo, Reply, Request, Transport, parse_model, tells_more

_NEVER = threading.Event()


class Surrogate(SurrogateBase):
    """A surrogate model on a server. Threads may share one; it keeps its connections open until it is closed.

    Args:
        url: of the server: http:// or https:// for ours or Triton's HTTP port, grpc://host:port or grpcs://host:port (with
            TLS) for Triton's gRPC port. gRPC needs the extra `grpc`.
        model: to ask.
        version: of the model; the server's choice by default.
        api_key: for a server that wants one; sent as a bearer token.
        timeout: seconds to wait for an answer, and for a busy server that names a time.
        retries: further attempts when the server is busy or unreachable, with growing, jittered pauses.
        batch_size: structures in one request.
        concurrency: requests in flight at a time.
        progress: show a progress bar in a terminal when a call takes long.

    Attributes:
        sent: how many requests for spectra or gradients, and structures in them, have been sent so far.

    Raises:
        ValueError: a setting out of range, or a URL of another kind.
        ImportError: the URL is one of gRPC and tritonclient is not installed.

    Example:
        >>> with Surrogate("http://127.0.0.1:8000") as surrogate:
        ...     spectra = surrogate.predict(np.random.default_rng(0).integers(0, 2, (10, 128, 128)))
        >>> spectra.colour_efficiency().shape
        (10, 3)
    """

    _transport: Transport
    _gate: threading.Semaphore

    def _connect(self, scheme: Literal["http", "grpc"], url: str, api_key: str | None) -> None:
        carrier = HttpTransport if scheme == "http" else grpc_transports().GrpcTransport
        self._transport = carrier(url, api_key, self._timeout, self._concurrency)
        self._gate = threading.Semaphore(self._concurrency)

    def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures.

        Args:
            structures: (128, 128), (N, 128, 128) or (N, 1, 128, 128); 1 is solid, 0 is void, densities between are allowed.
                Large N are sent as several requests at a time; the order is kept, and all are of one version of the model.
                What does not fit into memory may be a `numpy.memmap`.

        Raises:
            InvalidStructure: before anything is sent.
            MetaSpecError: one of its kinds, see there.
        """
        call = self._complete(structures, None)
        info = self.metadata()
        if call.version not in ("", info.version):
            info = self._info = self._describe(call.version)
        return Spectra(call.values, info.wavelengths_nm, info.channels, info.name, info.version)

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) by the density of every pixel (a vector-Jacobian product).

        Args:
            structures: as for `predict`.
            cotangent: (N, channels, wavelengths), or (channels, wavelengths) for all structures: the derivative of an
                objective by the spectra gives the objective's gradient. For K objectives of each structure (N, K, channels,
                wavelengths).

        Returns:
            float32 (N, 128, 128), or (N, K, 128, 128) for K cotangents of each structure.

        Raises:
            InvalidStructure: before anything is sent.
            InvalidCotangent: before anything is sent.
            MetaSpecError: one of its kinds, see there.
        """
        return self._complete(structures, cotangent).values

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
        """What the server says of the model; asked once, and again when another version has answered."""
        if self._info is None:
            self._info = self._describe()
        return self._info

    def is_ready(self) -> bool:
        """Whether the server answers and the model takes work, right now."""
        try:
            self._transport.send(self._question("ready"))
        except MetaSpecError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe(self, version: str = "") -> ModelInfo:
        server, model = self._send(self._question("server")), self._send(self._question("model", version))
        config = self._send(self._question("config", version)) if tells_more(server, model) else None
        return parse_model(server, model, config, version or self.version or "")

    def _complete(self, structures: ArrayLike, cotangent: ArrayLike | None) -> Call:
        """A call with its answers, all of one version of the model."""
        call = self._call(structures, cotangent, self.metadata())
        try:
            self._infer(call, range(len(call)))
            newest, stale = call.stale()
            self._infer(call, stale, newest)
        except ProtocolError:
            self._info = None  # a new version may have other shapes: let the next call see them
            raise
        return call

    def _infer(self, call: Call, which: Sequence[int], version: str = "") -> None:
        """Send some requests of a call, a few at a time."""
        cancelled = threading.Event()

        def infer(n: int) -> int:
            with self._gate:
                request = call.request(n, version)
                self._count(request)
                return call.write(n, self._send(request, cancelled))

        if len(which) == 1:
            infer(which[0])
            return
        todo = iter(which)
        with self._bar(call) as bar, ThreadPoolExecutor(self._concurrency) as pool:
            try:
                running = {pool.submit(infer, n) for n in islice(todo, self._concurrency)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        bar.update(future.result())
                    running |= {pool.submit(infer, n) for n in islice(todo, len(done))}
            except BaseException:
                cancelled.set()  # who waits for another attempt need not any more
                raise

    def _send(self, request: Request, cancelled: threading.Event = _NEVER) -> Reply:
        attempt = 0
        while True:
            try:
                return self._transport.send(request)
            except (ServerBusy, ServerUnreachable) as error:
                if cancelled.wait(self._pause(attempt, error)):
                    raise
            attempt += 1
