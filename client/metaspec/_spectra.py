"""Spectra: what a prediction returns."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from metaspec_contract.detectors import COLOURS, channel_index
from metaspec_contract.figures_of_merit import crosstalk_weights, efficiency_weights

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

_LINES = {"R": "tab:red", "G1": "tab:green", "G2": "yellowgreen", "B": "tab:blue"}


@dataclass(frozen=True, eq=False)
class Spectra:
    """Efficiencies of N structures: power through a detector / power incident on the cell.

    Attributes:
        values: float32 (N, channels, wavelengths).
        wavelengths_nm: (wavelengths,), ascending.
        channels: names of the detectors.
        model: that made the prediction. version: of that model.
    """

    values: NDArray[np.float32]
    wavelengths_nm: NDArray[np.float64]
    channels: tuple[str, ...] = ("R", "G1", "G2", "B")
    model: str = ""
    version: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: int | slice | NDArray[Any]) -> Spectra:
        """Some of the structures; always a `Spectra`, with one structure for a whole number."""
        index = slice(key, key + 1 or None) if isinstance(key, int | np.integer) else key
        values = self.values[index]
        if isinstance(key, int | np.integer) and not len(values):
            raise IndexError(f"structure {key} of {len(self)}")
        return Spectra(values, self.wavelengths_nm, self.channels, self.model, self.version)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        first, last = self.wavelengths_nm[0], self.wavelengths_nm[-1]
        shape = f"{len(self)} structures, {'/'.join(self.channels)}, {len(self.wavelengths_nm)} wavelengths"
        return f"<Spectra: {shape} from {first:g} to {last:g} nm, {self.model} version {self.version}>"

    def channel(self, name: str) -> NDArray[np.float32]:
        """Efficiency of one detector, (N, wavelengths)."""
        return self.values[:, channel_index(name, self.channels)]

    def colour_efficiency(self) -> NDArray[np.float32]:
        """Efficiency of red, green and blue, (N, 3): the mean over a colour's band of the power in its detectors.

        Green is the sum of G1 and G2.
        """
        return self._sums([efficiency_weights(colour, self.wavelengths_nm, self.channels) for colour in COLOURS])

    def crosstalk(self) -> NDArray[np.float32]:
        """Crosstalk of red, green and blue, (N, 3): the mean over the other two bands of the power in its detectors."""
        return self._sums([crosstalk_weights(colour, self.wavelengths_nm, self.channels) for colour in COLOURS])

    def min_efficiency(self) -> NDArray[np.float32]:
        """The smallest of the three colour efficiencies, (N,): what invrs-gym's challenge ranks by."""
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
        array: xarray.DataArray = xarray_package.DataArray(
            self.values, coordinates, ("structure", "channel", "wavelength"), "efficiency", attributes
        )
        return array

    def plot(self, structure: int = 0, ax: Axes | None = None, **line: Any) -> Axes:
        """Draw the spectra of one structure, a line for each detector. Needs matplotlib.

        Args:
            structure: which one.
            ax: where to draw; a new figure by default.
            **line: properties of the lines, such as `linestyle`.
        """
        if ax is None:
            _, ax = _needed("matplotlib.pyplot").subplots(figsize=(6, 4), layout="constrained")
            ax.set_xlim(self.wavelengths_nm[0], self.wavelengths_nm[-1])
        ax.set(xlabel="wavelength (nm)", ylabel="efficiency")
        for channel, values in zip(self.channels, self[structure].values[0], strict=True):
            ax.plot(self.wavelengths_nm, values, **{"color": _LINES.get(channel), "label": channel, **line})
        ax.legend()
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

    def _sums(self, weights: list[NDArray[np.float64]]) -> NDArray[np.float32]:
        """Weighted sums over channels and wavelengths, (N, len(weights))."""
        sums = np.tensordot(self.values, np.stack(weights), axes=([1, 2], [1, 2]))
        return sums.astype(np.float32)


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"this needs {package}: pip install {package}") from error
