"""Statistics of a served version, as Triton's extension `statistics` defines them: requests, structures, micro-batches, times.

A request that takes several micro-batches counts once in `queue` and in `compute_*`, with the time of all of them, as does
each request of a micro-batch that several share.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from metaspec_server.core.batching import MicroBatch

__all__ = ["BatchTimes", "Counts", "Duration", "RequestTimes", "Statistics"]


@dataclass
class Duration:
    """Number of events and their total duration.

    Attributes:
        count: number of events.
        ns: total duration in nanoseconds.
    """

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add events that took `seconds` together."""
        self.count += count
        self.ns += round(1e9 * seconds)


@dataclass
class RequestTimes:
    """Durations of requests.

    Attributes:
        success: requests that were answered.
        fail: requests that failed, timed out or were cancelled.
        queue: wait of requests for an engine; 0 for those answered from the result cache alone.
        compute_input: copying of structures into the inputs of an engine.
        compute_infer: computation.
        compute_output: copying of results out of an engine.
        cache_hit: requests answered from the result cache alone.
        cache_miss: requests with structures that were not in the cache.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


@dataclass
class BatchTimes:
    """Durations of micro-batches of one size.

    Attributes:
        compute_input: copying of structures into the inputs of an engine.
        compute_infer: computation.
        compute_output: copying of results out of an engine.
    """

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass
class Counts:
    """What is counted of a version.

    Attributes:
        last_inference: time of the last request in milliseconds since 1970; 0 if there was none.
        inferences: number of structures that the model computed; what the cache answers, and equal structures, are none.
        executions: number of micro-batches.
        requests: durations of requests.
        batches: durations of micro-batches by the number of structures that the model computed.
    """

    last_inference: int = 0
    inferences: int = 0
    executions: int = 0
    requests: RequestTimes = field(default_factory=RequestTimes)
    batches: dict[int, BatchTimes] = field(default_factory=dict)


class Statistics:
    """Counts of one version since it was loaded. Thread-safe: engines and the event loop add to them."""

    def __init__(self) -> None:
        self._counts, self._lock = Counts(), threading.Lock()

    def counts(self) -> Counts:
        """A copy of the counts."""
        with self._lock:
            return copy.deepcopy(self._counts)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Time a request. It has failed if the block raises an exception, cancellation included."""
        started = time.perf_counter()
        outcome = self._counts.requests.fail
        try:
            yield
            outcome = self._counts.requests.success
        finally:
            with self._lock:
                outcome.add(time.perf_counter() - started)
                self._counts.last_inference = time.time_ns() // 10**6

    def looked_up(self, missing: int, seconds: float) -> None:
        """Count a request that was looked up in the cache.

        Args:
            missing: number of its different structures that were not in it.
            seconds: time to look them up in seconds.
        """
        times = self._counts.requests
        with self._lock:
            (times.cache_miss if missing else times.cache_hit).add(seconds)
            if not missing:
                times.queue.add(0.0)  # as Triton counts it: it did not wait

    def beside(self, observe: Callable[[MicroBatch], None]) -> Callable[[MicroBatch], None]:
        """Function that counts a micro-batch and calls another observer, too."""

        def both(batch: MicroBatch) -> None:
            self._executed(batch)
            observe(batch)

        return both

    def _executed(self, batch: MicroBatch) -> None:
        if batch.failed:
            return
        infer = batch.seconds - batch.input_seconds - batch.output_seconds
        parts = {"compute_input": batch.input_seconds, "compute_infer": infer, "compute_output": batch.output_seconds}
        with self._lock:
            self._counts.inferences += batch.computed
            self._counts.executions += 1
            self._counts.requests.queue.add(sum(batch.waited), len(batch.waited))
            size = self._counts.batches.setdefault(batch.computed, BatchTimes())
            for name, seconds in parts.items():
                getattr(self._counts.requests, name).add(batch.requests * seconds, len(batch.waited))
                getattr(size, name).add(seconds)
