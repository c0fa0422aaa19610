"""`Surrogate`: a remote model as a function of arrays, with its gradient."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from threading import Thread

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import MetaSpecError, ProtocolError, ServerBusy, ServerError, ServerUnreachable
from metaspec._surrogate.base import SurrogateBase, grpc_transports
from metaspec._surrogate.call import Call
from metaspec._transport.cancellation import Cancellation, Cancelled
from metaspec._transport.http import HttpTransport
from metaspec._transport.protocol import (
    ModelInfo,
    Reply,
    Request,
    ServedModel,
    Transport,
    check_gradient_model,
    needs_config,
    parse_index,
    parse_model,
)
from metaspec_contract.conditions import ConditionValue
from metaspec_contract.model import gradient_model
from metaspec_contract.source import Evaluation, Gradients, ObjectiveFunction, Source, value_and_cotangent
from metaspec_contract.spectra import Spectra

_LOOK_EVERY = 0.2  # seconds between two looks whether a request that waits for others is still wanted
_LONGEST_END = 2.0  # seconds for cancelled requests to end: at once, except those that look up a name or connect


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
        wait: seconds for which a server that has answered before is asked again after that, such as during its restart.
        batch_size: structures per request.
        concurrency: largest number of requests in flight.
        priority: priority of the requests in the server's queue, as numbered by Triton: 1 for interactive ones, which go ahead
            of others; 0 for the server's default.
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

    def _connect(self) -> None:
        carrier = HttpTransport if self._scheme == "http" else grpc_transports().GrpcTransport
        self._transport = carrier(self.url, self._api_key, self._timeout)
        self._gate = threading.Semaphore(self._concurrency)
        self._flight_lock = threading.Lock()
        self._flight: Future[ModelInfo] | None = None

    def predict(self, structures: ArrayLike, **conditions: ConditionValue) -> Spectra:
        """Spectra of structures.

        Args:
            structures: (y, x), (N, y, x) or (N, 1, y, x), of the pixels of the model's process; 1 is solid, 0 is void, a
                density between mixes their permittivities linearly. Or bit-packed binary structures, uint8 (N, y * x / 8),
                as `metaspec_contract.structures.pack` makes them, which are sent as they are. Large N are split over
                concurrent requests; the order is kept, and one version of the model answers all. Arrays larger than memory
                may be a `numpy.memmap`.
            **conditions: what the model takes beside structures, by name (`metadata().conditions`): a number for all, or an
                array (N,); for a vector, (size,) or (N, size). Defaults for those not given, or None.

        Raises:
            InvalidStructure: raised before anything is sent.
            InvalidCondition: raised before anything is sent.
            MetaSpecError: one of its subclasses, see there.
        """
        call = self._complete(structures, None, conditions)
        info = self.metadata()
        if call.version not in ("", info.version):
            info = self._info = self._describe(call.version)
        return Spectra.of_model(call.spectra, info)

    def gradient(
        self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue
    ) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) with respect to the density of every pixel.

        Args:
            structures: structures as for `predict`.
            cotangent: (N, channels, wavelengths), or (channels, wavelengths) for all structures. The derivative of an
                objective with respect to the spectra yields the objective's gradient. (N, K, channels, wavelengths) for K
                objectives of each structure.
            **conditions: conditions as for `predict`.

        Returns:
            float32 (N, y, x), or (N, K, y, x) for K cotangents of each structure.

        Raises:
            InvalidStructure: raised before anything is sent.
            InvalidCotangent: raised before anything is sent.
            InvalidCondition: raised before anything is sent.
            MetaSpecError: one of its subclasses, see there.
        """
        return self.gradients(structures, cotangent, **conditions).structure

    def gradients(self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue) -> Gradients:
        """The gradient of sum(cotangent * spectra) with respect to structures and to conditions, in the same requests.

        Arguments and errors are those of `gradient`.
        """
        return self._complete(structures, cotangent, conditions).gradients

    def predict_and_gradient(
        self, structures: ArrayLike, objective: ObjectiveFunction, **conditions: ConditionValue
    ) -> Evaluation:
        """An objective of the spectra, and its gradient.

        Args:
            structures: structures as for `predict`.
            objective: function from `Spectra` of N structures to N values and N derivatives with respect to the spectra,
                (N, channels, wavelengths); see `metaspec_contract.source.ObjectiveFunction`.
            **conditions: conditions as for `predict`.

        Errors are those of `gradient`.
        """
        spectra = self.predict(structures, **conditions)
        value, cotangent = value_and_cotangent(objective, spectra)
        gradients = self.gradients(structures, cotangent, **conditions)
        return Evaluation(np.asarray(value), gradients.structure, spectra, gradients.conditions)

    def metadata(self) -> ModelInfo:
        """Description of the model; requested once, and again when another version has answered."""
        while (info := self._info) is None:
            with self._flight_lock:
                flight, mine = self._flight, self._flight is None
                if flight is None:
                    flight = self._flight = Future()
            try:
                info = self._land(flight) if mine else flight.result()
            except CancelledError:  # the thread that asked was interrupted
                continue
            return info
        return info

    def _land(self, flight: Future[ModelInfo]) -> ModelInfo:
        """Ask for the description on behalf of all threads that wait for it."""
        try:
            self._info = info = self._describe()
            flight.set_result(info)
        except Exception as error:
            flight.set_exception(error)
            raise
        finally:
            self._flight = None
            flight.cancel()  # without effect if it has a result
        return info

    def models(self) -> tuple[ServedModel, ...]:
        """All models of the server, of any name, and those that it cannot serve, with the reason.

        Raises:
            MetaSpecError: one of its subclasses; `ProtocolError` if the server has no index of its models.
        """
        return parse_index(self._ask(self._question("index")))

    def is_ready(self) -> bool:
        """Whether the server answers and the model is ready, now."""
        self._check_open()
        try:
            with self._gate:
                self._transport.send(self._question("ready"), Cancellation())
        except MetaSpecError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._transport.close()

    def _describe(self, version: str = "", model: str = "") -> ModelInfo:
        server = self._ask(self._question("server"))
        metadata = self._ask(self._question("model", version, model))
        config = self._ask(self._question("config", version, model)) if needs_config(server, metadata) else None
        return parse_model(server, metadata, config, version or self.version or "")

    def _check_gradient_model(self, version: str = "") -> ModelInfo:
        """The gradient model, if it is of the device of the spectra; asks the server once for each new version."""
        forward = self.metadata()
        gradient = self._known_gradient_model(forward, version)
        if gradient is None:
            gradient = self._describe(version, gradient_model(self.model))
            check_gradient_model(gradient, forward)
            self._gradient_info = gradient, forward
        return gradient

    def _complete(
        self, structures: ArrayLike, cotangent: ArrayLike | None, conditions: Mapping[str, ConditionValue]
    ) -> Call:
        """A call with its answers, all from one version of the model."""
        call = self._call(structures, cotangent, conditions, self.metadata())
        try:
            if cotangent is not None:
                call.complete(self._check_gradient_model().conditions)
            self._infer(call, range(len(call)))
            newest, stale = call.stale()
            self._infer(call, stale, newest)
            if cotangent is not None:
                self._check_gradient_model(call.version)
        except (ProtocolError, ServerError):
            self._info = None  # a new version may differ: the next call asks for its description
            raise
        return call

    def _infer(self, call: Call, which: Sequence[int], version: str = "") -> None:
        """Send some requests of a call, at most `concurrency` at a time."""
        if len(which) == 1:
            self._infer_one(call, which[0], version, Cancellation(), look_every=None)
            return
        todo, done = deque(which), SimpleQueue[int | BaseException]()
        cancellation = Cancellation()

        def work() -> None:
            while not cancellation.requested:
                try:
                    n = todo.popleft()  # atomic
                except IndexError:
                    return
                try:
                    done.put(self._infer_one(call, n, version, cancellation))
                except BaseException as error:
                    done.put(error)
                    return

        threads = [Thread(target=work, daemon=True) for _ in range(min(self._concurrency, len(which)))]
        with self._bar(call) as bar:
            try:
                for thread in threads:
                    thread.start()
                for _ in which:
                    rows = done.get()
                    if isinstance(rows, BaseException):
                        raise rows
                    bar.update(rows)
            finally:
                cancellation.cancel()  # without effect if all is done
                deadline = time.monotonic() + _LONGEST_END
                for thread in threads:
                    if thread.ident is not None:
                        thread.join(max(0.0, deadline - time.monotonic()))

    def _infer_one(
        self, call: Call, n: int, version: str, cancellation: Cancellation, look_every: float | None = _LOOK_EVERY
    ) -> int:
        """Send one request of a call, and return its number of rows."""
        while not self._gate.acquire(timeout=look_every):  # others may use the surrogate, too
            if cancellation.requested:
                raise Cancelled
        try:
            request = call.request(n, version)
            self._count(request)
            return call.write(n, self._send(request, cancellation))
        finally:
            self._gate.release()

    def _ask(self, request: Request) -> Reply:
        """Send a question."""
        with self._gate:
            return self._send(request, Cancellation())

    def _send(self, request: Request, cancellation: Cancellation) -> Reply:
        """Send a request until it is answered or all attempts have failed; the gate is open."""
        attempt, began = 0, time.monotonic()
        while True:
            self._check_open()
            try:
                reply = self._transport.send(request, cancellation)
            except (ServerBusy, ServerUnreachable) as error:
                if cancellation.requested or cancellation.wait(self._pause(attempt, time.monotonic() - began, error)):
                    raise
            else:
                self._answered()
                return reply
            attempt += 1
