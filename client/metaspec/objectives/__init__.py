"""Objectives: differentiable functions of spectra that an optimiser maximises.

    objective = MinEfficiency(softness=0.02) - 0.5 * Crosstalk("B")
    surrogate.predict_and_gradient(structures, objective)               # numpy: value, gradient, spectra
    objective.score(spectra, wavelengths_nm, channels)                  # numpy, torch or jax, differentiable

Efficiencies, `TargetSpectra`, `MinEfficiency` and `InformationPerPixel` are better when larger; `Crosstalk`,
`DetectorCrosstalk`, `Spread` and `ColourMatrixError` are better when smaller, so subtract them. Bands and detectors are those
of `metaspec_contract.detectors`: blue 400-500, green 500-600, red 600-700 nm, lower edge included and upper edge excluded, and
green is the sum of G1 and G2. Channels are found by name; an objective ignores those that it does not use. Functions of the
density instead of the spectra are in `metaspec.penalties`.
"""

from metaspec._design.objective import Objective
from metaspec.colour import ColourMatrixError
from metaspec.objectives.detector_crosstalk import DetectorCrosstalk, crosstalk_matrix
from metaspec.objectives.efficiency import BandEfficiency, ColourEfficiency, Crosstalk, MinEfficiency
from metaspec.objectives.information import InformationPerPixel, filter_array
from metaspec.objectives.names import NAMES, by_name
from metaspec.objectives.spread import Spread
from metaspec.objectives.target import TargetSpectra

__all__ = [
    "NAMES",
    "BandEfficiency",
    "ColourEfficiency",
    "ColourMatrixError",
    "Crosstalk",
    "DetectorCrosstalk",
    "InformationPerPixel",
    "MinEfficiency",
    "Objective",
    "Spread",
    "TargetSpectra",
    "by_name",
    "crosstalk_matrix",
    "filter_array",
]


def __dir__() -> list[str]:
    return __all__
