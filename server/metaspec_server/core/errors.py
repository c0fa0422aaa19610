"""Errors of the service. `metaspec_server.http.problems` maps them to HTTP statuses."""

from __future__ import annotations

__all__ = [
    "Closed",
    "DeadlineExceeded",
    "EngineFailure",
    "EngineUnavailable",
    "InvalidSharedMemory",
    "MemoryFull",
    "OutOfRange",
    "QueueFull",
    "ServiceError",
    "StillLoading",
    "TooManyStructures",
    "TooMuchMemory",
    "UnknownModel",
    "UnknownRegion",
]


class ServiceError(Exception):
    """A request that the service cannot answer.

    Attributes:
        retry_after: seconds until another attempt may succeed; None where it would fail again.
    """

    retry_after: float | None = None


class UnknownModel(ServiceError):
    """There is no such model or version. The message lists those that exist."""


class UnknownRegion(ServiceError):
    """There is no such region of shared memory. The message lists those that exist."""


class InvalidSharedMemory(ServiceError):
    """Shared memory that cannot be registered, or has been shortened, removed or replaced since."""


class StillLoading(ServiceError):
    """The server has started, and has not loaded the model yet.

    Args:
        name: name of the model.
        loaded: number of models that are loaded.
        count: number of models that will be.
    """

    retry_after = 2.0

    def __init__(self, name: str, loaded: int, count: int) -> None:
        super().__init__(f"model {name!r} is not loaded yet, {loaded} of {count} models are: try again later")


class TooManyStructures(ServiceError):
    """A request has more structures than the service accepts at once.

    Args:
        size: their number, or a description of it.
        limit: number that is accepted.
    """

    def __init__(self, size: int | str, limit: int) -> None:
        super().__init__(f"at most {limit} structures in one request, got {size}: send several requests")


class QueueFull(ServiceError):
    """Too many structures are waiting."""

    def __init__(self, waiting: int, limit: int, retry_after: float) -> None:
        super().__init__(f"the queue is full: {waiting} of {limit} structures wait; try again later")
        self.retry_after = retry_after


class TooMuchMemory(ServiceError):
    """A request and its answer need more memory than all requests may have."""

    def __init__(self, nbytes: int, limit: int) -> None:
        super().__init__(
            f"the request and its answer need {nbytes / 2**20:.0f} MiB of memory, the limit for all together is "
            f"{limit / 2**20:.0f} MiB: send fewer structures at once, or ask for binary answers instead of JSON"
        )


class MemoryFull(ServiceError):
    """The requests in flight hold all memory that they may have together."""

    retry_after = 2.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"the requests in flight hold all {limit / 2**20:.0f} MiB of memory; try again later")


class OutOfRange(ServiceError):
    """A result does not fit into the dtype that was asked for, because the cotangent is too large or too small."""


class DeadlineExceeded(ServiceError):
    """The request was not finished in time."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__(f"not finished within {seconds:g} s" if seconds is not None else "not finished in time")


class EngineFailure(ServiceError):
    """The engine raised an exception while it computed a micro-batch with structures of this request."""


class EngineUnavailable(ServiceError):
    """The engine cannot be reached at the moment."""

    retry_after = 2.0


class Closed(ServiceError):
    """The service is shutting down and accepts no more requests."""

    retry_after = 5.0

    def __init__(self) -> None:
        super().__init__("the server is shutting down")
