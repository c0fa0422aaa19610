"""The remote surrogate inside PyTorch's and JAX's automatic differentiation, against a running server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from metaspec import InvalidStructure, Surrogate
from metaspec.jax import spectra_function
from metaspec.torch import spectra_of
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected, ExpectedGradient


@pytest.fixture
def surrogate(server: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(server.url) as surrogate:
        yield surrogate


@pytest.fixture
def density() -> Array:
    return np.random.default_rng(4).uniform(0.2, 0.8, (3, 128, 128)).astype(np.float32)


@pytest.fixture
def weight() -> Array:
    return np.random.default_rng(5).normal(size=(3, 4, 301)).astype(np.float32)


def requests(url: str) -> int:
    """How many inference requests the server has answered."""
    text = httpx.get(url + "/metrics").text
    found = re.findall(r'^metaspec_requests_total\{route="/v2/models/\{model\}/infer",status="200"\} (.*)$', text, re.M)
    return int(float(found[0])) if found else 0


def test_torch_values_and_gradients(
    surrogate: Surrogate, density: Array, weight: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    tensor = torch.tensor(density, requires_grad=True)
    spectra = spectra_of(tensor, surrogate)
    np.testing.assert_allclose(spectra.detach(), expected(density), atol=1e-6)
    (spectra * torch.tensor(weight)).sum().backward()  # type: ignore[no-untyped-call]
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, expected_gradient(density, weight), atol=1e-6)


def test_torch_gradcheck(surrogate: Surrogate, density: Array) -> None:
    """Against finite differences along random directions; the server computes in float32, so the steps are large."""
    tensor = torch.tensor(density[:1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: spectra_of(x, surrogate), (tensor,), eps=1e-1, atol=1e-3, rtol=1e-2, fast_mode=True
    )


@pytest.mark.parametrize("lead", [(), (3,), (3, 1), (0,)])
def test_torch_shapes_and_dtypes(
    surrogate: Surrogate, density: Array, expected: Expected, lead: tuple[int, ...]
) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        count = int(np.prod(lead))
        tensor = torch.tensor(density[:count], dtype=dtype).reshape(*lead, 128, 128).requires_grad_()
        spectra = spectra_of(tensor, surrogate)
        assert (spectra.shape, spectra.dtype) == ((*lead, 4, 301), dtype)
        (gradient,) = torch.autograd.grad(spectra.sum(), tensor)
        assert (gradient.shape, gradient.dtype) == (tensor.shape, dtype)


def test_torch_in_the_middle_of_a_graph(surrogate: Surrogate, density: Array) -> None:
    """Also through what comes before and after it."""
    latent = torch.tensor(density, requires_grad=True)
    optimizer = torch.optim.Adam([latent], lr=0.2)
    losses = []
    for _ in range(5):
        loss = -spectra_of(torch.sigmoid(4 * (latent - 0.5)), surrogate)[:, 3, :100].mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-3


def test_torch_refuses_second_derivatives(surrogate: Surrogate, density: Array) -> None:
    tensor = torch.tensor(density, requires_grad=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(spectra_of(tensor, surrogate).sum(), tensor, create_graph=True)


def test_torch_refuses_what_is_no_structure(surrogate: Surrogate) -> None:
    with pytest.raises(InvalidStructure, match="got 2 at structure 0"):
        spectra_of(torch.full((1, 128, 128), 2.0), surrogate)


def test_jax_values_and_gradients(
    surrogate: Surrogate, density: Array, weight: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    spectra = spectra_function(surrogate)
    np.testing.assert_allclose(spectra(jnp.asarray(density)), expected(density), atol=1e-6)
    for transform in (lambda f: f, jax.jit):
        gradient = transform(jax.grad(lambda x: (spectra(x) * weight).sum()))(jnp.asarray(density))
        np.testing.assert_allclose(gradient, expected_gradient(density, weight), atol=1e-6)


def test_jax_check_grads(surrogate: Surrogate, density: Array) -> None:
    spectra = spectra_function(surrogate)
    check_grads(  # type: ignore[no-untyped-call]
        spectra, (jnp.asarray(density[:1]),), order=1, modes=["rev"], eps=4e-2, atol=2e-2, rtol=2e-2
    )


def test_jax_vmap_is_one_request(
    server: RunningServer,
    surrogate: Surrogate,
    density: Array,
    weight: Array,
    expected: Expected,
    expected_gradient: ExpectedGradient,
) -> None:
    spectra = spectra_function(surrogate)
    before = requests(server.url)
    mapped = jax.jit(jax.vmap(spectra))(jnp.asarray(density))
    np.testing.assert_allclose(mapped, expected(density), atol=1e-6)
    assert requests(server.url) == before + 1

    def loss(one: jax.Array, weights: jax.Array) -> jax.Array:
        return (spectra(one) * weights).sum()

    gradient = jax.jit(jax.vmap(jax.grad(loss)))(jnp.asarray(density), jnp.asarray(weight))
    np.testing.assert_allclose(gradient, expected_gradient(density, weight), atol=1e-6)
    # JAX leaves out the forward call, whose result nobody needs.
    assert requests(server.url) - before <= 3


def test_jax_refuses_second_derivatives(surrogate: Surrogate, density: Array) -> None:
    spectra = spectra_function(surrogate)
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(jax.grad(lambda x: spectra(x * density[0]).sum()))(jnp.float32(1.0))


def test_jax_passes_errors_on(surrogate: Surrogate) -> None:
    with pytest.raises(Exception, match="must lie between 0"):
        spectra_function(surrogate)(jnp.full((1, 128, 128), 2.0)).block_until_ready()
