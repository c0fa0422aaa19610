"""What the parts of MetaSpec agree on, each fact once.

- `process`: the device: geometry, materials, wavelengths.
- `detectors`: the channels of spectra, their quadrants, and the bands of the colours.
- `structures`: shape, check, bit packing and symmetries of a structure.
- `figures_of_merit`: colour efficiency and crosstalk, in numpy.
- `provenance`: what a model was trained on, from the data set to the client.
- `model`: what a model file says of itself, and the check of its tensors against that.
- `run_folder`: what `metaspec optimise` writes and `metaspec-simulate verify` reads and writes.
- `files`: files that appear whole or not at all.

Needs numpy and pydantic only. Nothing here imports another part of MetaSpec.
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
