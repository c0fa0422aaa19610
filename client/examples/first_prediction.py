"""A first prediction: ten random structures, their colour efficiencies, and a plot of the best one's spectra.

Start a server with `make serve`, then: python client/examples/first_prediction.py [URL]
"""

import sys

import numpy as np

from metaspec import Surrogate

# Smooth random structures: low-pass filtered noise, solid where it is positive. Row = y, column = x, 1 = solid.
noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((10, 128, 128)))
frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
structures = np.fft.irfft2(noise * np.exp(-((frequency * 40) ** 2))) > 0

with Surrogate(*sys.argv[1:2]) as surrogate:
    spectra = surrogate.predict(structures)

print(spectra)
print("efficiency of red, green (G1 + G2) and blue:")
print(spectra.colour_efficiency().round(3))

best = int(spectra.min_efficiency().argmax())
print(f"structure {best} has the largest min efficiency: {spectra.min_efficiency()[best]:.3f}")
try:
    from matplotlib import pyplot

    spectra.plot(best)
    pyplot.savefig("first_prediction.png")
    print("first_prediction.png shows its spectra")
except ImportError:
    print("install matplotlib to plot its spectra")
