"""GDSII streams: the cells of a file, with polygons, paths and references. Everything that is not understood is refused.

GDSII Stream Format Manual, release 6.0 (Calma, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Layer = tuple[int, int]

_EMPTY, _BITS, _SHORT, _LONG, _REAL, _TEXT = 0, 1, 2, 3, 5, 6  # data types of records
_RECORDS: dict[int, tuple[str, int, int | None]] = {  # name, data type, bytes (None: any number)
    0x00: ("HEADER", _SHORT, 2),
    0x01: ("BGNLIB", _SHORT, None),
    0x02: ("LIBNAME", _TEXT, None),
    0x03: ("UNITS", _REAL, 16),
    0x04: ("ENDLIB", _EMPTY, 0),
    0x05: ("BGNSTR", _SHORT, None),
    0x06: ("STRNAME", _TEXT, None),
    0x07: ("ENDSTR", _EMPTY, 0),
    0x08: ("BOUNDARY", _EMPTY, 0),
    0x09: ("PATH", _EMPTY, 0),
    0x0A: ("SREF", _EMPTY, 0),
    0x0B: ("AREF", _EMPTY, 0),
    0x0C: ("TEXT", _EMPTY, 0),
    0x0D: ("LAYER", _SHORT, 2),
    0x0E: ("DATATYPE", _SHORT, 2),
    0x0F: ("WIDTH", _LONG, 4),
    0x10: ("XY", _LONG, None),
    0x11: ("ENDEL", _EMPTY, 0),
    0x12: ("SNAME", _TEXT, None),
    0x13: ("COLROW", _SHORT, 4),
    0x15: ("NODE", _EMPTY, 0),
    0x16: ("TEXTTYPE", _SHORT, 2),
    0x17: ("PRESENTATION", _BITS, 2),
    0x19: ("STRING", _TEXT, None),
    0x1A: ("STRANS", _BITS, 2),
    0x1B: ("MAG", _REAL, 8),
    0x1C: ("ANGLE", _REAL, 8),
    0x1F: ("REFLIBS", _TEXT, None),
    0x20: ("FONTS", _TEXT, None),
    0x21: ("PATHTYPE", _SHORT, 2),
    0x22: ("GENERATIONS", _SHORT, 2),
    0x23: ("ATTRTABLE", _TEXT, None),
    0x26: ("ELFLAGS", _BITS, 2),
    0x2A: ("NODETYPE", _SHORT, 2),
    0x2B: ("PROPATTR", _SHORT, 2),
    0x2C: ("PROPVALUE", _TEXT, None),
    0x2D: ("BOX", _EMPTY, 0),
    0x2E: ("BOXTYPE", _SHORT, 2),
    0x2F: ("PLEX", _LONG, 4),
    0x30: ("BGNEXTN", _LONG, 4),
    0x31: ("ENDEXTN", _LONG, 4),
    0x34: ("STRCLASS", _BITS, 2),
    0x36: ("FORMAT", _SHORT, 2),
    0x37: ("MASK", _TEXT, None),
    0x38: ("ENDMASKS", _EMPTY, 0),
}
_LIBRARY = {"BGNLIB", "LIBNAME", "REFLIBS", "FONTS", "ATTRTABLE", "GENERATIONS", "FORMAT", "MASK", "ENDMASKS"}
_ANY = {"ELFLAGS", "PLEX", "PROPATTR", "PROPVALUE"}  # in every element
_ELEMENTS = {  # what an element must have, and what it may have
    "BOUNDARY": ({"LAYER", "DATATYPE", "XY"}, set()),
    "BOX": ({"LAYER", "BOXTYPE", "XY"}, set()),
    "PATH": ({"LAYER", "DATATYPE", "XY"}, {"PATHTYPE", "WIDTH", "BGNEXTN", "ENDEXTN"}),
    "SREF": ({"SNAME", "XY"}, {"STRANS", "MAG", "ANGLE"}),
    "AREF": ({"SNAME", "COLROW", "XY"}, {"STRANS", "MAG", "ANGLE"}),
    "TEXT": (
        {"LAYER", "TEXTTYPE", "XY", "STRING"},
        {"PRESENTATION", "PATHTYPE", "WIDTH", "STRANS", "MAG", "ANGLE"},
    ),
    "NODE": ({"LAYER", "NODETYPE", "XY"}, set()),
}
_REFLECTED, _ABSOLUTE = 0x8000, 0x0006  # bits of STRANS
_LARGEST_FACTOR = 1e6  # of a magnification


@dataclass(frozen=True)
class Reference:
    """A cell placed in another one, once or as an array; lengths in um.

    Attributes:
        cell: name of the cell.
        turn: reflection, rotation and magnification, (2, 2).
        origin: where the origin of the cell comes to lie, (2,).
        steps: steps of the array along its columns and its rows, (2, 2).
        columns: number of columns.
        rows: number of rows.
    """

    cell: str
    turn: Floats
    origin: Floats
    steps: Floats
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Wire:
    """A path of constant width; lengths in um.

    Attributes:
        points: corners of its middle line, (corners, 2), each other than the one before.
        width: width.
        ends: "flush", "round", or how far it is extended at its begin and end.
        layer: layer and datatype.
    """

    points: Floats
    width: float
    ends: str | tuple[float, float]
    layer: Layer


@dataclass
class Cell:
    """A cell; lengths in um.

    Attributes:
        polygons: corners (corners, 2) as x and y, and layer and datatype, of each polygon and box.
        wires: paths.
        references: cells placed in it.
    """

    polygons: list[tuple[Floats, Layer]] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)


def read_stream(path: Path) -> tuple[dict[str, Cell], float]:
    """Read a GDSII file.

    Args:
        path: path of the file.

    Returns:
        Cells by name, and the database unit in um.

    Raises:
        ValueError: the file is missing, no file, not GDSII, damaged, or has what is not understood.
    """
    return parse_stream(_content(path), path)


def parse_stream(content: bytes, path: Path) -> tuple[dict[str, Cell], float]:
    """Read a GDSII stream.

    Args:
        content: bytes of the file.
        path: its name, for messages.

    Returns:
        Cells by name, and the database unit in um.

    Raises:
        ValueError: it is not GDSII, damaged, or has what is not understood.
    """
    if content[2:4] != b"\x00\x02":  # the header, which states the version
        raise ValueError(f"{path} is not a GDSII file: it does not begin with a header")
    return _Parser(path, content).parse()


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


class _Parser:
    """One pass over a stream: records, elements, cells."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content, self._place = path, content, 0

    def _damaged(self, what: str) -> NoReturn:
        raise ValueError(f"{self._path} is a damaged GDSII file: {what} at byte {self._place}")

    def _records(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each record up to the end of the library."""
        content, name, place = self._content, "", 0
        while name != "ENDLIB":
            self._place = place
            length = int.from_bytes(content[place : place + 2], "big")
            if length < 4 or length % 2 or place + length > len(content):
                self._damaged("it ends, or has no record,")
            if content[place + 2] not in _RECORDS:
                self._damaged(f"unknown record 0x{content[place + 2]:02x}")
            name, form, size = _RECORDS[content[place + 2]]
            if content[place + 3] != form or size not in (None, length - 4):
                self._damaged(f"record {name} with another data type or length")
            yield name, content[place + 4 : place + length]
            place += length

    def parse(self) -> tuple[dict[str, Cell], float]:
        cells: dict[str, Cell] = {}
        unit: float | None = None
        records = self._records()
        next(records)  # the header
        for name, data in records:
            if name == "UNITS" and unit is None:
                unit = 1e6 * _real(data[8:])
                if not 1e-9 <= unit <= 1e3:
                    self._damaged(f"a database unit of {unit:g} um")
            elif name == "BGNSTR" and unit is not None:
                if (following := next(records))[0] != "STRNAME":
                    self._damaged("a cell without a name")
                title = self._text(following[1])
                if title in cells:
                    self._damaged(f"a second cell {title}")
                cells[title] = self._cell(records, unit)
            elif name not in _LIBRARY and name != "ENDLIB":
                self._damaged(f"record {name} where it does not belong,")
        if unit is None:
            self._damaged("no database unit")
        return cells, unit

    def _cell(self, records: Iterator[tuple[str, bytes]], unit: float) -> Cell:
        cell = Cell()
        for name, _ in records:
            if name == "ENDSTR":
                break
            if name == "STRCLASS":
                continue
            if name not in _ELEMENTS:
                self._damaged(f"record {name} where it does not belong,")
            self._add(cell, name, self._fields(name, records), unit)
        return cell

    def _fields(self, element: str, records: Iterator[tuple[str, bytes]]) -> dict[str, bytes]:
        """Records of an element up to its end, by name."""
        needed, optional = _ELEMENTS[element]
        fields: dict[str, bytes] = {}
        for name, data in records:
            if name == "ENDEL":
                break
            if name not in needed | optional | _ANY or (name in fields and not name.startswith("PROP")):
                self._damaged(f"record {name}, which {element} does not have,")
            fields[name] = data
        if missing := needed - set(fields):
            self._damaged(f"{element} without {min(missing)}")
        return fields

    def _add(self, cell: Cell, element: str, fields: dict[str, bytes], unit: float) -> None:
        """Add an element to its cell; texts and nodes have no area."""
        if not fields["XY"] or len(fields["XY"]) % 8:
            self._damaged("corners that are no pairs of numbers")
        points = np.frombuffer(fields["XY"], ">i4").reshape(-1, 2) * unit
        if element in ("SREF", "AREF"):
            cell.references.append(self._reference(element, fields, points))
        elif element in ("BOUNDARY", "BOX"):
            if len(points) > 1 and (points[0] == points[-1]).all():
                points = points[:-1]
            if len(points) < 3:
                self._damaged(f"{element} of fewer than 3 corners")
            cell.polygons.append(
                (points, _layer(fields["LAYER"], fields["DATATYPE" if element == "BOUNDARY" else "BOXTYPE"]))
            )
        elif element == "PATH":
            cell.wires.append(self._wire(fields, points, unit))

    def _wire(self, fields: dict[str, bytes], points: Floats, unit: float) -> Wire:
        kind, width = _integer(fields.get("PATHTYPE", b"\0\0")), _integer(fields.get("WIDTH", b"\0\0")) * unit
        if width < 0:
            self._damaged("a PATH whose width is not magnified, which is not supported,")
        points = points[np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))]
        if len(points) < 2:
            self._damaged("PATH of fewer than 2 different corners")
        ends: str | tuple[float, float]
        if kind in (0, 1):
            ends = ("flush", "round")[kind]
        elif kind == 2:
            ends = (width / 2, width / 2)
        elif kind == 4:
            first, last = (_integer(fields.get(name, b"\0\0")) * unit for name in ("BGNEXTN", "ENDEXTN"))
            ends = (first, last)
        else:
            self._damaged(f"a PATH of the unknown type {kind}")
        return Wire(points, width, ends, _layer(fields["LAYER"], fields["DATATYPE"]))

    def _reference(self, element: str, fields: dict[str, bytes], points: Floats) -> Reference:
        flags = int.from_bytes(fields.get("STRANS", b"\0\0"), "big")
        if flags & _ABSOLUTE:
            self._damaged("a reference of absolute magnification or angle, which is not supported,")
        factor = _real(fields["MAG"]) if "MAG" in fields else 1.0
        if not 1 / _LARGEST_FACTOR <= factor <= _LARGEST_FACTOR:
            self._damaged(f"a magnification of {factor:g}")
        angle = math.radians(_real(fields["ANGLE"]) if "ANGLE" in fields else 0.0)
        flip = -1.0 if flags & _REFLECTED else 1.0
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = factor * np.array([[cosine, -sine * flip], [sine, cosine * flip]])
        name = self._text(fields["SNAME"])
        if len(points) != (3 if element == "AREF" else 1):
            self._damaged(f"{element} with {len(points)} points")
        if element == "SREF":
            return Reference(name, turn, points[0], np.zeros((2, 2)))
        columns, rows = (_integer(fields["COLROW"][place : place + 2]) for place in (0, 2))
        if columns < 1 or rows < 1:
            self._damaged(f"an array of {columns} x {rows} cells")
        steps = (points[1:] - points[0]) / [[columns], [rows]]
        return Reference(name, turn, points[0], steps, columns, rows)

    def _text(self, data: bytes) -> str:
        """Name of a cell."""
        try:
            text = data.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable():
            self._damaged("a name that cannot be read")
        return text


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _layer(layer: bytes, datatype: bytes) -> Layer:
    return _integer(layer), _integer(datatype)


def _real(data: bytes) -> float:
    """A number of 8 bytes: sign, exponent of 16 in excess of 64, and 56 bits of mantissa."""
    sign = -1.0 if data[0] & 0x80 else 1.0
    return sign * float(int.from_bytes(data[1:], "big")) * 16.0 ** ((data[0] & 0x7F) - 78)
