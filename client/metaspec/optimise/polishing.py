"""Polishing: good binary structures made better on a source whose gradient is exact but expensive, such as the solver."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metaspec.optimise.adam import Adam
from metaspec.optimise.loop import run
from metaspec.optimise.problem import Problem
from metaspec.optimise.record import Result
from metaspec.topology import beta_schedule, without_small_features
from metaspec_contract.structures import check_binary

_LEARNING_RATE = 0.06  # above that of a run from random starts: there are few steps
_BETAS, _STAGES = (10.0, 48.0), 5  # the minimum feature size counts in the last three, from a beta of 20
_CHECK_EVERY = 4
_REFINED = 0.05  # share of the steps at the end that refine binary structures


def polish(problem: Problem, structure: ArrayLike, steps: int = 90, **settings: Any) -> Result:
    """Improve binary structures in few steps; the result is never worse than they are.

    The structures themselves are the starting latents of Adam. In the first two fifths of the steps edges are soft and narrow
    features are free, so that shapes can change; then edges sharpen, and the minimum feature size of the parameterisation
    counts (see `Problem.evaluate`); the last steps refine the best binary structures (see `refine`).

    Args:
        problem: problem to solve, on an exact source.
        structure: binary structures (N, y, x); features that are too small are repaired first.
        steps: number of steps, each of one gradient for every structure.
        **settings: further arguments of `run`, such as `checkpoint`, `callback`, and `conditions` of structures that have
            their own.

    Raises:
        InvalidStructure: not binary structures.
        ValueError, SourceError: as for `run`.
    """
    start = check_binary(structure, problem.source.metadata().pixels)
    parameterisation = problem.parameterisation
    width, pixel = parameterisation.min_feature_nm, parameterisation.pixel_nm
    if width is not None:
        start = np.stack([without_small_features(one, width, pixel) for one in start])
    adam = Adam(start.astype(np.float64), learning_rate=_LEARNING_RATE)
    refines = width is not None and problem.refinable
    refined = round(_REFINED * steps) if refines else 0
    betas = [*beta_schedule(steps - refined, *_BETAS, stages=_STAGES).tolist(), *[np.inf] * refined]
    return run(problem, adam, steps, betas=betas, check_every=_CHECK_EVERY, structure=start, **settings)
