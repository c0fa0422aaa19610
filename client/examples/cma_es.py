"""A colour router without gradients: CMA-ES varies 10 x 10 control points, and the server predicts each generation.

Start a server with `make serve`, then: python client/examples/cma_es.py [URL]     (pip install "metaspec[optimise]")
"""

import sys

from metaspec import Surrogate, objectives, optimise
from metaspec.topology import Parameterisation

GENERATIONS = 40

with Surrogate(*sys.argv[1:2]) as surrogate:
    problem = optimise.Problem(surrogate, objectives.MinEfficiency(), Parameterisation(symmetry="diagonal"))
    optimiser = optimise.by_name("cmaes", starts=16, seed=0)  # a generation of 16 candidates is one request
    for generation in range(GENERATIONS):
        score = problem.score(optimiser.ask())  # of the binary structures of the candidates
        optimiser.tell(score.value)
        print(f"generation {generation:2d}: min(R, G, B) of the best candidate {score.value.max():.3f}")
