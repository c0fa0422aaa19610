"""The phase of a predicted field, which no spectrum determines, compared with that of simulated orders.

A network that has learnt from spectra alone predicts fields with an arbitrary phase at each wavelength. Trained further on
orders, it would spend its first steps on unlearning that phase, at the cost of the spectra; turning the field is exact instead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metaspec_simulation.data.labels import ORDER_STEP, ORDERS_NM, thinned
from metaspec_simulation.dataset import Samples
from metaspec_training.data.augmentation import Expansion
from metaspec_training.data.packed import PackedSpectra
from metaspec_training.networks.field import DiffractionFieldNet

_BATCH, _MOST = 64, 512  # structures of a batch, and structures that the phase is found on


class Alignment(NamedTuple):
    """The phase between simulated and predicted orders, in the mean over structures.

    Attributes:
        phase: phase to turn the predicted field by in rad, (W,), a cubic of the wavelength.
        before: power of the difference between predicted and simulated orders, as a share of the power of the latter.
        after: the same once the field is turned.
        agreement: cosine of the phase, weighted by how far the orders correlate at each wavelength: 1 in phase, -1 opposite.
    """

    phase: NDArray[np.float64]
    before: float
    after: float
    agreement: float

    @property
    def learnt(self) -> bool:
        """Whether the network's phase is that of the simulation, within 60 degrees; otherwise the field is to be turned."""
        return self.agreement > 0.5


@torch.no_grad()
def field_phase(network: DiffractionFieldNet, samples: Samples) -> Alignment:
    """Find the phase that a predicted field has to be turned by, on up to 512 binary samples whose orders are known.

    Args:
        network: network, on any device.
        samples: samples of its process, loaded with orders, of the grid that it predicts.

    Raises:
        ValueError: no binary sample has orders.
    """
    part = samples.take(np.flatnonzero((samples.ordered >= 0) & (samples.grey < 0))[:_MOST])
    if not len(part):
        raise ValueError("the phase of the field needs binary samples that hold the orders under the layer, got none")
    device = next(network.parameters()).device
    wavelengths = part.process.wavelengths_nm
    packed, expansion = PackedSpectra(part), Expansion(wavelengths, np.zeros(0))
    product, power, predicted_power = torch.zeros(part.orders.shape[-1], dtype=torch.complex128), 0.0, 0.0
    for rows in np.split(np.arange(len(part)), range(_BATCH, len(part), _BATCH)):
        found = network.orders_of(network.maps(expansion(packed[rows.tolist()]).density.to(device))).cpu()
        true = ORDER_STEP * torch.from_numpy(part.orders[part.ordered[rows]]).float()
        ours, theirs = (torch.complex(*each.double().unbind(3)) for each in (found, true))
        product += (theirs * ours.conj()).sum(dim=(0, 1, 2, 3))
        power += float(theirs.abs().square().sum())
        predicted_power += float(ours.abs().square().sum())
    correlation, kept = product.numpy(), wavelengths[thinned(part.process, ORDERS_NM)]
    # Unwrapped from long wavelengths, where fewer orders propagate and their phase is known best. A cubic is smooth between
    # the knots of the splines, so that turning the field by it cannot harm the spectra.
    measured = np.unwrap(np.angle(correlation)[::-1])[::-1]
    fit = np.polynomial.Polynomial.fit(kept, measured, min(3, len(kept) - 1), w=np.abs(correlation))

    def error(phase: NDArray[np.float64]) -> float:
        return float(power + predicted_power - 2 * (correlation * np.exp(-1j * phase)).real.sum()) / power

    agreement = float(correlation.real.sum() / np.abs(correlation).sum())
    return Alignment(fit(wavelengths), error(np.zeros(len(kept))), error(fit(kept)), agreement)
