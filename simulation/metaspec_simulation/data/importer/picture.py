"""The picture of an import: some samples, so that a wrong orientation or a wrong order of the detectors is seen."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaspec_contract.detectors import DETECTOR_LINES
from metaspec_contract.process import Process
from metaspec_simulation.data.importer.write import Samples
from metaspec_simulation.drawing import draw_structure, shade_bands


def draw_samples(samples: Samples, process: Process, simulated: NDArray[np.float32] | None = None) -> Figure:
    """Draw samples as the data set holds them: structures with the places of the detectors, spectra below.

    Args:
        samples: samples to draw.
        process: their process.
        simulated: the solver's spectra of the same structures, (n, 4, W).
    """
    figure = Figure(figsize=(4.4 * len(samples.names), 7.4), layout="constrained")
    axes = figure.subplots(2, len(samples.names), squeeze=False, height_ratios=(1.1, 1))
    wavelengths = process.wavelengths_nm
    for sample, (above, below) in enumerate(axes.T):
        draw_structure(above, samples.structures[sample], process.period_um)
        above.set_title(samples.names[sample], fontsize=10)
        shade_bands(below)
        for channel, (detector, colour) in enumerate(DETECTOR_LINES.items()):
            below.plot(wavelengths, samples.spectra[sample, channel], color=colour, lw=1.2, label=detector)
            if simulated is not None:
                below.plot(wavelengths, simulated[sample, channel], color=colour, lw=1, ls="--")
        below.set(xlabel="wavelength (nm)", ylabel="efficiency", xlim=(wavelengths[0], wavelengths[-1]))
        below.legend(ncols=4, fontsize=9, title=None if simulated is None else "dashed: the solver's")
    figure.suptitle(
        "As imported: x points right and y down, dark is solid, each label marks its detector's quadrant", fontsize=10
    )
    return figure
