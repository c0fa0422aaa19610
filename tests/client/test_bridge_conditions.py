"""Conditions in PyTorch's and JAX's automatic differentiation, against a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from metaspec import InvalidCondition, Surrogate
from metaspec.jax import spectra_function
from metaspec.torch import spectra_of
from metaspec_testing.direct import Direct
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

ONCE = "first derivatives in reverse mode only"


@pytest.fixture(scope="module")
def surrogate(conditioned: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(conditioned.url) as surrogate:
        yield surrogate


@pytest.fixture
def distance() -> Array:
    return np.array([1.25, 2.0, 2.75], np.float32)


@pytest.fixture
def incidence() -> Array:
    return np.random.default_rng(6).uniform(-15, 15, (3, 2)).astype(np.float32)


def close(found: Any, expected: Array) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-5)


def test_torch_gradients_with_respect_to_each(
    surrogate: Surrogate, direct: Direct, density: Array, weight: Array, distance: Array, incidence: Array
) -> None:
    tensors = [torch.tensor(array, requires_grad=True) for array in (density, distance, incidence)]
    spectra = spectra_of(tensors[0], surrogate, distance_um=tensors[1], incidence=tensors[2])
    close(spectra.detach(), direct.spectra(density, distance_um=distance, incidence=incidence))
    by_density, by_distance, by_incidence = torch.autograd.grad((spectra * torch.tensor(weight)).sum(), tensors)
    expected = direct.gradients(density, weight, distance_um=distance, incidence=incidence)
    close(by_density, expected["gradient"][:, 0])
    close(by_distance, expected["gradient_distance_um"][:, 0])
    close(by_incidence, expected["gradient_incidence"])


def test_torch_scalars_get_the_sum(surrogate: Surrogate, direct: Direct, density: Array, weight: Array) -> None:
    scalar = torch.tensor(1.25, dtype=torch.float64, requires_grad=True)
    spectra = spectra_of(torch.tensor(density), surrogate, distance_um=scalar, incidence=[3, -4.5])
    (spectra * torch.tensor(weight)).sum().backward()  # type: ignore[no-untyped-call]
    expected = direct.gradients(density, weight, distance_um=1.25, incidence=[3, -4.5])
    close(spectra.detach(), expected["spectra"])
    assert scalar.grad is not None
    assert scalar.grad.dtype == torch.float64
    close(scalar.grad, expected["gradient_distance_um"].sum())


def test_torch_shapes(surrogate: Surrogate, direct: Direct, density: Array) -> None:
    expected = direct.spectra(density, distance_um=2)
    stacked = torch.tensor(density)[:, None]
    for values in (2, torch.tensor(2), torch.full((3, 1), 2.0), torch.full((1, 1), 2.0), torch.full((3, 1, 1), 2.0)):
        close(spectra_of(stacked, surrogate, distance_um=values)[:, 0], expected)
    close(spectra_of(torch.tensor(density[0]), surrogate, distance_um=torch.tensor([2.0])), expected[0])
    close(spectra_of(torch.tensor(density), surrogate, distance_um=None), direct.spectra(density))
    close(spectra_of(torch.tensor(density), surrogate, distance_um=torch.tensor(2.0).bfloat16()), expected)
    assert spectra_of(stacked[:0], surrogate, distance_um=torch.zeros(0, 1)).shape == (0, 1, 4, 301)


def test_torch_functions(
    surrogate: Surrogate, direct: Direct, density: Array, weight: Array, distance: Array, incidence: Array
) -> None:
    """`vmap` over any of the arguments is one batch; `grad` with respect to any of them."""
    x, w, d, i = (torch.tensor(array) for array in (density, weight, distance, incidence))

    def loss(x: torch.Tensor, d: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (spectra_of(x, surrogate, distance_um=d, incidence=i) * w).sum()

    expected = direct.gradients(density, weight, distance_um=distance, incidence=incidence)
    before = surrogate.sent.requests
    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, d, i, w)
    assert surrogate.sent.requests == before + 2
    for found, name in zip(each, ("gradient", "gradient_distance_um", "gradient_incidence"), strict=True):
        close(found, expected[name].reshape(found.shape))
    at_all = torch.func.vmap(lambda d: spectra_of(x[0], surrogate, distance_um=d, incidence=i[0]))(d)
    same = np.repeat(density[:1], 3, axis=0)
    close(at_all, direct.spectra(same, distance_um=distance, incidence=incidence[0]))
    over_distance = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0, None, None))
    by_density, by_distance = over_distance(x[0], d, i[0], w[0])
    weights = np.repeat(weight[:1], 3, axis=0)
    expected = direct.gradients(same, weights, distance_um=distance, incidence=incidence[0])
    close(by_density, expected["gradient"][:, 0])
    close(by_distance, expected["gradient_distance_um"][:, 0])
    before = surrogate.sent.structures
    jacobian = torch.func.jacrev(lambda d: spectra_of(x[0], surrogate, distance_um=d)[1, 40:43])(torch.tensor(2.0))
    assert surrogate.sent.structures == before + 1 + 3
    units = np.zeros((3, 4, 301))
    units[range(3), 1, range(40, 43)] = 1
    close(jacobian, direct.gradients(same, units, distance_um=2)["gradient_distance_um"][:, 0])


def test_torch_refusals(surrogate: Surrogate, density: Array) -> None:
    tensor, before = torch.tensor(density), surrogate.sent
    for value, message in (
        (torch.ones(2), r"must be a number, or broadcast to \(3,\), for densities \(3, y, x\), got an array \(2,\)"),
        (torch.ones(1, 3), r"must be a number, or .*, got an array \(1, 3\)"),
        (torch.tensor([4.0, 2, 2]), "must lie between 1 and 3 um, got 4 at structure 0"),
        (torch.tensor(1j), "must be numbers between 1 and 3 um, got torch.complex64"),
        ("far", "must be numbers between 1 and 3 um, got <U3"),
    ):
        with pytest.raises(InvalidCondition, match=f"^distance_um {message}"):
            spectra_of(tensor, surrogate, distance_um=value)
    with pytest.raises(
        InvalidCondition, match=r"^incidence must broadcast to \(3, 2\) for densities .*, got an array \(1,\)$"
    ):
        spectra_of(tensor, surrogate, incidence=torch.tensor([1.0]))
    with pytest.raises(
        InvalidCondition, match=r"^thickness_um is no condition of this model, which takes distance_um "
    ):
        spectra_of(tensor, surrogate, thickness_um=1)
    assert surrogate.sent == before
    scalar = torch.tensor(2.0, requires_grad=True)
    loss = (spectra_of(tensor, surrogate, distance_um=scalar) ** 2).sum()
    (first,) = torch.autograd.grad(loss, scalar, create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE):
        torch.autograd.grad(first, scalar)


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_jax_gradients_with_respect_to_each(
    surrogate: Surrogate,
    direct: Direct,
    density: Array,
    weight: Array,
    distance: Array,
    incidence: Array,
    outer: Callable[..., Any],
) -> None:
    spectra = spectra_function(surrogate)

    def loss(x: Any, d: Any, i: Any, w: Any) -> Any:
        return (spectra(x, distance_um=d, incidence=i) * w).sum()

    given = [jnp.asarray(array) for array in (density, distance, incidence, weight)]
    close(
        outer(lambda x, d, i: spectra(x, distance_um=d, incidence=i))(*given[:3]),
        direct.spectra(density, distance_um=distance, incidence=incidence),
    )
    expected = direct.gradients(density, weight, distance_um=distance, incidence=incidence)
    names = "gradient", "gradient_distance_um", "gradient_incidence"
    for gradient in (jax.grad(loss, argnums=(0, 1, 2)), jax.vmap(jax.grad(loss, argnums=(0, 1, 2)))):
        for found, name in zip(outer(gradient)(*given), names, strict=True):
            close(found, expected[name].reshape(found.shape))
    for n in range(3):
        found = outer(jax.grad(loss, argnums=n))(*given)
        close(found, expected[names[n]].reshape(found.shape))


def test_jax_scalars_get_the_sum(surrogate: Surrogate, direct: Direct, density: Array, weight: Array) -> None:
    spectra, x = spectra_function(surrogate), jnp.asarray(density)
    found, pull = jax.vjp(lambda d: spectra(x, distance_um=d, incidence=(3, -4.5)), jnp.float32(1.25))
    expected = direct.gradients(density, weight, distance_um=1.25, incidence=[3, -4.5])
    close(found, expected["spectra"])
    close(pull(jnp.asarray(weight))[0], expected["gradient_distance_um"].sum())
    assert jax.grad(lambda d: spectra(x, distance_um=d).sum())(jnp.bfloat16(2)).dtype == jnp.bfloat16


def test_jax_maps_over_conditions_alone(
    surrogate: Surrogate, direct: Direct, density: Array, weight: Array, distance: Array
) -> None:
    spectra, same = spectra_function(surrogate), np.repeat(density[:1], 3, axis=0)
    one, before = jnp.asarray(density[0]), surrogate.sent.requests
    found = jax.vmap(lambda d: spectra(one, distance_um=d))(jnp.asarray(distance))
    assert surrogate.sent.requests == before + 1
    close(found, direct.spectra(same, distance_um=distance))

    def loss(x: Any, d: Any) -> Any:
        return (spectra(x, distance_um=d) * weight[0]).sum()

    by_density, by_distance = jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(None, 0))(one, distance)
    expected = direct.gradients(same, np.repeat(weight[:1], 3, axis=0), distance_um=distance)
    close(by_density, expected["gradient"][:, 0])
    close(by_distance, expected["gradient_distance_um"][:, 0])
    jacobian = jax.jacrev(lambda d: spectra(one, distance_um=d)[1, 40:43])(jnp.float32(2))
    units = np.zeros((3, 4, 301))
    units[range(3), 1, range(40, 43)] = 1
    close(jacobian, direct.gradients(same, units, distance_um=2)["gradient_distance_um"][:, 0])


def test_jax_refusals(surrogate: Surrogate, density: Array) -> None:
    spectra, x, before = spectra_function(surrogate), jnp.asarray(density), surrogate.sent
    for transform in (lambda f: f, jax.jit):
        with pytest.raises(
            InvalidCondition, match=r"^distance_um must be a number, or .* \(3,\), .*, got an array \(2,\)"
        ):
            transform(lambda d: spectra(x, distance_um=d))(jnp.ones(2))
        with pytest.raises(InvalidCondition, match=r"^thickness_um is no condition of this model"):
            transform(lambda d: spectra(x, thickness_um=d))(jnp.ones(3))
        with pytest.raises(InvalidCondition, match=r"^distance_um must be numbers between 1 and 3 um, got complex64"):
            transform(lambda d: spectra(x, distance_um=d))(jnp.complex64(1))
    for refused in (jax.jacfwd, jax.hessian):
        with pytest.raises(TypeError, match=ONCE):
            refused(lambda d: spectra(x, distance_um=d).sum())(jnp.float32(2))
    assert surrogate.sent == before
    with pytest.raises(Exception, match="distance_um must lie between 1 and 3 um, got 4"):
        spectra(x, distance_um=4).block_until_ready()
