"""`Surrogate`: a remote model as a function of arrays, with its gradient."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import MetaSpecError, ProtocolError, ServerBusy, ServerUnreachable
from metaspec._surrogate.base import SurrogateBase, grpc_transports
from metaspec._surrogate.call import Call
from metaspec._transport.http import HttpTransport
from metaspec._transport.protocol import (
    ModelInfo,
    Reply,
    Request,
    Transport,
    check_gradient_model,
    needs_config,
    parse_model,
)
from metaspec_contract.model import gradient_model
from metaspec_contract.source import Source
from metaspec_contract.spectra import Spectra

_NEVER = threading.Event()


class Surrogate(SurrogateBase, Source):
    """A surrogate model on a server. Threads may share one; connections stay open until `close`.

    Args:
        url: address of the server: http:// or https:// for ours or Triton's HTTP port, grpc://host:port or
            grpcs://host:port (TLS) for Triton's gRPC port. gRPC needs the extra `grpc`.
        model: name of the model.
        version: version of the model; the server's choice by default.
        api_key: API key, if the server requires one; sent as a bearer token.
        timeout: longest wait in seconds for an answer, and for the pause that a busy server asks for.
        retries: number of further attempts when the server is busy or unreachable, with growing, jittered pauses.
        batch_size: structures per request.
        concurrency: largest number of requests in flight.
        progress: whether long calls show a progress bar in a terminal.

    Attributes:
        sent: counts of requests for spectra or gradients, and of structures in them, sent so far.

    Raises:
        ValueError: a setting is out of range, or the URL has another scheme.
        ImportError: a gRPC URL, and tritonclient is not installed.

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
            structures: (128, 128), (N, 128, 128) or (N, 1, 128, 128); 1 is solid, 0 is void, a density between mixes their
                permittivities linearly.
                Large N are split over concurrent requests; the order is kept, and one version of the model answers all.
                Arrays larger than memory may be a `numpy.memmap`.

        Raises:
            InvalidStructure: raised before anything is sent.
            MetaSpecError: one of its subclasses, see there.
        """
        call = self._complete(structures, None)
        info = self.metadata()
        if call.version not in ("", info.version):
            info = self._info = self._describe(call.version)
        return Spectra.of_model(call.values, info)

    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) with respect to the density of every pixel.

        Args:
            structures: structures as for `predict`.
            cotangent: (N, channels, wavelengths), or (channels, wavelengths) for all structures. The derivative of an
                objective with respect to the spectra yields the objective's gradient. (N, K, channels, wavelengths) for K
                objectives of each structure.

        Returns:
            float32 (N, 128, 128), or (N, K, 128, 128) for K cotangents of each structure.

        Raises:
            InvalidStructure: raised before anything is sent.
            InvalidCotangent: raised before anything is sent.
            MetaSpecError: one of its subclasses, see there.
        """
        return self._complete(structures, cotangent).values

    def metadata(self) -> ModelInfo:
        """Description of the model; requested once, and again when another version has answered."""
        if self._info is None:
            self._info = self._describe()
        return self._info

    def is_ready(self) -> bool:
        """Whether the server answers and the model is ready, now."""
        try:
            self._transport.send(self._question("ready"))
        except MetaSpecError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def _describe(self, version: str = "", model: str = "") -> ModelInfo:
        server = self._send(self._question("server"))
        metadata = self._send(self._question("model", version, model))
        config = self._send(self._question("config", version, model)) if needs_config(server, metadata) else None
        return parse_model(server, metadata, config, version or self.version or "")

    def _check_gradient_model(self, version: str = "") -> None:
        """Check that the gradient model is of the device of the spectra; asks the server once for each new version."""
        forward = self.metadata()
        if not self._knows_gradient_model(forward, version):
            gradient = self._describe(version, gradient_model(self.model))
            check_gradient_model(gradient, forward)
            self._gradient_info = gradient, forward

    def _complete(self, structures: ArrayLike, cotangent: ArrayLike | None) -> Call:
        """A call with its answers, all from one version of the model."""
        call = self._call(structures, cotangent, self.metadata())
        try:
            if cotangent is not None:
                self._check_gradient_model()
            self._infer(call, range(len(call)))
            newest, stale = call.stale()
            self._infer(call, stale, newest)
            if cotangent is not None:
                self._check_gradient_model(call.version)
        except ProtocolError:
            self._info = None  # a new version may differ: the next call asks for its description
            raise
        return call

    def _infer(self, call: Call, which: Sequence[int], version: str = "") -> None:
        """Send some requests of a call, at most `concurrency` at a time."""
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
                cancelled.set()  # ends the pauses before further attempts
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
