"""The queue of a model that Triton servers compute: which of them is asked, and what happens when one does not answer.

Triton forms the batches, so the queue only limits the requests in flight, and chooses a Triton for each: of those that are
alive and have the model ready, the one with the fewest requests in flight, in turn. What a Triton that dies or stops has not
answered is asked of another one, which is safe: a model has no state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from metaspec_server.core.batching import MicroBatch
from metaspec_server.core.engine import Description
from metaspec_server.core.errors import (
    Closed,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    QueueFull,
    ServiceError,
)
from metaspec_server.core.priority import DEFAULT_PRIORITY, LOWEST_PRIORITY, Slots, level
from metaspec_server.core.served_model import NotYet
from metaspec_server.core.tensors import Rows, count
from metaspec_server.core.threads import off_loop
from metaspec_server.engines.fleet import PROBE_INTERVAL, Fleet, Member
from metaspec_server.engines.triton_connection import CHANNEL, GONE, encode, largest_batch, try_on
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["TritonQueue"]

log = logging.getLogger(__name__)

_JOIN_TIMEOUT = 10.0  # seconds for the trial of a model on another Triton, or on one that comes back
_PATIENCE = 5.0  # seconds for which a request waits while no Triton has the model ready
_ATTEMPTS = 4  # Tritons that are gone after a request was sent to them: it may be what kills them


class TritonQueue:
    """Sends rows to Triton servers, a few requests at a time, and joins the answers.

    Args:
        fleet: the servers.
        file: version of the model.
        about: description of the model.
        first: server that is known to have the model ready.
        max_batch: largest number of rows in a request to Triton.
        max_queue: largest number of rows in flight of each priority.
        in_flight: largest number of requests in flight.
        call_timeout: seconds for the answer to a request to Triton.
        observe: function called with every request to Triton.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        file: ModelFile,
        about: Description,
        first: Member,
        max_batch: int,
        max_queue: int,
        in_flight: int,
        call_timeout: float,
        observe: Callable[[MicroBatch], None],
    ) -> None:
        self._fleet, self._file, self._about = fleet, file, about
        self._max_batch, self._max_queue, self._call_timeout = max_batch, max_queue, call_timeout
        self._observe = observe
        self._serving = {first}  # servers that had the model ready when they were last asked
        self._began: dict[asyncio.Future[Any], tuple[Member, float]] = {}  # calls in flight
        self._refused: dict[Member, str] = {}  # why the trial failed
        self._clients: dict[Member, tuple[int, Any]] = {}  # with the returns of the server before it was made
        self._waiting = [0] * LOWEST_PRIORITY
        self._turn, self._closing = 0, False
        self._slots = Slots(in_flight)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def engines(self) -> int:
        """Number of Tritons that are alive and have the model ready."""
        return 0 if self._closing else len(self._usable())

    @property
    def missing(self) -> int:
        """Number of Tritons that are alive and did not have the model ready when they were last asked."""
        if self._closing:
            return 0
        return sum(member.alive and member not in self._serving for member in self._fleet.members)

    @property
    def busy(self) -> dict[str, float]:
        """Seconds for which the oldest request to each Triton has been in flight, by its address; 0 if there is none."""
        now, began = time.perf_counter(), list(self._began.values())
        return {
            member.address: max((now - since for other, since in began if other is member), default=0.0)
            for member in self._fleet.members
        }

    @property
    def abandoned(self) -> int:
        """0: what a Triton goes on computing is not known here."""
        return 0

    @property
    def waiting(self) -> int:
        """Number of rows in flight."""
        return sum(self._waiting)

    async def submit(
        self,
        rows: Rows,
        timeout: float | None = None,
        keys: Sequence[bytes] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Rows:
        """Compute rows, as `MicroBatcher.submit` does. Keys are ignored; the priority is told to Triton, too.

        Raises:
            EngineUnavailable: no Triton has the model ready, or it was lost on several of them.
        """
        size, number = count(rows), level(priority)
        waiting = self._waiting[number]
        if self._closing:
            raise Closed
        if waiting + size > self._max_queue:
            raise QueueFull(waiting, self._max_queue, retry_after=1.0)
        self._waiting[number] += size
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(
                        self._ask(
                            {name: array[start : start + self._max_batch] for name, array in rows.items()}, priority
                        )
                    )
                    for start in range(0, size, self._max_batch)
                ]
        except TimeoutError:
            raise DeadlineExceeded(timeout) from None
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            raise error if isinstance(error, ServiceError) else EngineFailure(f"Triton: {error}") from None
        finally:
            self._waiting[number] -= size
            if not self.waiting:
                self._idle.set()
        results = [part.result() for part in parts]
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    async def close(self, timeout: float) -> None:
        """Accept no more requests, wait for the answers in flight, and close the connections."""
        self._closing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        for _, client in self._clients.values():
            await client.close()
        self._fleet.leave()

    def revive(self) -> int:
        """Ask the Tritons that are alive, but did not have the model ready, again; returns how many have. Blocks."""
        back = 0
        for member in self._fleet.members:
            if member.alive and member not in self._serving:
                try:
                    largest_batch(member, self._file)
                    try_on(member, self._file, self._about, (1,), _JOIN_TIMEOUT)
                except NotYet:
                    continue
                except RepositoryError as error:
                    if self._refused.get(member) != str(error):
                        log.error("%s", error)
                    self._refused[member] = str(error)
                else:
                    self._serving.add(member)
                    back += 1
        return back

    def _usable(self) -> list[Member]:
        return [member for member in self._fleet.members if member.alive and member in self._serving]

    async def _ask(self, rows: Rows, priority: int) -> Rows:
        arrived = time.perf_counter()
        async with self._slots.take(priority):
            started, failed = time.perf_counter(), True
            size = count(rows)
            try:
                nbytes = 4 * size * sum(spec.size for spec in self._about.inputs)
                inputs = await off_loop(nbytes, encode, rows, self._about.inputs)
                results = await self._answer(inputs, priority)
                failed = False
                return results
            finally:
                seconds = time.perf_counter() - started
                self._observe(MicroBatch(size, [started - arrived], seconds, failed))

    async def _answer(self, inputs: list[Any], priority: int) -> Rows:
        """The answer of a Triton; of another one, if the first is lost."""
        failed = 0
        while True:
            member = await self._choose()
            try:
                answer = await self._call(member, inputs, priority)
            except _Silent:
                continue
            except _Gone as error:
                failed += 1
                if failed == _ATTEMPTS:
                    raise EngineUnavailable(f"Triton at {member.address}: {error}") from None
            else:
                return {spec.name: answer.as_numpy(spec.name) for spec in self._about.outputs}

    async def _choose(self) -> Member:
        """The Triton with the fewest calls in flight, in turn; waits a moment for one."""
        deadline = time.monotonic() + _PATIENCE
        while not (usable := self._usable()):
            if time.monotonic() > deadline:
                addresses = ",".join(member.address for member in self._fleet.members)
                model = f"{self._file.name} version {self._file.version}"
                raise EngineUnavailable(f"Triton at {addresses} does not serve {model} at the moment")
            await asyncio.sleep(PROBE_INTERVAL / 5)
        self._turn = (self._turn + 1) % len(usable)
        return min(usable[self._turn :] + usable[: self._turn], key=lambda member: member.in_flight)

    async def _call(self, member: Member, inputs: list[Any], priority: int) -> Any:
        """The answer of one Triton.

        Raises:
            _Silent: the Triton does not answer probes any more, and there is another one.
            _Gone: the Triton is dead, shuts down, or has the model no longer.
        """
        client = self._client(member)
        call = asyncio.ensure_future(
            client.infer(
                self._file.name,
                inputs,
                model_version=str(self._file.version),
                priority=0 if priority == DEFAULT_PRIORITY else priority,  # 0 is the default there, too
                client_timeout=self._call_timeout,
            )
        )
        self._began[call] = member, time.perf_counter()
        member.in_flight += 1
        try:
            while not call.done():
                await asyncio.wait({call}, timeout=PROBE_INTERVAL)
                if not (call.done() or member.alive) and self._usable():
                    raise _Silent
            return call.result()
        except InferenceServerException as error:
            status = str(error.status())
            if status in GONE:
                self._serving.discard(member)
                if self._clients.get(member, (0, None))[1] is client:
                    del self._clients[member]  # a broken connection keeps failing for seconds after Triton is back
                raise _Gone(error.message()) from None
            if status == "StatusCode.DEADLINE_EXCEEDED":
                self._serving.discard(member)  # until it computes the trial
                raise DeadlineExceeded(self._call_timeout) from None
            raise EngineFailure(f"Triton at {member.address}: {error.message()}") from None
        finally:
            call.cancel()
            del self._began[call]
            member.in_flight -= 1

    def _client(self, member: Member) -> Any:
        """A connection, made in the event loop that uses it."""
        returns, client = self._clients.get(member, (0, None))
        if client is None or returns != member.returns:
            for gone in [one for one in self._clients if one.removed.is_set() and not one.in_flight]:
                del self._clients[gone]
                self._serving.discard(gone)
            client = tritonclient.grpc.aio.InferenceServerClient(member.address, channel_args=CHANNEL)
            self._clients[member] = member.returns, client
        return client


class _Silent(Exception):
    """A Triton has not answered a call yet, nor the last probe."""


class _Gone(Exception):
    """A Triton does not answer a call, for a reason that is not in the call."""
