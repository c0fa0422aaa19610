"""HTML of structures, spectra and tables, as notebooks show them: numpy and the standard library only.

Text is escaped, for names come from servers and files. Text and axes have the colour of the page, and are legible in a dark
notebook, too.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.detectors import DETECTOR_LINES

CSS_COLOURS = {"tab:red": "#d62728", "tab:green": "#2ca02c", "tab:blue": "#1f77b4"}
"""Colours of `DETECTOR_LINES` that CSS calls by another name."""

_STEP = 3  # pixels of a picture between two points of a curve
_CELL = "text-align:right;padding:2px 8px"


def line_colour(channel: str) -> str:
    """Colour of a channel's line in CSS; grey for channels that are not detectors."""
    name = DETECTOR_LINES.get(channel, "gray")
    return CSS_COLOURS.get(name, name)


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table.

    Args:
        rows: cells of each row as HTML, which the caller has escaped.
        head: names of the columns.
    """
    above = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{above}</tr>' if head else ''}{body}</table>"


def facts(title: str, entries: Sequence[tuple[str, str]]) -> str:
    """A title, and a table of names and values, all of them plain text."""
    cells = [[f"<b>{escape(name)}</b>", escape(value)] for name, value in entries]
    return f"<div><b>{escape(title)}</b>{table(cells)}</div>"


def spectra_curves(
    values: ArrayLike,
    wavelengths_nm: ArrayLike,
    channels: Sequence[str],
    *,
    size: tuple[int, int] = (440, 200),
    axes: bool = True,
) -> str:
    """Spectra of one structure as an SVG element, one curve for each channel.

    Args:
        values: efficiencies (channels, wavelengths).
        wavelengths_nm: wavelengths in nm, ascending, (wavelengths,).
        channels: names of the channels.
        size: width and height in pixels.
        axes: whether to draw axes and a legend.
    """
    spectra, wavelengths = np.asarray(values, np.float64), np.asarray(wavelengths_nm, np.float64)
    chosen = np.unique(
        np.linspace(0, len(wavelengths) - 1, min(size[0] // _STEP, len(wavelengths))).round().astype(int)
    )
    width, height = size
    left, right, top, bottom = (34, 8, 18, 28) if axes else (1, 1, 1, 1)
    most = max(0.1, float(np.nan_to_num(spectra).max(initial=0)) * 1.05)
    x = left + (width - left - right) * (wavelengths - wavelengths[0]) / (wavelengths[-1] - wavelengths[0])
    y = top + (height - top - bottom) * (1 - np.clip(np.nan_to_num(spectra), 0, most) / most)
    parts = [
        f'<polyline fill="none" stroke="{line_colour(name)}" stroke-width="1.5" points="{_points(x[chosen], curve[chosen])}">'
        f"<title>{escape(name)}</title></polyline>"
        for name, curve in zip(channels, y, strict=True)
    ]
    if axes:
        frame = f"M{left} {top}V{height - bottom}H{width - right}"
        parts.append(f'<path fill="none" stroke="currentColor" stroke-opacity=".5" d="{frame}"/>')
        parts += [
            _text(left, height - 14, f"{wavelengths[0]:g}"),
            _text((left + width) / 2, height - 3, "wavelength (nm)"),
            _text(width - right, height - 14, f"{wavelengths[-1]:g}", "end"),
            _text(left - 4, top + 8, f"{most:.2g}", "end"),
            _text(left - 4, height - bottom, "0", "end"),
        ]
        parts += [_text(left + 8 + 46 * n, 12, name, "start", line_colour(name)) for n, name in enumerate(channels)]
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def structure_picture(structure: ArrayLike, size: int = 128) -> str:
    """A structure as an image element: solid is dark, void is light, row 0 is at the top.

    Args:
        structure: (y, x), 1 is solid and 0 is void; densities between are shades.
        size: width in CSS pixels.
    """
    address = "data:image/png;base64," + base64.b64encode(structure_png(structure)).decode()
    return f'<img src="{address}" width="{size}" style="image-rendering:pixelated" alt="structure">'


def structure_png(structure: ArrayLike) -> bytes:
    """A structure as a grey PNG file, a pixel for each pixel (ISO/IEC 15948)."""
    density = np.clip(np.nan_to_num(np.asarray(structure, np.float64)), 0, 1)
    levels = np.rint(250 - 190 * density).astype(np.uint8)
    height, width = levels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)  # each begins with its filter: none
    chunks = {b"IHDR": struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0), b"IDAT": zlib.compress(rows.tobytes(), 9)}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in [*chunks.items(), (b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "currentColor") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="11" font-family="sans-serif" fill="{colour}">'
        f"{escape(text)}</text>"
    )
