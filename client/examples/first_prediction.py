"""A first prediction: ten random structures, their colour efficiencies, and a plot of the best one's spectra.

Start a server with `make serve`, then: python client/examples/first_prediction.py [URL]
"""

import sys

import numpy as np

from metaspec import Surrogate

# Smooth random patterns: a low-passed noise field, solid where it is positive. Row = y, column = x, 1 = solid.
noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((10, 128, 128)))
frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
structures = np.fft.irfft2(noise * np.exp(-((frequency * 40) ** 2))) > 0

with Surrogate(*sys.argv[1:2]) as surrogate:
    spectra = surrogate.predict(structures)

print(spectra)
print("red, green (G1 + G2) and blue efficiency of each:")
print(spectra.colour_efficiency().round(3))

best = int(spectra.min_efficiency().argmax())
print(f"structure {best} has the best worst colour: {spectra.min_efficiency()[best]:.3f}")
try:
    from matplotlib import pyplot

    spectra.plot(best)
    pyplot.savefig("first_prediction.png")
    print("its spectra are drawn in first_prediction.png")
except ImportError:
    print("install matplotlib to draw its spectra")
