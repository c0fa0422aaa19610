"""The hash by which printed results name the network that was measured."""

from __future__ import annotations

from torch import nn

from metaspec_export.metadata import network_sha256


def weights_hash(network: nn.Module) -> str:
    """First 12 digits of the SHA-256 of the trained weights, as in the metadata of the exported models."""
    return network_sha256(network)[:12]
