"""`Spectra`: what a source of spectra returns."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from metaspec_contract import figures_of_merit, html
from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES, COLOURS, DETECTOR_LINES, channel_index

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

    from metaspec_contract.source import SourceInfo

MERGED_GREENS = "G1 and G2: only their mean is known"
"""Note on spectra of a model whose training data held the mean of G1 and G2 in both channels."""

_SHOWN = 6  # structures in the table of a notebook


@dataclass(frozen=True, eq=False)
class Spectra:
    """Efficiencies of N structures: power through a detector / power incident on the cell.

    Attributes:
        values: efficiencies, float32 (N, channels, wavelengths).
        wavelengths_nm: wavelengths in nm, ascending, (wavelengths,).
        channels: names of the channels.
        model: name of the model that predicted them, or of the solver.
        version: version of that model or solver.
        merged_greens: whether G1 and G2 both hold the mean of the two, because the model was taught nothing else.
        simulated: whether a solver simulated them; otherwise, a model predicted them.
    """

    values: NDArray[np.float32]
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...] = CHANNELS
    model: str = ""
    version: str = ""
    merged_greens: bool = False
    simulated: bool = False

    @classmethod
    def of_model(cls, values: NDArray[np.float32], info: SourceInfo, version: str = "") -> Self:
        """Spectra that a source has computed.

        Args:
            values: efficiencies, float32 (N, channels, wavelengths).
            info: description of the source.
            version: version that computed them; the described one by default.
        """
        return cls(
            values,
            info.wavelengths_nm,
            info.channels,
            model=info.name,
            version=version or info.version,
            merged_greens=info.merged_greens,
            simulated=info.simulated,
        )

    @property
    def label(self) -> str:
        """Name and version of the model or solver in words."""
        return label(self.model, self.version, self.simulated)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: int | slice | NDArray[Any]) -> Spectra:
        """Some of the structures; always a `Spectra`, with one structure for an integer."""
        index = slice(key, key + 1 or None) if isinstance(key, int | np.integer) else key
        values = self.values[index]
        if isinstance(key, int | np.integer) and not len(values):
            raise IndexError(f"structure {key} of {len(self)}")
        return replace(self, values=values)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<Spectra: {self._summary}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the curves and the efficiencies of the first structures."""
        first = self[:_SHOWN]
        efficiencies = first.colour_efficiency(self.colours)
        size, axes = ((440, 200), True) if len(self) == 1 else ((200, 50), False)
        rows = [
            [
                str(n),
                *(f"{value:.3f}" for value in each),
                html.spectra_curves(values, self.wavelengths_nm, self.channels, size=size, axes=axes),
            ]
            for n, (each, values) in enumerate(zip(efficiencies, first.values, strict=True))
        ]
        if len(self) > _SHOWN:
            rows.append([f"... and {len(self) - _SHOWN} more"])
        head = ["structure", *(COLOUR_NAMES[colour] for colour in self.colours), "efficiency by wavelength"]
        return f"<div>{escape(self._summary)}{html.table(rows, head)}</div>"

    @property
    def _summary(self) -> str:
        first, last = self.wavelengths_nm[0], self.wavelengths_nm[-1]
        count = "1 structure" if len(self) == 1 else f"{len(self)} structures"
        shape = f"{count}, {'/'.join(self.channels)}, {len(self.wavelengths_nm)} wavelengths"
        note = f"; {MERGED_GREENS}" if self.merged_greens else ""
        return f"{shape} from {first:g} to {last:g} nm, {self.label}{note}"

    def channel(self, name: str) -> NDArray[np.float32]:
        """Efficiency of one channel, (N, wavelengths)."""
        return self.values[:, channel_index(name, self.channels)]

    @property
    def colours(self) -> tuple[str, ...]:
        """Colours whose band the wavelengths reach: all three for the default process."""
        return figures_of_merit.covered_colours(self.wavelengths_nm)

    def colour_efficiency(self, colours: Sequence[str] = COLOURS) -> NDArray[np.float32]:
        """Efficiency of red, green and blue, (N, 3): the mean over a colour's band of the power in its detectors.

        Green is the sum of G1 and G2.

        Args:
            colours: the colours, in the order of the result; `self.colours` for those that there are.

        Raises:
            ValueError: the wavelengths do not reach the band of a colour.
        """
        return figures_of_merit.colour_efficiency(self.values, self.wavelengths_nm, self.channels, colours)

    def crosstalk(self, colours: Sequence[str] = COLOURS) -> NDArray[np.float32]:
        """Crosstalk of red, green and blue, (N, 3): the mean over the other two bands of the power in its detectors.

        Args:
            colours: the colours, in the order of the result.

        Raises:
            ValueError: the wavelengths do not reach the other bands.
        """
        return figures_of_merit.crosstalk(self.values, self.wavelengths_nm, self.channels, colours)

    def min_efficiency(self) -> NDArray[np.float32]:
        """Smallest of the three colour efficiencies, (N,): the figure of merit of invrs-gym's challenge.

        Raises:
            ValueError: the wavelengths do not reach the band of a colour.
        """
        smallest: NDArray[np.float32] = self.colour_efficiency().min(axis=1)
        return smallest

    def to_xarray(self) -> xarray.DataArray:
        """A labelled array with dimensions structure, channel and wavelength. Needs xarray."""
        xarray_package = _needed("xarray")
        coordinates = {
            "channel": list(self.channels),
            "wavelength": ("wavelength", self.wavelengths_nm, {"units": "nm"}),
        }
        attributes = {"model": self.model, "version": self.version, "long_name": "efficiency"}
        if self.merged_greens:
            attributes["comment"] = MERGED_GREENS
        array: xarray.DataArray = xarray_package.DataArray(
            self.values, coordinates, ("structure", "channel", "wavelength"), "efficiency", attributes
        )
        return array

    def plot(self, structure: int = 0, ax: Axes | None = None, **line: Any) -> Axes:
        """Draw the spectra of one structure, one line per channel. Needs matplotlib.

        Args:
            structure: index of the structure.
            ax: axes to draw on; those of a new figure by default.
            **line: properties of the lines, such as `linestyle`.
        """
        if ax is None:
            _, ax = _needed("matplotlib.pyplot").subplots(figsize=(6, 4), layout="constrained")
            ax.set_xlim(self.wavelengths_nm[0], self.wavelengths_nm[-1])
        ax.set(xlabel="wavelength (nm)", ylabel="efficiency")
        for channel, values in zip(self.channels, self[structure].values[0], strict=True):
            ax.plot(self.wavelengths_nm, values, **{"color": DETECTOR_LINES.get(channel), "label": channel, **line})
        ax.legend(title=MERGED_GREENS if self.merged_greens else None)
        return ax

    def to_dataframe(self) -> pandas.DataFrame:
        """A table with a row for each structure and wavelength and a column for each channel. Needs pandas."""
        pandas_package = _needed("pandas")
        index = pandas_package.MultiIndex.from_product(
            [range(len(self)), self.wavelengths_nm], names=["structure", "wavelength_nm"]
        )
        rows = self.values.transpose(0, 2, 1).reshape(-1, len(self.channels))
        table: pandas.DataFrame = pandas_package.DataFrame(rows, index, list(self.channels))
        return table


def label(name: str, version: str, simulated: bool) -> str:
    """Name and version of a model or a solver in words: "diffractionnet version 7", "solver (64 cells, ...)"."""
    return f"{name} ({version})" if simulated else f"{name} version {version}"


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"this needs {package}: pip install {package}", name=package) from error
