"""Inverse design: from latents to binary structures with good spectra, many starts in parallel.

    from metaspec import Surrogate, objectives, optimise
    from metaspec.topology import Parameterisation

    with Surrogate() as surrogate:
        problem = optimise.Problem(surrogate, objectives.by_name("bayer"), Parameterisation(radius_nm=80))
        result = optimise.run(problem, optimise.by_name("adam", starts=16), steps=200, checkpoint="run.npz")

    result.structure[0]  # the best design

Your own optimiser is a subclass of `Optimiser`; `ask` and `tell` also work without `run`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metaspec._extras import missing_extra
from metaspec.optimise.adam import Adam
from metaspec.optimise.base import Optimiser
from metaspec.optimise.control import ControlPoints
from metaspec.optimise.loop import run
from metaspec.optimise.polishing import polish
from metaspec.optimise.problem import Problem, Score
from metaspec.optimise.record import History, Progress, Result
from metaspec.optimise.refinement import Refined, Refinement, refine
from metaspec.topology import PIXEL_NM, random_latents
from metaspec_contract.structures import PIXELS

__all__ = [
    "NAMES",
    "Adam",
    "ControlPoints",
    "History",
    "Optimiser",
    "Problem",
    "Progress",
    "Refined",
    "Refinement",
    "Result",
    "Score",
    "by_name",
    "polish",
    "refine",
    "run",
]


def __dir__() -> list[str]:
    return __all__


_GRADIENT = {  # name: module, class, required package, extra
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
"""Names of the optimisers."""


def by_name(
    name: str,
    starts: int = 16,
    seed: int = 0,
    *,
    shape: tuple[int, int] = (PIXELS, PIXELS),
    pixel_nm: float = PIXEL_NM,
    latents: ArrayLike | None = None,
    **settings: Any,
) -> Optimiser:
    """An optimiser with random starts, or with given ones first.

    Args:
        name: one of `NAMES`. "adam", "lbfgs", "torch", "optax" and "invrs" use gradients and vary every pixel; "cmaes",
            "de", "ga" and "botorch" are gradient-free and vary `points` x `points` control points.
        starts: batch size: number of starts of a gradient method, else of candidates per generation.
        seed: seed of the random number generator.
        shape: pixels (y, x) of a structure; `source.metadata().pixels` for another device than the default one.
        pixel_nm: width of a pixel in nm; `source.metadata().process.pixel_nm` likewise.
        latents: starts of a gradient method, (M, y, x) with M at most `starts`, such as `Parameterisation.latent` finds for
            given structures; the others are random.
        **settings: arguments of the optimiser's class; and `points` for a gradient-free one.

    Raises:
        ValueError: no such optimiser, too few starts for it, or latents that do not fit.
        ImportError: a required package is not installed; the extra that has it is named.
    """
    make = find(name, starts)
    if name in _GRADIENT:
        start = random_latents(starts, seed, shape, pixel_nm=pixel_nm)
        if latents is not None:
            given = np.asarray(latents, np.float64)
            if given.shape[1:] != shape or not 1 <= len(given) <= starts:
                raise ValueError(f"latents must be at most {starts} rows of {shape}, got shape {given.shape}")
            start[: len(given)] = given
        return make(start, **settings)
    if latents is not None:
        raise ValueError(f'latents are starts of gradient methods, {", ".join(_GRADIENT)}, not of "{name}"')
    points = settings.pop("points", 6 if name == "botorch" else 10)
    return ControlPoints(make(starts, seed, (points, points), **settings), shape)


def find(name: str, starts: int) -> Callable[..., Optimiser]:
    """The class of an optimiser. Arguments and errors are those of `by_name`."""
    if name not in NAMES:
        raise ValueError(f"optimiser must be one of {', '.join(NAMES)}, got {name!r}")
    module, kind, package, extra = (_GRADIENT | _GRADIENT_FREE)[name]
    try:
        make: Callable[..., Optimiser] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    except ImportError as error:
        raise missing_extra(f'the optimiser "{name}" needs', package, extra) from error
    fewest = getattr(make, "fewest", 1)
    if isinstance(starts, bool) or not isinstance(starts, int | np.integer) or starts < fewest:
        raise ValueError(f'starts must be a whole number of at least {fewest} for "{name}", got {starts!r}')
    return make
