"""The remote surrogate inside PyTorch's and JAX's automatic differentiation, against a running server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from metaspec import AsyncSurrogate, InvalidStructure, Surrogate
from metaspec.jax import spectra_function
from metaspec.torch import spectra_of
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected, ExpectedGradient

ONCE = "first derivatives in reverse mode only: no second derivatives, and no forward mode"


@pytest.fixture
def surrogate(server: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(server.url) as surrogate:
        yield surrogate


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
    first = torch.autograd.grad((spectra_of(tensor, surrogate) ** 2).sum(), tensor, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=ONCE):
        torch.autograd.grad(first.sum(), tensor)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, lambda f: torch.func.grad(torch.func.grad(f))])
def test_torch_refuses_forward_mode_and_second_derivatives_of_functions(
    surrogate: Surrogate, density: Array, transform: Callable[..., Any]
) -> None:
    constant = torch.tensor(density)
    with pytest.raises(RuntimeError, match=ONCE):
        transform(lambda x: spectra_of(x * constant, surrogate).sum())(torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
def test_torch_takes_integers(surrogate: Surrogate, structures: Array, expected: Expected, dtype: torch.dtype) -> None:
    """Such as the designs of a run folder, which are uint8."""
    spectra = spectra_of(torch.tensor(structures).to(dtype), surrogate)
    assert (spectra.dtype, spectra.requires_grad) == (torch.float32, False)
    np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)
    with pytest.raises(RuntimeError, match="floating point"):
        torch.func.grad(lambda x: spectra_of(x, surrogate).sum())(torch.tensor(structures))


def test_torch_narrow_floats_and_autocast(
    surrogate: Surrogate, density: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    narrow = torch.tensor(density).bfloat16().requires_grad_()
    spectra = spectra_of(narrow, surrogate)
    spectra.sum().backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None
    assert (spectra.dtype, narrow.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    given = narrow.detach().float().numpy()
    np.testing.assert_allclose(spectra.detach().float(), expected(given), rtol=2**-8)
    wanted = expected_gradient(given, np.ones((3, 4, 301)))
    np.testing.assert_allclose(narrow.grad.float(), wanted, rtol=2**-8)
    layer = torch.nn.Linear(128, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = spectra_of(torch.sigmoid(layer(torch.tensor(density))), surrogate).float().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_torch_results_can_be_changed_in_place(
    surrogate: Surrogate, density: Array, weight: Array, expected_gradient: ExpectedGradient
) -> None:
    tensor = torch.tensor(density, requires_grad=True)
    spectra = spectra_of(tensor, surrogate)
    spectra *= torch.tensor(weight)
    spectra.sum().backward()  # type: ignore[no-untyped-call]
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad, expected_gradient(density, weight), atol=1e-6)


def test_torch_functions_are_one_batch(
    surrogate: Surrogate, density: Array, weight: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    """`grad`, `vjp`, `vmap` and `jacrev`; K cotangents of a structure are sent with one copy of it each."""
    tensor, weights = torch.tensor(density), torch.tensor(weight)
    wanted = expected_gradient(density, weight)

    def loss(one: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (spectra_of(one, surrogate) * weights).sum()

    def sent() -> int:
        return surrogate.sent.requests

    np.testing.assert_allclose(torch.func.grad(loss)(tensor, weights), wanted, atol=1e-6)
    _, pull = torch.func.vjp(lambda x: spectra_of(x, surrogate), tensor)  # type: ignore[misc]
    np.testing.assert_allclose(pull(weights)[0], wanted, atol=1e-6)
    before = sent()
    mapped = torch.func.vmap(lambda x: spectra_of(x, surrogate))(tensor)
    assert sent() == before + 1
    np.testing.assert_allclose(mapped, expected(density), atol=1e-6)
    before = sent()
    each = torch.func.vmap(torch.func.grad(loss))(tensor, weights)
    assert sent() == before + 2
    np.testing.assert_allclose(each, wanted, atol=1e-6)
    several = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensor[0], weights)
    np.testing.assert_allclose(several, expected_gradient(np.repeat(density[:1], 3, axis=0), weight), atol=1e-6)
    before = sent()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: spectra_of(x, surrogate)[1, 40:43]))(tensor)
    assert sent() == before + 2
    for n in range(3):
        unit = np.zeros((3, 4, 301))
        unit[:, 1, 40 + n] = 1
        np.testing.assert_allclose(jacobian[:, n], expected_gradient(density, unit), atol=1e-6)


def test_torch_refuses_what_is_no_structure(surrogate: Surrogate, density: Array) -> None:
    with pytest.raises(InvalidStructure, match="got 2 at structure 0"):
        spectra_of(torch.full((1, 128, 128), 2.0), surrogate)
    with pytest.raises(InvalidStructure, match=r"must be real numbers from 0 .*, got torch\.complex64"):
        spectra_of(torch.tensor(density).to(torch.complex64), surrogate)
    with pytest.raises(TypeError, match="density must be a torch tensor, got ndarray"):
        spectra_of(density, surrogate)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [lambda source: spectra_of(torch.zeros(128, 128), source), spectra_function])
@pytest.mark.parametrize("source", [AsyncSurrogate(), Surrogate, "http://127.0.0.1:8000"])
def test_sources_that_are_none(use: Callable[[Any], Any], source: Any) -> None:
    with pytest.raises(TypeError, match=r"source must be a Surrogate or another Source, got "):
        use(source)


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


def pushed(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.jvp(f, (x,), (x,))[1]


REFUSED = {
    "jvp": pushed,
    "jvp of jit": lambda f: pushed(jax.jit(f)),
    "jit of jvp": lambda f: jax.jit(pushed(f)),
    "jacfwd": jax.jacfwd,
    "jit of jacfwd": lambda f: jax.jit(jax.jacfwd(f)),
    "vmap of jvp": lambda f: lambda x: jax.vmap(pushed(f))(jnp.stack([x, x])),
    "jvp of checkpoint": lambda f: pushed(jax.checkpoint(f)),
    "hessian": jax.hessian,
    "jit of hessian": lambda f: jax.jit(jax.hessian(f)),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "jit of grad of grad": lambda f: jax.jit(jax.grad(jax.grad(f))),
}


@pytest.mark.parametrize("transform", REFUSED.values(), ids=REFUSED)
def test_jax_refuses_other_derivatives_before_anything_is_sent(
    surrogate: Surrogate, density: Array, transform: Callable[..., Any]
) -> None:
    spectra, before = spectra_function(surrogate), surrogate.sent
    with pytest.raises(TypeError, match=f"{ONCE}.*; use jax.grad, jax.vjp or jax.jacrev, once"):
        transform(lambda x: (spectra(x * density[0]) ** 2).sum())(jnp.float32(1.0))
    assert surrogate.sent == before


def test_jax_refuses_second_derivatives(surrogate: Surrogate, density: Array) -> None:
    spectra = spectra_function(surrogate)
    with pytest.raises(TypeError, match=ONCE):
        jax.grad(jax.grad(lambda x: (spectra(x * density[0]) ** 2).sum()))(jnp.float32(1.0))


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_jax_gradients_through_its_transformations(
    surrogate: Surrogate,
    density: Array,
    weight: Array,
    expected_gradient: ExpectedGradient,
    outer: Callable[..., Any],
) -> None:
    spectra = spectra_function(surrogate)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return (spectra(x) * w).sum()

    def scanned(x: jax.Array, w: jax.Array) -> Any:
        return jax.lax.scan(lambda total, row: (total + loss(*row), None), jnp.float32(0), (x, w))[0]

    def mapped(x: jax.Array, w: jax.Array) -> Any:
        return jax.vmap(jax.jit(loss))(x, w).sum()

    def chosen(x: jax.Array, w: jax.Array) -> Any:
        return jax.lax.cond(x.sum() > 0, loss, lambda x, w: x.sum(), x, w)

    def linearised(x: jax.Array, w: jax.Array) -> Any:
        _, derivative = jax.linearize(spectra, x)
        return jax.linear_transpose(derivative, x)(w)[0]

    def by_last_axis(x: jax.Array, w: jax.Array) -> Any:
        return jax.vmap(jax.grad(loss), in_axes=(2, 0))(jnp.moveaxis(x, 0, 2), w)

    wanted = expected_gradient(density, weight)
    of_losses = [jax.grad(f) for f in (loss, scanned, mapped, chosen, jax.checkpoint(loss))]
    for gradient in (*of_losses, linearised, by_last_axis):
        np.testing.assert_allclose(outer(gradient)(jnp.asarray(density), jnp.asarray(weight)), wanted, atol=1e-5)


LEFT_BEHIND = """
import sys, time
import jax, jax.numpy as jnp
from metaspec import Surrogate
from metaspec.jax import spectra_function

class Slow(Surrogate):
    def predict(self, structures, **options):
        time.sleep(0.5)
        return super().predict(structures, **options)

spectra = spectra_function(Slow(sys.argv[1]))
density = jnp.full((128, 128), 0.5)

def loss(scale, density=density):
    return (spectra(scale * density) ** 2).sum()

for refused, scale in ((jax.jacfwd, 1.0), (jax.hessian, 1.0), (jax.grad, 1), (lambda f: jax.grad(jax.grad(f)), 1.0)):
    try:
        refused(loss)(scale)
    except TypeError:
        print("refused")
step = jax.jit(jax.value_and_grad(loss))
large = jnp.ones((1500, 1500))
for waits in (jax.block_until_ready, id):    # the second time, all is compiled
    late = large @ large @ large / 1500**2    # JAX computes this, and what depends on it, while the script goes on
    waits(step(1.0, late[:128, :128] * density))
print("end")
"""


def test_jax_processes_end_in_order_while_requests_are_in_flight(server: RunningServer) -> None:
    """JAX's threads abort a process that ends while they compute, with status 134, or block it."""
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", LEFT_BEHIND, server.url], capture_output=True, text=True, timeout=240
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "refused\n" * 4 + "end\n", "")


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bool_, jnp.int32])
def test_jax_takes_integers(surrogate: Surrogate, structures: Array, expected: Expected, dtype: Any) -> None:
    spectra = spectra_function(surrogate)
    for transform in (lambda f: f, jax.jit, jax.vmap):
        found = transform(spectra)(jnp.asarray(structures, dtype))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected(structures), atol=1e-6)
    with pytest.raises(TypeError, match="real- or complex-valued inputs"):
        jax.grad(lambda x: spectra(x).sum())(jnp.asarray(structures, dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_jax_narrow_floats(surrogate: Surrogate, density: Array, expected: Expected, dtype: Any) -> None:
    spectra = spectra_function(surrogate)
    narrow = jnp.asarray(density, dtype)
    found, pull = jax.vjp(spectra, narrow)
    assert (found.dtype, pull(jnp.ones_like(found))[0].dtype) == (dtype, dtype)
    np.testing.assert_allclose(found.astype(float), expected(np.asarray(narrow.astype(float))), rtol=2**-8, atol=1e-5)


def test_jax_jacobians_are_one_batch(surrogate: Surrogate, density: Array, expected_gradient: ExpectedGradient) -> None:
    spectra = spectra_function(surrogate)
    before = surrogate.sent.requests
    jacobian = jax.vmap(jax.jacrev(lambda x: spectra(x)[1, 40:43]))(jnp.asarray(density))
    assert surrogate.sent.requests == before + 2
    for n in range(3):
        unit = np.zeros((3, 4, 301))
        unit[:, 1, 40 + n] = 1
        np.testing.assert_allclose(jacobian[:, n], expected_gradient(density, unit), atol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, lambda f: jax.grad(lambda x: f(x).sum())])
def test_jax_checks_shapes_when_it_traces(surrogate: Surrogate, transform: Callable[..., Any]) -> None:
    """Without a request, and without the traceback of a callback."""
    spectra, before = transform(spectra_function(surrogate)), surrogate.sent
    for shape in ((3, 64, 64), (128,), ()):
        with pytest.raises(
            InvalidStructure, match=r"must be \(\.\.\., 128, 128\), the pixels of diffractionnet version 1"
        ):
            spectra(jnp.zeros(shape))
    with pytest.raises((InvalidStructure, TypeError), match="complex"):
        spectra(jnp.zeros((128, 128), complex))
    assert surrogate.sent == before


def test_jax_passes_errors_on(surrogate: Surrogate) -> None:
    with pytest.raises(Exception, match="must lie between 0"):
        spectra_function(surrogate)(jnp.full((1, 128, 128), 2.0)).block_until_ready()
