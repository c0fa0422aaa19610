"""The hash by which printed results name the network that was measured."""

from __future__ import annotations

from torch import nn

from metaspec_export.graph import forward_graph
from metaspec_export.metadata import weights_sha256


def weights_hash(network: nn.Module) -> str:
    """First 12 digits of the weights' SHA-256, as in the metadata of the exported model."""
    return weights_sha256(forward_graph(network))[:12]
