"""Labels of the field: the Fourier orders under the layer, moved as their structures are, on the device of the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_simulation.data.labels import ORDER_STEP, order_numbers
from metaspec_training.networks.symmetric import D4


class OrderLabels(nn.Module):
    """Orders of structures as simulated to those of the same structures after a translation and a symmetry of the square.

    A translation turns the phase of each order (the shift theorem); a symmetry exchanges orders, the components of the field,
    and the two polarisations of the incident light.

    Args:
        process: process of the data set.
    """

    numbers: Tensor
    source: Tensor
    sign: Tensor

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.pixels = process.pixels
        m, n = order_numbers(process)
        place = {order: k for k, order in enumerate(zip(m.tolist(), n.tolist(), strict=True))}
        source, sign = np.empty((len(D4), 2, 2, len(m)), np.int64), np.empty((len(D4), 2, 2, len(m)), np.float32)
        for element, symmetry in enumerate(D4):
            rows, columns = (-m if symmetry.flip_rows else m), (-n if symmetry.flip_columns else n)
            if symmetry.transpose:
                rows, columns = columns, rows
            k = np.array([place[order] for order in zip(rows.tolist(), columns.tolist(), strict=True)])
            mirrored = symmetry.flip_rows != symmetry.flip_columns  # which turns one component of the field around
            for polarisation in range(2):
                for component in range(2):
                    before = (1 - polarisation, 1 - component) if symmetry.transpose else (polarisation, component)
                    source[element, polarisation, component] = np.ravel_multi_index((*before, k), (2, 2, len(m)))
                    sign[element, polarisation, component] = -1 if mirrored and polarisation != component else 1
        for name, values in (
            ("numbers", np.stack([m, n]).astype(np.float32)),
            ("source", source.reshape(len(D4), -1)),
            ("sign", sign.reshape(len(D4), -1)),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, orders: Tensor, symmetry: Tensor, shift: Tensor) -> Tensor:
        """Orders of the moved structures in units of the incident amplitude.

        Args:
            orders: orders of the structures as simulated, as a data set packs them, int16 (G, 2, 2, 2, K, V).
            symmetry: index of an element of `D4`, (G,).
            shift: translations along rows and columns in pixels, applied before the symmetry, (G, 2).

        Returns:
            float32 (G, 2, 2, 2, K, V): polarisation, component, part, order, wavelength.
        """
        angle = -2 * torch.pi / self.pixels * (shift.float() @ self.numbers)
        cosine, sine = (part[:, None, None, :, None] for part in (ORDER_STEP * angle.cos(), ORDER_STEP * angle.sin()))
        real, imaginary = orders.float().unbind(3)
        moved = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
        source = self.source[symmetry][..., None, None].expand(-1, -1, *moved.shape[-2:])
        moved = moved.flatten(1, 3).gather(1, source) * self.sign[symmetry][..., None, None]
        return moved.unflatten(1, (2, 2, -1)).movedim(-1, 3)
