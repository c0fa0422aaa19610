"""A model's estimate of its own uncertainty, as an objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaspec._design.objective import Floats, Linear
from metaspec_contract.detectors import SPREAD, channel_index


@dataclass(frozen=True)
class Spread(Linear):
    """Mean over the wavelengths of the channel "spread", a model's estimate of its own uncertainty. Subtract it."""

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        if SPREAD not in channels:
            raise ValueError(f'the model has no channel "{SPREAD}", only {", ".join(channels)}: leave out Spread()')
        weights = np.zeros((len(channels), len(wavelengths_nm)))
        weights[channel_index(SPREAD, channels)] = 1 / weights.shape[1]
        return weights
