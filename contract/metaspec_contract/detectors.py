"""The detectors of a Bayer cell: channels of the spectra, their quadrants, and the bands and detectors of the colours.

Bands and detectors of the colours are those of the `bayer_sorter` challenge of the public package invrs-gym: the lower edge
belongs to a band, the upper one does not, and the power of green is the sum over its two detectors.
"""

from __future__ import annotations

from collections.abc import Sequence

CHANNELS = ("R", "G1", "G2", "B")
"""The detectors, in the order of the spectra: rows first over the 2 x 2 block [[R, G1], [G2, B]]."""

QUADRANTS = {"R": (0, 0), "G1": (0, 1), "G2": (1, 0), "B": (1, 1)}
"""Row and column of each detector's quadrant; row 0 is the first half of a structure's rows."""

SPREAD = "spread"
"""Channel after the detectors of a model over symmetric images: the deviation of its predictions from their mean."""

COLOURS = ("R", "G", "B")
"""The colours, in the order of every table, file and array of figures of merit."""

COLOUR_NAMES = {"R": "red", "G": "green", "B": "blue"}

BANDS_NM = {"R": (600.0, 700.0), "G": (500.0, 600.0), "B": (400.0, 500.0)}
"""Band of each colour in nm: the lower edge belongs to it, the upper one does not."""

DETECTORS = {"R": ("R",), "G": ("G1", "G2"), "B": ("B",)}
"""Detectors of each colour; the power of a colour is the sum over them."""


def check_colour(colour: str) -> None:
    """Raise ValueError unless `colour` is "R", "G" or "B"."""
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {colour!r}")


def channel_index(name: str, channels: Sequence[str]) -> int:
    """Position of a channel among `channels`.

    Raises:
        ValueError: it is not there.
    """
    if name not in channels:
        raise ValueError(f"channel must be one of {', '.join(channels)}, got {name!r}")
    return list(channels).index(name)
