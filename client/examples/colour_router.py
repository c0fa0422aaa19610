"""A colour router from random starts to a layout: Adam through the server, then GDSII, figures and spectra of the designs.

Start a server with `make serve`, then: python client/examples/colour_router.py [URL [FOLDER]]
(pip install "metaspec[optimise]")
The same on the command line: metaspec optimise --objective bayer --out FOLDER
"""

import sys

from metaspec import Surrogate, objectives, optimise
from metaspec.designs import write_designs
from metaspec.topology import Parameterisation

STARTS, STEPS, SEED = 4, 60, 0
url, folder = (*sys.argv[1:], *("http://127.0.0.1:8000", "colour-router")[len(sys.argv) - 1 :])

with Surrogate(url) as surrogate:
    problem = optimise.Problem(
        surrogate,
        objective=objectives.MinEfficiency(softness=0.02),  # soft minimum of the three colour efficiencies
        parameterisation=Parameterisation(radius_nm=120),  # leaves few features narrower than 80 nm
    )
    result = optimise.run(problem, optimise.by_name("adam", STARTS, SEED), STEPS)
    report = write_designs(folder, result, surrogate, objective="bayer", seed=SEED)

print(f"{result.server_calls} calls for {result.structures_evaluated} structures in {result.wall_s:.0f} s")
for design in report["designs"][:3]:
    narrowest = min(design["solid_nm"], design["void_nm"])
    print(f"min(R, G, B) {design['predicted']['min_efficiency']:.3f}, narrowest feature {narrowest:.0f} nm")
print(f"{folder}/report.html shows all designs; verify them with the solver: metaspec-simulate verify {folder}")
