"""Results of a run: progress, history, the best binary structure of each row, and their form in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from html import escape
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from metaspec.optimise.base import Array
from metaspec_contract import html
from metaspec_contract.detectors import COLOUR_NAMES
from metaspec_contract.source import SourceInfo
from metaspec_contract.spectra import Spectra
from metaspec_contract.structures import pack, packed_bytes

_SHOWN = 6  # designs in the table of a notebook


@dataclass(frozen=True)
class Progress:
    """Progress of a run, for a callback.

    Attributes:
        step: number of completed steps.
        steps: total number of steps.
        beta: steepness of the projection in the last step.
        value: values of the objective in the last step, (M,), without the penalty of a minimum feature size.
        best: value of the best binary structure of each row so far, (M,).
        structure: best binary structure of each row so far, uint8 (M, y, x).
        conditions: values of its conditions by name, (M,), where rows have their own.
    """

    step: int
    steps: int
    beta: float
    value: Array
    best: Array
    structure: Array
    conditions: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class History:
    """Values of the objective over the steps.

    Attributes:
        beta: steepness of the projection, (steps,); infinite for binary structures.
        value: values of the objective, (steps, M), without the penalty of a minimum feature size.
        checked: steps in which the thresholded structures were evaluated, (checks,).
        binary_value: values of the thresholded structures, (checks, M).
        conditions: values of conditions by name, (steps, M), where rows have their own.
    """

    beta: Array
    value: Array
    checked: Array
    binary_value: Array
    conditions: dict[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps, rows = self.value.shape
        return f"<History: {steps} steps of {rows} starts, {len(self.checked)} evaluations of binary structures>"


@dataclass(frozen=True, repr=False)
class Result:
    """The best binary structure of each row of the batch, best first.

    Attributes:
        structure: binary structures, uint8 (M, y, x), 1 is solid.
        value: values of the objective, (M,).
        spectra: spectra of `structure`.
        latent: latents that `structure` was thresholded from, before repair and refinement if any, float32 (M, y, x).
        row: row of the batch that each comes from, which is the number of the start, (M,).
        found: step in which each was found, counted from 0, (M,).
        history: history of the run.
        trajectory: thresholded structures of all checks, in order, uint8 (checks * M, y, x).
        structures_evaluated: number of structures whose spectra were computed.
        server_calls: number of calls of the source.
        wall_s: wall time in seconds, without interruptions.
        conditions: values of conditions by name, (M,), where designs have their own.
    """

    structure: Array
    value: Array
    spectra: Spectra
    latent: Array
    row: Array
    found: Array
    history: History
    trajectory: Array
    structures_evaluated: int
    server_calls: int
    wall_s: float
    conditions: dict[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Result: {self._summary}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the first designs."""
        first = self.spectra[:_SHOWN]
        efficiencies = first.colour_efficiency(first.colours)
        rows = [
            [
                str(n),
                html.structure_picture(self.structure[n], size=64),
                f"{self.value[n]:.4f}",
                *(f"{value:.3f}" for value in each),
                *(f"{one[n]:.4g}" for one in self.conditions.values()),
                str(self.row[n]),
                str(self.found[n] + 1),  # as in figures and progress, counted from 1
            ]
            for n, each in enumerate(efficiencies)
        ]
        if len(self.value) > _SHOWN:
            rows.append([f"... and {len(self.value) - _SHOWN} more"])
        colours = (COLOUR_NAMES[colour] for colour in first.colours)
        head = ["design", "structure", "objective", *colours, *self.conditions, "start", "found in step"]
        return f"<div>{escape(self._summary)}{html.table(rows, head)}</div>"

    @property
    def _summary(self) -> str:
        count = "1 design" if len(self.value) == 1 else f"{len(self.value)} designs"
        return f"{count}, best {self.value[0]:.4f}, {len(self.history.value)} steps, {self.spectra.label}"

    def judged_again(self, structure: Array, value: ArrayLike, spectra: Spectra) -> Result:
        """The result with other structures, or values and spectra by another source, best first.

        Args:
            structure: binary structures in place of the rows', (M, y, x).
            value: their values of the objective, (M,).
            spectra: their spectra.
        """
        values = np.asarray(value, np.float64)
        order = np.argsort(-values, kind="stable")
        rows = {name: getattr(self, name)[order] for name in ("latent", "row", "found")}
        rows["conditions"] = {name: one[order] for name, one in self.conditions.items()}
        return replace(self, structure=structure[order], value=values[order], spectra=spectra[order], **rows)


@dataclass
class Record:
    """A run so far, as arrays of fixed shapes, which are stored in the checkpoint.

    Attributes:
        value: values of the objective, (steps, M), without the penalty of a minimum feature size.
        binary_value: values of the thresholded structures, (checks, M).
        bits: thresholded structures as packed bits, uint8 (checks, M, bytes).
        best: best binary value of each row, (M,).
        found: step in which it was found, (M,).
        structure: its structure, uint8 (M, y, x).
        latent: its latent, float32 (M, y, x).
        spectra: its spectra, float32 (M, channels, wavelengths).
        condition: values of its conditions, (M, conditions), where rows have their own.
        conditions: values of conditions in each step, (steps, M, conditions).
        version: version of the model or solver that these spectra are from, ().
    """

    value: Array
    binary_value: Array
    bits: Array
    best: Array
    found: Array
    structure: Array
    latent: Array
    spectra: Array
    condition: Array
    conditions: Array
    version: Array

    @classmethod
    def empty(cls, steps: int, checks: int, shape: tuple[int, ...], info: SourceInfo, conditions: int) -> Self:
        """The record of a run that has not started.

        Args:
            steps: number of steps of the run.
            checks: number of evaluations of the thresholded structures.
            shape: shape of the latents, (M, y, x).
            info: description of the source.
            conditions: number of conditions of which each row has its own value.
        """
        rows = shape[0]
        return cls(
            value=np.full((steps, rows), np.nan),
            binary_value=np.full((checks, rows), np.nan),
            bits=np.zeros((checks, rows, packed_bytes((shape[1], shape[2]))), np.uint8),
            best=np.full(rows, -np.inf),
            found=np.zeros(rows, np.int64),
            structure=np.zeros(shape, np.uint8),
            latent=np.zeros(shape, np.float32),
            spectra=np.zeros((rows, *info.spectra_shape), np.float32),
            condition=np.full((rows, conditions), np.nan),
            conditions=np.full((steps, rows, conditions), np.nan),
            version=np.array(info.version, "U64"),
        )

    def check(
        self,
        step: int,
        number: int,
        *,
        latent: Array,
        structure: Array,
        value: Array,
        spectra: Spectra,
        conditions: Array,
    ) -> None:
        """Record an evaluation of the thresholded structures, and keep those that improve on their row's best.

        Values of different versions of the model are not compared: a new version starts from these structures.

        Args:
            step: step of the run.
            number: number of the evaluation.
            latent: latents of the step, (M, y, x).
            structure: thresholded structures, (M, y, x).
            value: their values, (M,).
            spectra: their spectra.
            conditions: values of their conditions, (M, conditions).
        """
        if spectra.version != self.version:
            self.version[...] = spectra.version
            self.best[:] = -np.inf
        self.binary_value[number] = value
        self.bits[number] = pack(structure)
        better = value > self.best
        self.best[better], self.found[better] = value[better], step
        self.structure[better], self.latent[better] = structure[better], latent[better]
        self.spectra[better], self.condition[better] = spectra.values[better], conditions[better]

    def arrays(self) -> dict[str, Array]:
        """Arrays for the checkpoint."""
        return {f"record.{field.name}": getattr(self, field.name) for field in fields(self)}

    def restore(self, arrays: dict[str, Array]) -> None:
        """Restore the arrays of a checkpoint."""
        for name in self.arrays():
            getattr(self, name.removeprefix("record."))[...] = arrays[name]
