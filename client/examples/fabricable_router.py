"""A router that tolerates its fabrication: blur and edge bias at random corners, a limited fill factor, and a stop rule.

Start a server with `make serve`, then: python client/examples/fabricable_router.py [URL]
"""

import sys

import numpy as np

from metaspec import Surrogate, objectives, optimise
from metaspec.fabrication import BlurAndBias, fabricate
from metaspec.penalties import FillFactor
from metaspec.topology import Parameterisation
from metaspec_contract.detectors import CHANNELS

STARTS, STEPS = 2, 60
process = BlurAndBias(blur_nm=(10, 25), bias_nm=(-10, 10), corners=3, seed=0)

with Surrogate(*sys.argv[1:2]) as surrogate:
    info = surrogate.metadata()
    problem = optimise.Problem(
        surrogate,
        objective=objectives.by_name("bayer"),
        parameterisation=Parameterisation(radius_nm=120),
        fabrication=process,
        penalties=[FillFactor(0.3, 0.6)],
    )
    result = optimise.run(problem, optimise.by_name("adam", STARTS, seed=0), STEPS, patience=5)
    best = result.structure[0]
    print(f"{len(result.history.value)} of {STEPS} steps, fill factor {best.mean():.2f}")
    print(f"as designed: min(R, G, B) {result.spectra.min_efficiency()[0]:.3f}")
    for corner in process.draw():
        spectra = surrogate.predict(fabricate(best.astype(np.float32), corner).astype(np.uint8))
        print(f"blur {corner.blur_nm:.0f} nm, bias {corner.bias_nm:+.0f} nm: {spectra.min_efficiency()[0]:.3f}")

    spectra = result.spectra[0]
    print("share of red, green and blue light (columns) in R, G1, G2, B (rows):")
    print(objectives.crosstalk_matrix(spectra.values[0], spectra.wavelengths_nm, spectra.channels).round(2))
    information = objectives.InformationPerPixel()
    array = information.score(objectives.filter_array(info.wavelengths_nm), info.wavelengths_nm, CHANNELS)
    print(f"{information(spectra)[0][0]:.2f} bits per raw pixel, a filter array {array:.2f}")
