"""Layouts: structures to and from GDSII, and the design rules that they pass. Needs gdstk.

    write_gds("router.gds", structure)                               # exact pixels
    write_gds("smooth.gds", structure, tolerance_nm=16, unit_nm=1)   # smooth contours on a grid of 1 nm
    largest_rules(structure, tolerance_nm=16)                        # what they pass in KLayout
    density = read_gds("theirs.gds", cell="UNIT", layer=(7, 0))      # (y, x), the share of each pixel that is solid

Rows of a structure count downwards, as in a picture; y of a layout points upwards. A layout viewer shows the cell just as
the pictures do, with detector R at the top left: row r lies between y = period - (r + 1) * pixel and y = period - r * pixel.
"""

from metaspec.layouts._reading import read_gds
from metaspec.layouts._rules import Rules, largest_rules
from metaspec.layouts._writing import check_tolerance, check_unit, solid_polygons, write_gds

__all__ = [
    "Rules",
    "check_tolerance",
    "check_unit",
    "largest_rules",
    "read_gds",
    "solid_polygons",
    "write_gds",
]


def __dir__() -> list[str]:
    return __all__
