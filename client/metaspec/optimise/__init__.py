"""Inverse design: from latents to binary structures with good spectra, many starts at once.

    from metaspec import Surrogate, objectives, optimise
    from metaspec.topology import Parameterisation

    with Surrogate() as surrogate:
        problem = optimise.Problem(surrogate, objectives.by_name("bayer"), Parameterisation(radius_nm=80))
        result = optimise.run(problem, optimise.by_name("adam", starts=16), steps=200, checkpoint="run.npz")

    result.structure[0]  # the best design

An optimiser of your own is a subclass of `Optimiser`; `ask` and `tell` work without `run`, too.
"""

from __future__ import annotations

import importlib
from typing import Any

from metaspec.optimise.adam import Adam
from metaspec.optimise.base import Optimiser
from metaspec.optimise.control import ControlPoints
from metaspec.optimise.loop import run
from metaspec.optimise.problem import Problem, Score
from metaspec.optimise.record import History, Progress, Result
from metaspec.topology import random_latents

__all__ = [
    "NAMES",
    "Adam",
    "ControlPoints",
    "History",
    "Optimiser",
    "Problem",
    "Progress",
    "Result",
    "Score",
    "by_name",
    "run",
]

_GRADIENT = {  # name: module, class, what the module needs, extra
    "adam": ("adam", "Adam", "numpy", ""),
    "lbfgs": ("lbfgs", "LBFGSB", "scipy", "optimise"),
    "torch": ("torch", "Torch", "torch", "torch"),
    "optax": ("optax", "Optax", "optax", "optax"),
    "invrs": ("invrs", "Invrs", "invrs-opt", "invrs"),
}
_GRADIENT_FREE = {
    "cmaes": ("population", "CMAES", "cma", "optimise"),
    "de": ("population", "DE", "pymoo", "optimise"),
    "ga": ("population", "GA", "pymoo", "optimise"),
    "botorch": ("bayesian", "Bayesian", "botorch", "botorch"),
}

NAMES = (*_GRADIENT, *_GRADIENT_FREE)
"""Optimisers that `by_name` knows."""


def by_name(
    name: str, starts: int = 16, seed: int = 0, *, shape: tuple[int, int] = (128, 128), **settings: Any
) -> Optimiser:
    """An optimiser with random starts.

    Args:
        name: one of `NAMES`. "adam", "lbfgs", "torch", "optax" and "invrs" use gradients, for all pixels. "cmaes", "de",
            "ga" and "botorch" use none, and have `points` x `points` control points for variables.
        starts: rows of a batch: starts of a gradient method, else candidates of a generation.
        seed: of all random numbers.
        shape: pixels (y, x) of a structure.
        **settings: of the optimiser's class; and `points` for one without gradients.

    Raises:
        ValueError: no such optimiser.
        ImportError: it needs a package that is not installed; says which extra has it.
    """
    if name not in NAMES:
        raise ValueError(f"optimiser must be one of {', '.join(NAMES)}, got {name!r}")
    module, kind, package, extra = (_GRADIENT | _GRADIENT_FREE)[name]
    try:
        make = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    except ImportError as error:
        raise ImportError(f'the optimiser "{name}" needs {package}: pip install "metaspec[{extra}]"') from error
    if name in _GRADIENT:
        optimiser: Optimiser = make(random_latents(starts, seed, shape), **settings)
        return optimiser
    points = settings.pop("points", 6 if name == "botorch" else 10)
    return ControlPoints(make(starts, seed, (points, points), **settings), shape)
