"""Inverse design: from latents to binary structures with good spectra, many starts at once.

from metaspec import Surrogate
from metaspec.objectives import by_name as objective
from metaspec.optimise import Problem, by_name, run
from metaspec.topology import Parameterisation

with Surrogate() as surrogate:
    problem = Problem(surrogate, objective("bayer"), Parameterisation(radius_nm=80))
    result = run(problem, by_name("adam", starts=16, seed=0), steps=200, checkpoint="run.npz")

result.structure[0]  # the best design
"""

from metaspec.optimise.base import Optimiser, random_latents
from metaspec.optimise.gradient import Adam
from metaspec.optimise.loop import beta_schedule, run
from metaspec.optimise.problem import Problem, Score
from metaspec.optimise.record import History, Progress, Result

__all__ = [
    "NAMES",
    "Adam",
    "History",
    "Optimiser",
    "Problem",
    "Progress",
    "Result",
    "Score",
    "beta_schedule",
    "by_name",
    "random_latents",
    "run",
]

NAMES = ("adam",)
"""Optimisers that `by_name` knows."""


def by_name(name: str, starts: int = 16, seed: int = 0, **settings: object) -> Optimiser:
    """An optimiser with random starts.

    Args:
        name: one of `NAMES`.
        starts: rows of the batch: starts of a gradient method, candidates of a generation.
        seed: of all random numbers.
        **settings: of the optimiser.
    """
    if name == "adam":
        return Adam(random_latents(starts, seed), **settings)  # type: ignore[arg-type]
    raise ValueError(f"optimiser must be one of {', '.join(NAMES)}, got {name!r}")
