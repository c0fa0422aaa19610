"""Objectives of the command line, which need no arguments, by name."""

from __future__ import annotations

from metaspec._design.objective import Objective
from metaspec.colour import ColourMatrixError
from metaspec.objectives.detector_crosstalk import DetectorCrosstalk
from metaspec.objectives.efficiency import ColourEfficiency, MinEfficiency
from metaspec.objectives.information import InformationPerPixel

_KNOWN: dict[str, Objective] = {
    "bayer": MinEfficiency(softness=0.02),
    "balanced": MinEfficiency(softness=0.008),
    "min": MinEfficiency(),
    "red": ColourEfficiency("R"),
    "green": ColourEfficiency("G"),
    "blue": ColourEfficiency("B"),
    "colour-matrix": -ColourMatrixError("D65"),
    "crosstalk": -DetectorCrosstalk(),
    "information": InformationPerPixel(),
}

NAMES = tuple(_KNOWN)
"""Names of the objectives that `by_name` knows."""


def by_name(name: str) -> Objective:
    """An objective of the command line, by name.

    Args:
        name: "bayer", the soft minimum of the three colour efficiencies; "balanced", a sharper one; "min", the hard one;
            "red", "green", "blue", the efficiency of one colour; "colour-matrix", the negative `ColourMatrixError` under D65;
            "crosstalk", the negative `DetectorCrosstalk`; "information", `InformationPerPixel` in bits.

    Raises:
        ValueError: no such name.
    """
    if name not in _KNOWN:
        raise ValueError(f"objective must be one of {', '.join(NAMES)}, got {name!r}")
    return _KNOWN[name]
