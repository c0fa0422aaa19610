"""A colour router by gradient descent in PyTorch: 8 random starts, the network on the server, the optimiser local.

Start a server with `make serve`, then: python client/examples/torch_gradient.py [URL]     (pip install "metaspec[torch]")
"""

import sys

import numpy as np
import torch

from metaspec import Surrogate
from metaspec.objectives import MinEfficiency
from metaspec.torch import spectra_of

STEPS = 30
torch.manual_seed(0)

frequency = torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128))
low_pass = torch.exp(-((frequency * 35) ** 2))


def smooth(field: torch.Tensor) -> torch.Tensor:
    """Remove features much smaller than the wavelength, which have no optical effect."""
    return torch.fft.irfft2(torch.fft.rfft2(field) * low_pass)


latent = (20 * torch.randn(8, 128, 128)).requires_grad_()
optimizer = torch.optim.Adam([latent], lr=2.0)
with Surrogate(*sys.argv[1:2]) as surrogate:
    info = surrogate.metadata()

    def smallest_efficiency(density: torch.Tensor) -> torch.Tensor:
        """The smallest of the efficiencies of red, green and blue, (N,)."""
        spectra = spectra_of(density, surrogate)
        return MinEfficiency().score(spectra, info.wavelengths_nm, info.channels)

    for step in range(STEPS):
        density = torch.sigmoid((1 + 8 * step / STEPS) * smooth(latent))  # increasingly binary
        worst = smallest_efficiency(density)
        optimizer.zero_grad()
        (-worst.sum()).backward()
        optimizer.step()
        print(f"step {step:2d}: smallest of the three efficiencies {worst.max().item():.3f} in the best start")
    binary = smooth(latent.detach()) > 0
    final = smallest_efficiency(binary.float())

best = int(final.argmax())
np.save("router.npy", binary[best].numpy())
print(f"binary: {final[best].item():.3f}, predicted; router.npy holds the structure. Verify it with the solver.")
