"""Selection of channels and wavelengths of the spectra, and its adjoint for cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.model import ModelMetadata
from metaspec_server.http.rest_codec import InvalidBody, check_cotangent_shape

__all__ = ["Selection"]


class Selection:
    """Selected channels and wavelengths; between the model's own wavelengths, spectra are interpolated linearly.

    Args:
        metadata: metadata of the model.
        channels: names of channels; None for all.
        wavelengths_nm: wavelengths in nm within the model's range; None for the model's own.

    Raises:
        InvalidBody: an unknown channel, or a wavelength out of range.
    """

    def __init__(
        self, metadata: ModelMetadata, channels: Sequence[str] | None, wavelengths_nm: Sequence[float] | None
    ) -> None:
        for channel in channels or []:
            if channel not in metadata.channels:
                raise InvalidBody("channels", f"expected some of {', '.join(metadata.channels)}, got {channel[:60]!r}")
        low, high = metadata.wavelengths_nm[0], metadata.wavelengths_nm[-1]
        for wavelength in wavelengths_nm or []:
            if not low <= wavelength <= high:
                raise InvalidBody("wavelengths_nm", f"expected {low:g} to {high:g} nm, got {wavelength:g}")
        grid = np.array(metadata.wavelengths_nm, float)
        self.channels = list(channels or metadata.channels)
        self.wavelengths_nm = np.array(wavelengths_nm or metadata.wavelengths_nm, float)
        self._rows = [metadata.channels.index(channel) for channel in self.channels]
        self._channels, self._count = len(metadata.channels), len(grid)
        self._right = np.clip(np.searchsorted(grid, self.wavelengths_nm), 1, len(grid) - 1)
        step = grid[self._right] - grid[self._right - 1]
        self._share = ((self.wavelengths_nm - grid[self._right - 1]) / step).astype(np.float32)
        self._everything = self.channels == metadata.channels and np.array_equal(grid, self.wavelengths_nm)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of selected channels and wavelengths."""
        return len(self.channels), len(self.wavelengths_nm)

    def apply(self, spectra: NDArray[Any]) -> NDArray[Any]:
        """The selected part of spectra: (N, all channels, all wavelengths) to (N, channels, wavelengths)."""
        if self._everything:
            return spectra
        spectra = spectra[:, self._rows]
        selected: NDArray[Any] = spectra[..., self._right - 1] * (1 - self._share)
        selected += spectra[..., self._right] * self._share
        return selected

    def pull_back(self, cotangent: NDArray[Any]) -> NDArray[np.float32]:
        """The adjoint of `apply`: the cotangent of all spectra for one of the selected part.

        Raises:
            InvalidBody: the cotangent does not hold numbers, finite in float32, of shape (N, channels, wavelengths).
        """
        check_cotangent_shape(cotangent.dtype, cotangent.shape, self.shape)
        with np.errstate(over="ignore"):
            single = cotangent.astype(np.float32)
        _check_finite(single, cotangent)
        if self._everything:
            return single
        whole = np.zeros((self._channels, self._count, len(single)), np.float32)
        by_place = single.transpose(1, 2, 0)
        rows = np.array(self._rows)[:, None]
        np.add.at(whole, (rows, self._right - 1), by_place * (1 - self._share)[:, None])
        with np.errstate(over="ignore"):
            np.add.at(whole, (rows, self._right), by_place * self._share[:, None])
        _check_finite(whole, whole)
        return np.ascontiguousarray(whole.transpose(2, 0, 1))


def _check_finite(single: NDArray[np.float32], given: NDArray[Any]) -> None:
    finite = np.isfinite(single)
    if not finite.all():
        raise InvalidBody("cotangent", f"expected finite numbers in float32, got {given[~finite][0]:g}")
