"""A colour router by gradient descent in PyTorch: 8 random starts at once, the network on the server, the optimiser here.

Start a server with `make serve`, then: python client/examples/torch_gradient.py [URL]     (pip install "metaspec[torch]")
"""

import sys

import numpy as np
import torch

from metaspec import Surrogate
from metaspec.torch import spectra_of

STEPS = 30
torch.manual_seed(0)

# Blue, green and red bands in steps of 1 nm from 400 nm, and their detectors among R, G1, G2, B.
BANDS = [(slice(0, 100), [3]), (slice(100, 200), [1, 2]), (slice(200, 300), [0])]
frequency = torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128))
low_pass = torch.exp(-((frequency * 35) ** 2))


def smooth(field: torch.Tensor) -> torch.Tensor:
    """Features much smaller than the wavelength do nothing but complicate the pattern."""
    return torch.fft.irfft2(torch.fft.rfft2(field) * low_pass)


def efficiencies(spectra: torch.Tensor) -> torch.Tensor:
    """Colour efficiencies (N, 3): the mean over a band of the power in its detectors."""
    return torch.stack([spectra[:, detectors, band].sum(1).mean(-1) for band, detectors in BANDS], dim=1)


latent = (20 * torch.randn(8, 128, 128)).requires_grad_()
optimizer = torch.optim.Adam([latent], lr=2.0)
with Surrogate(*sys.argv[1:2]) as surrogate:
    for step in range(STEPS):
        density = torch.sigmoid((1 + 8 * step / STEPS) * smooth(latent))  # sharper with every step
        worst = efficiencies(spectra_of(density, surrogate)).amin(dim=1)
        optimizer.zero_grad()
        (-worst.sum()).backward()
        optimizer.step()
        print(f"step {step:2d}: smallest of the three efficiencies {worst.max().item():.3f} in the best start")
    binary = smooth(latent.detach()) > 0
    final = efficiencies(spectra_of(binary.float(), surrogate)).amin(dim=1)

best = int(final.argmax())
np.save("router.npy", binary[best].numpy())
print(f"binary: {final[best].item():.3f}, predicted; router.npy has the structure. Check it with the solver.")
