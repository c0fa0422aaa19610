"""ResumableLoader: batches of packed samples that go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from metaspec_training.data.packed import Packed


class ResumableLoader(DataLoader[Packed]):
    """A DataLoader whose state, which Lightning stores in checkpoints, is the number of batches that were served.

    Args:
        *arguments: arguments of `DataLoader`.
        epoch: epoch of the batches; states of others are ignored.
        **settings: settings of `DataLoader`.
    """

    def __init__(self, *arguments: Any, epoch: int = 0, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.epoch = epoch
        self._served = self._skipped = 0

    def __iter__(self) -> Iterator[Packed]:  # type: ignore[override]
        first, self._skipped = self._skipped, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self._served = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The batches served of this epoch."""
        return {"epoch": self.epoch, "served": self._served}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start after the batches that were served."""
        if state_dict["epoch"] == self.epoch:
            self._served = self._skipped = state_dict["served"]
