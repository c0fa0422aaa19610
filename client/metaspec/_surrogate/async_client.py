"""`AsyncSurrogate`: `Surrogate` for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import MetaSpecError, ProtocolError, ServerBusy, ServerError, ServerUnreachable
from metaspec._surrogate.base import SurrogateBase, grpc_transports
from metaspec._surrogate.call import Call
from metaspec._transport.http import AsyncHttpTransport
from metaspec._transport.protocol import (
    AsyncTransport,
    ModelInfo,
    Reply,
    Request,
    ServedModel,
    check_gradient_model,
    needs_config,
    parse_index,
    parse_model,
)
from metaspec._transport.proxies import proxy_for
from metaspec_contract.conditions import ConditionValue
from metaspec_contract.model import gradient_model
from metaspec_contract.source import Evaluation, Gradients, ObjectiveFunction, value_and_cotangent
from metaspec_contract.spectra import Spectra


@dataclass
class _Line:
    """The connections of one event loop.

    Attributes:
        transport: the connections.
        gate: limit of the requests in flight.
        describing: task that asks for the model's description on behalf of all, while it runs.
    """

    transport: AsyncTransport
    gate: asyncio.Semaphore
    describing: asyncio.Task[ModelInfo] | None = None


class AsyncSurrogate(SurrogateBase):
    """`Surrogate` for asyncio: the same arguments and methods, awaitable.

    Arrays are checked, packed and unpacked in threads, so that the event loop stays responsive.
    """

    def _connect(self) -> None:
        if self._scheme == "grpc":
            grpc_transports()  # raises where the extra is missing
        else:
            proxy_for(self.url)  # likewise for settings of the environment
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}

    def _line(self) -> _Line:
        """The connections of the running event loop: those of another one cannot be used in it."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            for closed in [other for other in list(self._lines) if other.is_closed()]:
                self._lines.pop(closed, None)
            carrier = AsyncHttpTransport if self._scheme == "http" else grpc_transports().AsyncGrpcTransport
            transport = carrier(self.url, self._api_key, self._timeout, self._concurrency)
            self._lines[loop] = _Line(transport, asyncio.Semaphore(self._concurrency))
        return self._lines[loop]

    async def predict(self, structures: ArrayLike, **conditions: ConditionValue) -> Spectra:
        """Spectra of structures; see `Surrogate.predict`."""
        call = await self._complete(structures, None, conditions)
        info = await self.metadata()
        if call.version not in ("", info.version):
            info = self._info = await self._describe(call.version)
        return Spectra.of_model(call.spectra, info)

    async def gradient(
        self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue
    ) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra); see `Surrogate.gradient`."""
        return (await self.gradients(structures, cotangent, **conditions)).structure

    async def gradients(self, structures: ArrayLike, cotangent: ArrayLike, **conditions: ConditionValue) -> Gradients:
        """The gradient with respect to structures and to conditions; see `Surrogate.gradients`."""
        return (await self._complete(structures, cotangent, conditions)).gradients

    async def predict_and_gradient(
        self, structures: ArrayLike, objective: ObjectiveFunction, **conditions: ConditionValue
    ) -> Evaluation:
        """An objective of the spectra, and its gradient; see `Surrogate.predict_and_gradient`."""
        spectra = await self.predict(structures, **conditions)
        value, cotangent = value_and_cotangent(objective, spectra)
        gradients = await self.gradients(structures, cotangent, **conditions)
        return Evaluation(np.asarray(value), gradients.structure, spectra, gradients.conditions)

    async def metadata(self) -> ModelInfo:
        """Description of the model; see `Surrogate.metadata`."""
        info = self._info
        if info is None:
            line = self._line()
            if line.describing is None:
                line.describing = asyncio.create_task(self._describe())
                line.describing.add_done_callback(lambda _: setattr(line, "describing", None))
            self._info = info = await asyncio.shield(line.describing)  # others wait for it, too
        return info

    async def models(self) -> tuple[ServedModel, ...]:
        """All models of the server; see `Surrogate.models`."""
        return parse_index(await self._ask(self._question("index")))

    async def is_ready(self) -> bool:
        """Whether the server answers and the model is ready, now."""
        line = self._line()
        try:
            async with line.gate:
                await line.transport.send(self._question("ready"))
        except MetaSpecError:
            return False
        return True

    async def close(self) -> None:
        """Close the connections of the running event loop, and forget those of others."""
        self._closed = True
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _describe(self, version: str = "", model: str = "") -> ModelInfo:
        server = await self._ask(self._question("server"))
        metadata = await self._ask(self._question("model", version, model))
        config = await self._ask(self._question("config", version, model)) if needs_config(server, metadata) else None
        return parse_model(server, metadata, config, version or self.version or "")

    async def _check_gradient_model(self, version: str = "") -> ModelInfo:
        """The gradient model, if it is of the device of the spectra; asks the server once for each new version."""
        forward = await self.metadata()
        gradient = self._known_gradient_model(forward, version)
        if gradient is None:
            gradient = await self._describe(version, gradient_model(self.model))
            check_gradient_model(gradient, forward)
            self._gradient_info = gradient, forward
        return gradient

    async def _complete(
        self, structures: ArrayLike, cotangent: ArrayLike | None, conditions: Mapping[str, ConditionValue]
    ) -> Call:
        """A call with its answers, all from one version of the model."""
        call = await asyncio.to_thread(self._call, structures, cotangent, conditions, await self.metadata())
        try:
            if cotangent is not None:
                call.complete((await self._check_gradient_model()).conditions)
            await self._infer(call, range(len(call)))
            newest, stale = call.stale()
            await self._infer(call, stale, newest)
            if cotangent is not None:
                await self._check_gradient_model(call.version)
        except (ProtocolError, ServerError):
            self._info = None  # a new version may differ: the next call asks for its description
            raise
        return call

    async def _infer(self, call: Call, which: Sequence[int], version: str = "") -> None:
        """Send some requests of a call, at most `concurrency` at a time."""
        todo = iter(which)

        async def infer() -> None:
            for n in todo:
                async with self._line().gate:
                    request = await asyncio.to_thread(call.request, n, version)
                    self._count(request)
                    bar.update(await asyncio.to_thread(call.write, n, await self._send(request)))

        with self._bar(call) as bar:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._concurrency, len(which))):
                        group.create_task(infer())
            except ExceptionGroup as errors:
                first = errors.exceptions[0]
                raise first from first.__cause__

    async def _ask(self, request: Request) -> Reply:
        """Send a question."""
        async with self._line().gate:
            return await self._send(request)

    async def _send(self, request: Request) -> Reply:
        """Send a request until it is answered or all attempts have failed; the gate is open."""
        attempt, began = 0, time.monotonic()
        while True:
            try:
                reply = await self._line().transport.send(request)
            except (ServerBusy, ServerUnreachable) as error:
                await asyncio.sleep(self._pause(attempt, time.monotonic() - began, error))
            else:
                self._answered()
                return reply
            attempt += 1
