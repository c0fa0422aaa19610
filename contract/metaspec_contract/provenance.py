"""Provenance: what a network was trained on, passed from the data set to the checkpoint, the model and the client."""

from __future__ import annotations

from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import CompleteProcess, Process


class DataSource(BaseModel):
    """One data set that a network was trained on.

    Attributes:
        name: name of the data set's folder.
        schema_version: version of the data set's layout on disk.
        structures: number of training structures.
        solver: solver of the labels: name, cells per period, recording time.
        made_with: program and version that wrote the data set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    schema_version: int
    structures: int = Field(ge=0)
    solver: dict[str, Any]
    made_with: str


class Provenance(BaseModel):
    """What a network was trained on.

    Attributes:
        process: device of all data sets; its wavelengths are those of the spectra.
        channels: channels of the labels, in order.
        merged_greens: whether only the mean of G1 and G2 was taught, so that both channels hold it.
        preset: name of the training preset, "" if there was none.
        data: data sets; validation uses the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: CompleteProcess
    channels: tuple[str, ...] = CHANNELS
    merged_greens: bool = False
    preset: str = ""
    data: tuple[DataSource, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_channels(self) -> Self:
        if self.channels != CHANNELS:
            raise ValueError(f"channels must be {', '.join(CHANNELS)}, got {', '.join(self.channels)}")
        return self

    def require_same_device(self, other: Provenance, ours: str, theirs: str) -> None:
        """Refuse another process, or greens that are merged on one side only.

        Args:
            other: provenance to compare with.
            ours: name of this one, for the message.
            theirs: name of the other one, for the message.

        Raises:
            ValueError: they differ; the message names both sides.
        """
        require_same_device(self, other, ours, theirs)


class Labelled(Protocol):
    """What says of which device it is, and whether its greens are merged: a provenance, or a model's metadata."""

    @property
    def process(self) -> Process:
        """Device."""

    @property
    def merged_greens(self) -> bool:
        """Whether only the mean of G1 and G2 is known."""


def require_same_device(one: Labelled, other: Labelled, ours: str, theirs: str) -> None:
    """Refuse another process, or greens that are merged on one side only.

    Args:
        one: provenance or metadata.
        other: provenance or metadata to compare with.
        ours: name of `one`, for the message.
        theirs: name of `other`, for the message.

    Raises:
        ValueError: they differ; the message names both sides.
    """
    if difference := one.process.difference(other.process):
        raise ValueError(f"{ours} and {theirs} are of different processes: {difference}")
    if one.merged_greens != other.merged_greens:
        merged, apart = (ours, theirs) if one.merged_greens else (theirs, ours)
        raise ValueError(f"{merged} knows only the mean of G1 and G2, {apart} knows each of them")
