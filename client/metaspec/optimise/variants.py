"""Variants of a design that a process may leave in its place: over- and under-etched, or at the corners of a lithography."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metaspec.fabrication import Corner, fabricate, pull_back
from metaspec.optimise.base import Array
from metaspec.topology import Parameterisation


class Variant(Protocol):
    """A map from latents and their nominal densities to other densities, all (N, y, x)."""

    def density(self, latent: Array, nominal: Array, beta: float) -> Array:
        """Densities of the variant; beta may be infinite."""

    def pull_back(self, latent: Array, nominal: Array, cotangent: Array, beta: float) -> Array:
        """The gradient of sum(cotangent * density) with respect to the latents; beta is finite."""


@dataclass(frozen=True)
class Nominal:
    """The design itself.

    Args:
        parameterisation: map from latents to densities.
    """

    parameterisation: Parameterisation

    def density(self, latent: Array, nominal: Array, beta: float) -> Array:
        """The nominal densities."""
        return nominal

    def pull_back(self, latent: Array, nominal: Array, cotangent: Array, beta: float) -> Array:
        """Their gradient."""
        return self.parameterisation.pull_back(latent, cotangent, beta)


@dataclass(frozen=True)
class Etched:
    """The latents at another threshold: eroded above 1/2, dilated below.

    Args:
        parameterisation: map from latents to densities.
        eta: threshold.
    """

    parameterisation: Parameterisation
    eta: float

    def density(self, latent: Array, nominal: Array, beta: float) -> Array:
        """Densities at the threshold; binary ones are not repaired, so they need not keep a minimum feature size."""
        density: Array = self.parameterisation.density(latent, beta, self.eta)
        return density

    def pull_back(self, latent: Array, nominal: Array, cotangent: Array, beta: float) -> Array:
        """Their gradient."""
        return self.parameterisation.pull_back(latent, cotangent, beta, self.eta)


@dataclass(frozen=True)
class Fabricated:
    """The nominal densities, blurred and biased.

    Args:
        parameterisation: map from latents to densities.
        corner: corner of the process.
    """

    parameterisation: Parameterisation
    corner: Corner

    def density(self, latent: Array, nominal: Array, beta: float) -> Array:
        """What the process makes of the nominal densities."""
        density: Array = fabricate(nominal.astype(float), self.corner, beta, self.parameterisation.pixel_nm)
        return density

    def pull_back(self, latent: Array, nominal: Array, cotangent: Array, beta: float) -> Array:
        """Their gradient."""
        by_nominal = pull_back(nominal, cotangent, self.corner, beta, self.parameterisation.pixel_nm)
        return self.parameterisation.pull_back(latent, by_nominal, beta)
