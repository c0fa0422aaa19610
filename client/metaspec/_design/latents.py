"""Latents of given structures: what the filter and the threshold of an optimisation turn back into them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MARGINS = (0.1, 0.03, 0.01)  # beyond 1/2 for filtered latents to reach: first for safe edges, then for every pixel
_STEPS = 100  # for each margin


def latents_of(structure: NDArray[np.uint8], smooth: Callable[[Floats], Floats]) -> Floats:
    """Latents in [0, 1] whose filtered values lie on the side of 1/2 that a binary structure has, as far as there are such.

    They minimise the mean square of what the filtered values lack of 1/2 plus a margin in solid pixels, and exceed 1/2 minus it
    in void ones: a convex problem, solved by projected gradients with momentum (A. Beck and M. Teboulle, SIAM J. Imaging Sci.
    2, 183 (2009)).

    Args:
        structure: binary structures (..., y, x).
        smooth: filter of the latents, linear, self-adjoint and of norm 1.
    """
    side: Floats = np.where(structure > 0, 1.0, -1.0)
    latent = structure.astype(np.float64)
    for margin in _MARGINS:
        ahead, momentum = latent, 1.0
        for _ in range(_STEPS):
            lack = np.maximum(0, margin - side * (smooth(ahead) - 0.5))
            if not lack.any():
                return ahead
            before, latent = latent, np.clip(ahead + smooth(side * lack), 0, 1)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = np.clip(latent + (momentum - 1) / following * (latent - before), 0, 1)
            momentum = following
    return latent
