"""A colour router whose distance from its detectors is a design variable: each start finds its own, with its structure.

Start a server with `make serve`, then: python client/examples/free_distance.py [URL [FOLDER]]
(pip install "metaspec[optimise]")
The same on the command line: metaspec optimise --free distance_um:1.0:3.0 --out FOLDER
"""

import sys

import numpy as np

from metaspec import Surrogate, objectives, optimise
from metaspec.designs import write_designs
from metaspec.topology import Parameterisation

STARTS, STEPS, SEED = 4, 60, 0
LOW, HIGH = 1.0, 3.0
url, folder = (*sys.argv[1:], *("http://127.0.0.1:8000", "free-distance")[len(sys.argv) - 1 :])

with Surrogate(url) as surrogate:
    problem = optimise.Problem(
        surrogate,
        objective=objectives.by_name("bayer"),
        parameterisation=Parameterisation(radius_nm=120),
        free={"distance_um": (LOW, HIGH)},  # each start has its own value, spread over the interval at first
    )
    result = optimise.run(problem, optimise.by_name("adam", STARTS, SEED), STEPS)
    write_designs(folder, result, surrogate, objective="bayer", seed=SEED)
    found, began = result.conditions["distance_um"], result.history.conditions["distance_um"][0, result.row]
    for distance, before, efficiency in zip(found, began, result.spectra.min_efficiency(), strict=True):
        print(f"distance {distance:.3f} um, {before:.3f} um at first: min(R, G, B) {efficiency:.3f}")

    # How exact the distance of the best one has to be: one structure at several distances is one request.
    distances = np.clip(found[0] + np.array([-0.2, -0.1, 0, 0.1, 0.2]), LOW, HIGH)
    spectra = surrogate.predict(np.repeat(result.structure[:1], len(distances), axis=0), distance_um=distances)
    for distance, efficiency in zip(distances, spectra.min_efficiency(), strict=True):
        print(f"the best one at {distance:.3f} um: {efficiency:.3f}")
print(f"{folder}/report.html shows all designs; verify each at its distance: metaspec-simulate verify {folder}")
