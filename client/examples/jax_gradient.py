"""The gradient of a figure of merit in JAX, under jit and vmap: the network on the server, everything else local.

Start a server with `make serve`, then: python client/examples/jax_gradient.py [URL]     (pip install "metaspec[jax]")
"""

import sys

import jax
import jax.numpy as jnp

from metaspec import Surrogate
from metaspec.jax import spectra_function

STEPS = 15

with Surrogate(*sys.argv[1:2]) as surrogate:
    spectra_of = spectra_function(surrogate)

    def blue_on_its_detector(latent: jax.Array) -> jax.Array:
        """Mean efficiency of detector B from 400 to 499 nm for one latent (128, 128)."""
        return spectra_of(jax.nn.sigmoid(latent))[3, :100].mean()

    step = jax.jit(jax.vmap(jax.value_and_grad(blue_on_its_detector)))  # 4 starts, one request
    noise = jnp.fft.rfft2(jax.random.normal(jax.random.key(0), (4, 128, 128)))
    frequency = jnp.hypot(jnp.fft.fftfreq(128)[:, None], jnp.fft.rfftfreq(128))
    low_pass = jnp.exp(-((frequency * 35) ** 2))
    latent = jnp.fft.irfft2(noise * low_pass) * 30
    for number in range(STEPS):
        efficiency, gradient = step(latent)
        gradient = jnp.fft.irfft2(jnp.fft.rfft2(gradient) * low_pass)
        latent += 0.5 * gradient / jnp.abs(gradient).max(axis=(1, 2), keepdims=True)
        print(f"step {number:2d}: efficiency of blue {', '.join(f'{value:.3f}' for value in efficiency)}")
