"""A served model: one version of a model, loaded and warm, with the queue that computes it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from metaspec_contract.model import STRUCTURE, ModelMismatch, TensorSpec, check_same_device, is_gradient_model
from metaspec_server.core.engine import Description
from metaspec_server.core.priority import DEFAULT_PRIORITY
from metaspec_server.core.statistics import Statistics
from metaspec_server.core.tensors import Rows
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["Load", "NotYet", "Queue", "ServedModel"]


class Queue(Protocol):
    """The queue of a model, and its engines behind it."""

    @property
    def engines(self) -> int:
        """Number of engines that take work."""
        ...

    @property
    def missing(self) -> int:
        """Number of engines that do not take work and should be revived."""
        ...

    @property
    def busy(self) -> dict[str, float]:
        """Seconds for which each engine has been computing, by its name; 0 for one that is idle."""
        ...

    @property
    def abandoned(self) -> int:
        """Number of engines that were given up and go on computing."""
        ...

    @property
    def waiting(self) -> int:
        """Number of waiting rows."""
        ...

    async def submit(
        self,
        rows: Rows,
        timeout: float | None = None,
        keys: Sequence[bytes] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Rows:
        """Compute rows; see `MicroBatcher.submit`."""
        ...

    async def close(self, timeout: float) -> None:
        """Finish accepted work and stop."""
        ...


@dataclass(eq=False)
class ServedModel:
    """A loaded, warm version of a model.

    Attributes:
        file: file of the version.
        about: its tensors and metadata.
        queue: queue that computes it.
        wanted: number of engines that have to take work for it to be ready.
        revive: function that replaces engines which are dead or overdue, blocking, and returns the number of new ones.
        statistics: statistics of its requests and micro-batches.
        users: number of requests that are using it.
        idle: set when the last user is done.
        trouble: reason why engines could not be replaced the last time; empty if they were.
        number: unique number; a version whose file is replaced gets another one.
    """

    file: ModelFile
    about: Description
    queue: Queue
    wanted: int
    revive: Callable[[], int]
    statistics: Statistics = field(default_factory=Statistics)
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: str = ""
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.file.name

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.file.version

    @property
    def structure(self) -> TensorSpec:
        """The input that is the structure."""
        return next(spec for spec in self.about.inputs if spec.name == STRUCTURE)

    @property
    def ready(self) -> bool:
        """Whether enough of its engines take work: none of them is dead or overdue."""
        return self.queue.engines >= self.wanted

    def check_against(self, other: ServedModel) -> None:
        """Check that it predicts the device and the channels of another version, or of its forward or gradient model.

        Raises:
            RepositoryError: it does not; the file and both sides are named.
        """
        if other.name != self.name:
            kind = "gradient" if is_gradient_model(other.name) else "forward"
            theirs = f"{other.name} version {other.version}, its {kind} model,"
        else:
            theirs = (
                f"version {other.version}, which {'it would replace' if other.version < self.version else 'is served'},"
            )
        ours = f"{self.name} version {self.version}"
        try:
            check_same_device(self.about.metadata, other.about.metadata, ours, theirs)
        except ModelMismatch as error:
            raise RepositoryError(self.file.path, str(error)) from None


class NotYet(RepositoryError):
    """A version cannot be served yet, for a reason that is not in its file: loading it is tried again."""


Load: TypeAlias = Callable[[ModelFile], ServedModel]
"""Makes a model ready to compute; blocks. Raises `RepositoryError` if it cannot be served."""
