"""A colour router without gradients: CMA-ES moves 10 x 10 control points, the network on the server judges each generation.

Start a server with `make serve`, then: python client/examples/cma_es.py [URL]     (pip install "metaspec[optimise]")
"""

import sys

from metaspec import Surrogate, objectives, optimise
from metaspec.topology import Parameterisation

GENERATIONS = 40

with Surrogate(*sys.argv[1:2]) as surrogate:
    problem = optimise.Problem(surrogate, objectives.MinEfficiency(), Parameterisation(symmetry="diagonal"))
    optimiser = optimise.by_name("cmaes", starts=16, seed=0)  # a generation is 16 candidates, one request
    for generation in range(GENERATIONS):
        score = problem.score(optimiser.ask())  # of the binary structures that the candidates make
        optimiser.tell(score.value)
        print(f"generation {generation:2d}: min(R, G, B) of the best candidate {score.value.max():.3f}")
