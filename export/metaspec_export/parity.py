"""Proof that the exported graph computes what the trained network does."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

TOLERANCE = 1e-5
"""Largest absolute difference between PyTorch and ONNX Runtime that an export may have, in efficiency."""


class ParityError(Exception):
    """The exported graph deviates from the network."""


def check_parity(network: nn.Module, graph: bytes, structures: NDArray[np.uint8], batch: int = 16) -> float:
    """Largest absolute difference of spectra between PyTorch and ONNX Runtime, both float32 on CPU.

    Args:
        network: in PyTorch.
        graph: serialised ONNX.
        structures: to compare on, (N, 128, 128).
        batch: structures in a run; one structure alone is run, too.

    Raises:
        ParityError: the difference exceeds `TOLERANCE`, or a value is not finite.
    """
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    density = structures[:, None].astype(np.float32)
    worst = 0.0
    for rows in (density[:1], *(density[start : start + batch] for start in range(0, len(density), batch))):
        with torch.inference_mode():
            expected = network.eval()(torch.from_numpy(rows)).flatten(1, 2).numpy()
        (got,) = session.run(["spectra"], {"structure": rows})
        difference = float(np.abs(got - expected).max())
        if not difference <= TOLERANCE:  # so written, NaN fails too
            raise ParityError(f"ONNX Runtime deviates from PyTorch by {difference:.1e}, allowed is {TOLERANCE:.0e}")
        worst = max(worst, difference)
    return worst
