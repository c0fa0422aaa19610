from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected, ExpectedGradient

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def cotangent(structures: Array) -> Array:
    return np.random.default_rng(3).normal(size=(len(structures), 4, 301)).astype(np.float32)


def npy(*arrays: Array) -> bytes:
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array)
    return buffer.getvalue()


def post(http: httpx.Client, content: bytes, content_type: str, accept: str = JSON, query: str = "") -> httpx.Response:
    return http.post("/gradient" + query, content=content, headers={"Content-Type": content_type, "Accept": accept})


def loaded(answer: httpx.Response) -> tuple[Array, Array]:
    file = io.BytesIO(answer.raise_for_status().content)
    return np.load(file), np.load(file)


def test_the_small_gradient_model_is_what_the_tests_think(
    structures: Array, cotangent: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    density = np.random.default_rng(1).random(structures.shape)
    step = np.zeros_like(density)
    step[:, 40:60, 80:100] = 1e-2
    difference = (cotangent * (expected(density + step) - expected(density - step))).sum(axis=(1, 2)) / 2
    predicted = (expected_gradient(density, cotangent) * step).sum(axis=(1, 2))
    np.testing.assert_allclose(predicted, difference, rtol=1e-2, atol=1e-5)


def test_every_way_in_and_out_gives_the_same(
    http: httpx.Client, structures: Array, cotangent: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    packed = np.packbits(structures, axis=None).tobytes()
    fields = {"packed": base64.b64encode(packed).decode(), "cotangent": cotangent.tolist()}
    bodies = [
        (npy(structures, cotangent), NPY),
        (npy(structures.astype(np.float32)[:, None], cotangent.astype(np.float64)), RAW),
        (packed + cotangent.tobytes(), RAW),
        (json.dumps(fields).encode(), JSON),
    ]
    spectra, gradient = expected(structures), expected_gradient(structures, cotangent)
    for content, content_type in bodies:
        answered = loaded(post(http, content, content_type, NPY))
        np.testing.assert_allclose(answered[0], spectra, atol=1e-6)
        np.testing.assert_allclose(answered[1], gradient, atol=1e-6)
        raw = post(http, content, content_type, RAW).raise_for_status()
        shapes = [[int(n) for n in raw.headers[h].split(",")] for h in ("MetaSpec-Shape", "MetaSpec-Gradient-Shape")]
        assert shapes == [[5, 4, 301], [5, 128, 128]]
        flat = np.frombuffer(raw.content, "<f4")
        np.testing.assert_array_equal(flat[: spectra.size].reshape(shapes[0]), answered[0])
        np.testing.assert_array_equal(flat[spectra.size :].reshape(shapes[1]), answered[1])
        body = post(http, content, content_type, JSON).raise_for_status().json()
        np.testing.assert_array_equal(np.float32(body["gradient"]), answered[1])
        np.testing.assert_array_equal(np.float32(body["spectra"]), answered[0])
        assert body["model"] == "diffractionnet_vjp"


def test_densities_and_some_wavelengths(
    http: httpx.Client, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    rng = np.random.default_rng(5)
    density = rng.random((3, 128, 128))
    wavelengths, channels = [400.0, 450.25, 450.25, 700.0], ["B", "R"]
    cotangent = rng.normal(size=(3, 2, 4)).astype(np.float32)
    whole = np.zeros((3, 4, 301), np.float32)
    for row, channel in enumerate([3, 0]):
        whole[:, channel, 0] += cotangent[:, row, 0]
        whole[:, channel, 50] += 0.75 * cotangent[:, row, 1:3].sum(axis=1)
        whole[:, channel, 51] += 0.25 * cotangent[:, row, 1:3].sum(axis=1)
        whole[:, channel, 300] += cotangent[:, row, 3]
    query = "?channels=B&channels=R" + "".join(f"&wavelengths_nm={w}" for w in wavelengths)
    spectra, gradient = loaded(post(http, npy(density, cotangent), NPY, NPY, query))
    assert spectra.shape == (3, 2, 4)
    np.testing.assert_allclose(gradient, expected_gradient(density, whole), atol=1e-6)
    fields = {"structures": density.tolist(), "cotangent": cotangent.tolist()}
    fields |= {"wavelengths_nm": wavelengths, "channels": channels}
    body = http.post("/gradient", json=fields).raise_for_status().json()
    np.testing.assert_allclose(np.float32(body["gradient"]), gradient, atol=1e-6)
    packed = np.packbits(density > 0.5, axis=None).tobytes()
    _, binary = loaded(post(http, packed + cotangent.tobytes(), RAW, NPY, query))
    np.testing.assert_allclose(binary, expected_gradient(density > 0.5, whole), atol=1e-6)


def test_half_precision_answers(
    http: httpx.Client, structures: Array, cotangent: Array, expected_gradient: ExpectedGradient
) -> None:
    answer = post(http, npy(structures, cotangent), NPY, NPY, "?dtype=float16")
    spectra, gradient = loaded(answer)
    assert spectra.dtype == gradient.dtype == np.float16
    assert answer.headers["MetaSpec-Dtype"] == "float16"
    np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent), atol=1e-4)


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (np.zeros((5, 4, 300)), "(N, 4, 301), got (5, 4, 300)"),
        (np.zeros((4, 301)), "got (4, 301)"),
        (np.zeros((4, 4, 301)), "one for each of 5 structures, got 4"),
        (np.full((5, 4, 301), np.inf), "finite numbers in float32, got inf"),
        (np.full((5, 4, 301), "x"), "expected numbers"),
    ],
)
def test_what_is_no_cotangent(http: httpx.Client, structures: Array, cotangent: Array, message: str) -> None:
    answer = post(http, npy(structures, cotangent), NPY)
    assert answer.status_code == 422
    assert answer.json()["field"] == "cotangent"
    assert message in answer.json()["detail"]


def test_bodies_without_a_cotangent(http: httpx.Client, structures: Array) -> None:
    answer = http.post("/gradient", json={"structures": structures.tolist()})
    assert (answer.status_code, answer.json()["field"]) == (422, "cotangent")
    assert "two .npy files" in post(http, npy(structures), NPY).json()["detail"]
    assert "1204 float32 of cotangent" in post(http, np.packbits(structures).tobytes(), RAW).json()["detail"]
    flat = np.zeros((5, 7), np.float32)
    assert "got (5, 7)" in post(http, npy(structures, flat), RAW).json()["detail"]
    left_over = post(http, npy(structures, np.zeros((5, 4, 301))) + b"xyz", NPY)
    assert "3 bytes are left over" in left_over.json()["detail"]


def test_a_choice_given_twice(http: httpx.Client, structures: Array, cotangent: Array) -> None:
    fields = {"structures": structures.tolist(), "cotangent": cotangent.tolist(), "channels": ["R"]}
    answer = http.post("/gradient?channels=B", json=fields)
    assert (answer.status_code, answer.json()["field"]) == (422, "channels")


def test_each_route_has_its_own_kind_of_model(http: httpx.Client, structures: Array) -> None:
    answer = http.post("/predict?model=diffractionnet_vjp", json={"structures": structures.tolist()})
    assert answer.status_code == 422
    assert "/gradient" in answer.json()["detail"]
    answer = http.post("/gradient?model=other", json={"structures": structures.tolist()})
    assert answer.status_code == 404
    assert "'other_vjp'" in answer.json()["detail"]
