"""Facts that two or more components of MetaSpec must agree on, each defined once.

- `process`: the device: geometry, materials, wavelengths.
- `detectors`: channels of the spectra, their quadrants, and the bands of the colours.
- `structures`: shape, validation, bit packing and symmetries of structures.
- `figures_of_merit`: colour efficiency and crosstalk.
- `spectra`: spectra of structures, labelled.
- `source`: sources of spectra: their interface, and how they are found.
- `provenance`: what a network was trained on.
- `conditions`: what a model takes beside the structure, and the check of what users give for it.
- `model`: a model's metadata, and the check of its tensors and answers against them.
- `run_folder`: the reports of `metaspec optimise` and `metaspec-simulate verify`.
- `files`: atomic writes of whole files; reading `.npy` without pickle.
- `schemas`: JSON Schemas of these documents.
- `validation`: one-line messages from pydantic errors.

Needs only numpy and pydantic, and imports no other part of MetaSpec.
"""

from importlib.metadata import version

from metaspec_contract.detectors import BANDS_NM, CHANNELS, COLOURS, DETECTORS
from metaspec_contract.process import Process, Sellmeier
from metaspec_contract.structures import PIXELS, InvalidStructure, Symmetry

__version__ = version("metaspec-contract")

__all__ = [
    "BANDS_NM",
    "CHANNELS",
    "COLOURS",
    "DETECTORS",
    "PIXELS",
    "InvalidStructure",
    "Process",
    "Sellmeier",
    "Symmetry",
    "__version__",
]
