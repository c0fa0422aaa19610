"""Detectors of a Bayer cell: channels of the spectra, their quadrants, and the bands and detectors of the colours.

Bands and detectors follow the `bayer_sorter` challenge of the public package invrs-gym: a band includes its lower edge and
excludes its upper one, and the power of green is the sum over its two detectors.
"""

from __future__ import annotations

from collections.abc import Sequence

CHANNELS = ("R", "G1", "G2", "B")
"""Detectors, in the order of the spectra: row by row through the 2 x 2 block [[R, G1], [G2, B]]."""

QUADRANTS = {"R": (0, 0), "G1": (0, 1), "G2": (1, 0), "B": (1, 1)}
"""Row and column of each detector's quadrant; row 0 covers the first half of a structure's rows."""

SPREAD = "spread"
"""Fifth channel of models over symmetric images: deviation of the images' predictions from their mean."""

COLOURS = ("R", "G", "B")
"""Colours, in the order of every table, file and array of figures of merit."""

COLOUR_NAMES = {"R": "red", "G": "green", "B": "blue"}

BANDS_NM = {"R": (600.0, 700.0), "G": (500.0, 600.0), "B": (400.0, 500.0)}
"""Band of each colour in nm: lower edge included, upper edge excluded."""

DETECTORS = {"R": ("R",), "G": ("G1", "G2"), "B": ("B",)}
"""Detectors of each colour; a colour's power is the sum over them."""

DETECTOR_LINES = {"R": "tab:red", "G1": "tab:green", "G2": "yellowgreen", "B": "tab:blue"}
"""Line colour of each detector in figures, as matplotlib names it."""

COLOUR_LINES = {"R": "tab:red", "G": "tab:green", "B": "tab:blue"}
"""Line colour of each colour in figures, and of the shade over its band."""


def check_colour(colour: str) -> None:
    """Raise ValueError unless `colour` is "R", "G" or "B"."""
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {colour!r}")


def channel_index(name: str, channels: Sequence[str]) -> int:
    """Position of a channel among `channels`.

    Raises:
        ValueError: there is no such channel.
    """
    if name not in channels:
        raise ValueError(f"channel must be one of {', '.join(channels)}, got {name!r}")
    return list(channels).index(name)
