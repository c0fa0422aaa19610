"""Sources of spectra: what a remote surrogate, the solver and any other source have in common, and how they are found.

A distribution offers a source by an entry point of the group `metaspec.sources`, whose value is a function that returns a
`Source`. So the client runs on the solver, and neither imports the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract import html
from metaspec_contract.conditions import Condition
from metaspec_contract.process import Process
from metaspec_contract.spectra import MERGED_GREENS, Spectra, label

GROUP = "metaspec.sources"
"""Entry point group of the sources."""

_DISTRIBUTIONS = {"solver": "metaspec-lab"}  # name of a source: our distribution that registers it

_CHUNK = 256  # cotangents checked at a time, which bounds the size of intermediate arrays

ObjectiveFunction = Callable[[Spectra], tuple[ArrayLike, ArrayLike]]
"""From spectra of N structures to N values and N derivatives with respect to the spectra (the cotangent).

The n-th value and derivative may depend on the n-th spectrum only, and on n. An instance of `metaspec.objectives.Objective` is
one.
"""


class SourceError(Exception):
    """A source could not compute: its server, or a process of its own, failed."""


class InvalidCotangent(ValueError):
    """An array that is not a cotangent. The message states what was expected and what came."""


@dataclass(frozen=True, repr=False)
class SourceInfo:
    """Description of a source.

    Attributes:
        name: name of the model or solver.
        version: its version.
        process: device whose spectra it computes.
        wavelengths_nm: wavelengths of the spectra in nm, ascending; those of the process.
        channels: names of the channels.
        merged_greens: whether G1 and G2 both hold the mean of the two.
        simulated: whether the spectra are simulated by a solver; otherwise, a model predicts them.
        conditions: what it takes beside the structures, as keyword arguments; see `Source`.
    """

    name: str
    version: str
    process: Process
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...]
    merged_greens: bool
    simulated: bool = field(default=False, kw_only=True)
    conditions: tuple[Condition, ...] = field(default=(), kw_only=True)

    @property
    def label(self) -> str:
        """Name and version in words."""
        return label(self.name, self.version, self.simulated)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of a structure."""
        return self.process.structure_shape

    @property
    def spectra_shape(self) -> tuple[int, int]:
        """Numbers of channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(value for _, value in self._entries())}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.facts(self.label, self._entries()[1:])

    def _entries(self) -> list[tuple[str, str]]:
        """Names and values of a short description."""
        process, wavelengths = self.process, self.wavelengths_nm
        device = f"{process.solid.name} on {process.substrate.name}, period {process.period_um:g} um"
        entries = [
            ("name", self.label),
            ("channels", "/".join(self.channels) + (f" ({MERGED_GREENS})" if self.merged_greens else "")),
            ("wavelengths", f"{len(wavelengths)} wavelengths from {wavelengths[0]:g} to {wavelengths[-1]:g} nm"),
            ("structures", f"{self.pixels[0]} x {self.pixels[1]} pixels"),
            ("device", f"{device}, thickness {process.thickness_um:g} um, detectors {process.distance_um:g} um below"),
        ]
        return entries + [("conditions", "; ".join(map(str, self.conditions)))] * bool(self.conditions)


class Gradients(NamedTuple):
    """The gradient of sum(cotangent * spectra) with respect to everything that a source takes.

    Attributes:
        structure: with respect to the density of every pixel, float32 (N, y, x), or (N, K, y, x) for K cotangents of each
            structure.
        conditions: with respect to each condition, by name: float32 (N,) or (N, K); for a vector, one more axis.
    """

    structure: NDArray[np.float32]
    conditions: dict[str, NDArray[np.float32]]


class _Evaluation(NamedTuple):
    value: NDArray[Any]
    gradient: NDArray[np.float32]
    spectra: Spectra


class Evaluation(_Evaluation):
    """An objective and its gradient at N structures: `value, gradient, spectra = evaluation`.

    Attributes:
        value: values of the objective, (N,).
        gradient: gradient with respect to the density of every pixel, float32 (N, y, x).
        spectra: spectra of the structures.
        conditions: gradient with respect to each condition, by name, as in `Gradients`; none by default.
    """

    conditions: dict[str, NDArray[np.float32]]

    def __new__(
        cls,
        value: NDArray[Any],
        gradient: NDArray[np.float32],
        spectra: Spectra,
        conditions: dict[str, NDArray[np.float32]] | None = None,
    ) -> Self:
        """The three values as a tuple, which holds the gradients of conditions as well."""
        evaluation = super().__new__(cls, value, gradient, spectra)
        evaluation.conditions = conditions or {}
        return evaluation

    def __repr__(self) -> str:
        value = np.array2string(self.value, precision=4, threshold=8, edgeitems=2)
        return f"<Evaluation: value {value}, gradient {self.gradient.shape}, {self.spectra!r}>"


class Source(Protocol):
    """A source of spectra and their gradients.

    A subclass defines `predict`, `gradient` and `metadata`, and inherits the rest.

    A source whose description names conditions takes each as a keyword argument of `predict`, `gradient` and
    `predict_and_gradient`: a number, an array of one for each structure, or None for the default
    (`conditions.check_conditions`, which raises `InvalidCondition` before anything is computed). It has a further method
    `gradients(structures, cotangent, **conditions)`, which returns `Gradients`: the gradient with respect to the structure and
    to each condition. The latter is also in the `conditions` of an `Evaluation`.
    """

    @abstractmethod
    def predict(self, structures: ArrayLike) -> Spectra:
        """Spectra of structures.

        Args:
            structures: (y, x), (N, y, x) or (N, 1, y, x), of the pixels of the process; 1 is solid, 0 is void, a density
                between mixes their permittivities linearly.

        Raises:
            metaspec_contract.InvalidStructure: raised before anything is computed.
            SourceError: the source failed.
        """
        ...

    @abstractmethod
    def gradient(self, structures: ArrayLike, cotangent: ArrayLike) -> NDArray[np.float32]:
        """The gradient of sum(cotangent * spectra) with respect to the density of every pixel.

        Args:
            structures: structures as for `predict`.
            cotangent: (N, channels, wavelengths), or (channels, wavelengths) for all structures. The derivative of an
                objective with respect to the spectra yields the objective's gradient. (N, K, channels, wavelengths) for K
                objectives of each structure.

        Returns:
            float32 (N, y, x), or (N, K, y, x) for K cotangents of each structure.

        Raises:
            metaspec_contract.InvalidStructure: raised before anything is computed.
            InvalidCotangent: raised before anything is computed.
            SourceError: the source failed.
        """
        ...

    @abstractmethod
    def metadata(self) -> SourceInfo:
        """Description of the source."""
        ...

    def predict_and_gradient(self, structures: ArrayLike, objective: ObjectiveFunction) -> Evaluation:
        """An objective of the spectra, and its gradient.

        Args:
            structures: structures as for `predict`.
            objective: function from `Spectra` of N structures to N values and N derivatives with respect to the spectra,
                (N, channels, wavelengths); see `ObjectiveFunction`.

        Raises:
            metaspec_contract.InvalidStructure: raised before anything is computed.
            InvalidCotangent: the objective's derivatives have another shape or are not finite.
            SourceError: the source failed.
        """
        spectra = self.predict(structures)
        value, cotangent = value_and_cotangent(objective, spectra)
        return Evaluation(np.asarray(value), self.gradient(structures, cotangent), spectra)

    def close(self) -> None:
        """Release what the source holds: connections, processes."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def value_and_cotangent(objective: ObjectiveFunction, spectra: Spectra) -> tuple[ArrayLike, ArrayLike]:
    """What an objective returns: its values, and its derivatives with respect to the spectra.

    Raises:
        TypeError: it returns something else, such as values alone.
    """
    found: Any = objective(spectra)
    if not isinstance(found, tuple | list) or len(found) != 2:
        shape = f" of shape {np.shape(found)}" if isinstance(found, np.ndarray) else ""
        raise TypeError(
            "an objective must return N values and N derivatives with respect to the spectra, "
            f"`return value, cotangent`, got {type(found).__name__}{shape}"
        )
    value, cotangent = found
    return value, cotangent


def source_names() -> list[str]:
    """Names of the sources that `find_source` knows: those installed, and those that our other distributions register."""
    return sorted({*_installed(), *_DISTRIBUTIONS})


def find_source(name: str) -> Callable[..., Source]:
    """The function that makes the sources of a name; its arguments are those of the source.

    Args:
        name: name of the entry point, such as "solver".

    Raises:
        ImportError: the source is not installed, or cannot be imported; the distribution to install is named.
        ValueError: no source has this name; the message lists the names.
    """
    point = _installed().get(name)
    if point is not None:
        make: Callable[..., Source] = point.load()
        return make
    if name in _DISTRIBUTIONS:
        distribution = _DISTRIBUTIONS[name]
        raise ImportError(f"source {name} needs {distribution}: pip install {distribution}", name=distribution)
    raise ValueError(f"source must be one of {', '.join(source_names())}, got {name!r}")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def check_cotangent(cotangent: ArrayLike, count: int, spectra_shape: tuple[int, int]) -> NDArray[Any]:
    """Cotangents as (N, channels, wavelengths) or (N, K, channels, wavelengths), dtype unchanged, not copied.

    Args:
        cotangent: array of one of these shapes, or (channels, wavelengths) for all structures.
        count: N, the number of structures.
        spectra_shape: numbers of channels and wavelengths.

    Raises:
        InvalidCotangent: another shape, masked values, or values that are not finite numbers as float32.
    """
    if np.ma.is_masked(cotangent):
        raise InvalidCotangent("cotangent must be given everywhere, got a masked array: use its method filled")
    try:
        array = np.asarray(cotangent)
    except ValueError as error:
        raise InvalidCotangent(f"cotangent must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise InvalidCotangent(f"cotangent must be numbers, got {array.dtype}")
    lead = array.shape[:-2]
    if array.shape[-2:] != spectra_shape or not (lead == () or (lead[0] == count and len(lead) <= 2)):
        shape = ", ".join(map(str, spectra_shape))
        raise InvalidCotangent(
            f"cotangent must be ({shape}), ({count}, {shape}) or ({count}, K, {shape}), got {array.shape}"
        )
    stacked = array if lead else array[None]
    for start in range(0, len(stacked), _CHUNK):
        with np.errstate(over="ignore"):  # what overflows float32 becomes inf and is refused
            chunk = stacked[start : start + _CHUNK].astype(np.float32, copy=False)
        if not np.isfinite(chunk).all():
            raise InvalidCotangent(f"cotangent must be finite, got {chunk[~np.isfinite(chunk)][0]}")
    return array if lead else np.broadcast_to(array, (count, *spectra_shape))
