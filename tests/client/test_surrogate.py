from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metaspec
from metaspec import (
    AsyncSurrogate,
    InvalidCotangent,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
    RequestTooLarge,
    ServerUnreachable,
    Surrogate,
)
from metaspec._surrogate.arrays import as_packed, as_sent
from metaspec._surrogate.call import Call
from metaspec_contract.structures import pack
from metaspec_testing.five_channels import CHANNELS, WAVELENGTHS_NM, five_channel_model, gradient_of, spectra_of
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected, ExpectedGradient, write_repository


def test_public_names() -> None:
    assert metaspec.__all__ == [
        "AsyncSurrogate",
        "DeadlineExceeded",
        "Evaluation",
        "Gradients",
        "InvalidCondition",
        "InvalidCotangent",
        "InvalidStructure",
        "MetaSpecError",
        "ModelInfo",
        "ModelUnavailable",
        "NotAllowed",
        "ProtocolError",
        "RequestTooLarge",
        "Sent",
        "ServedModel",
        "ServerBusy",
        "ServerError",
        "ServerUnreachable",
        "Spectra",
        "Surrogate",
        "__version__",
    ]
    assert Surrogate.__module__ == "metaspec"
    assert metaspec.__version__ == version("metaspec")


def test_predict(server: RunningServer, structures: Array, expected: Expected) -> None:
    with Surrogate(server.url) as surrogate:
        assert surrogate.is_ready()
        spectra = surrogate.predict(structures)
        one = surrogate.predict(structures[0])
        density = surrogate.predict(structures[:, None] * 0.5)
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-6)
    np.testing.assert_allclose(one.values, spectra.values[:1], atol=1e-6)
    np.testing.assert_allclose(density.values, expected(structures * 0.5), atol=1e-6)
    assert spectra.channels == ("R", "G1", "G2", "B")
    assert spectra.wavelengths_nm[[0, -1]].tolist() == [400, 700]
    assert (spectra.model, spectra.version) == ("diffractionnet", "1")


def test_large_arrays_are_split_and_keep_their_order(server: RunningServer, expected: Expected) -> None:
    structures = np.random.default_rng(5).integers(0, 2, (101, 128, 128), dtype=np.uint8)
    with Surrogate(server.url, batch_size=7, concurrency=5) as surrogate:
        np.testing.assert_allclose(surrogate.predict(structures).values, expected(structures), atol=1e-6)
        assert surrogate.predict(structures[:0]).values.shape == (0, 4, 301)


async def test_async(server: RunningServer, expected: Expected) -> None:
    structures = np.random.default_rng(6).integers(0, 2, (40, 128, 128), dtype=np.uint8)
    async with AsyncSurrogate(server.url, batch_size=7) as surrogate:
        assert await surrogate.is_ready()
        np.testing.assert_allclose((await surrogate.predict(structures)).values, expected(structures), atol=1e-6)
        with pytest.raises(InvalidStructure):
            await surrogate.predict(structures + 1)
    async with AsyncSurrogate(server.url, model="other") as surrogate:
        with pytest.raises(ModelUnavailable):
            await surrogate.predict(structures)


def test_gradients(
    server: RunningServer, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    rng = np.random.default_rng(2)
    density = rng.random((30, 128, 128))
    each, one = rng.normal(size=(30, 4, 301)), rng.normal(size=(4, 301))
    with Surrogate(server.url, batch_size=7) as surrogate:
        gradient = surrogate.gradient(density, each)
        assert gradient.shape == (30, 128, 128)
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, expected_gradient(density, each), atol=1e-6)
        whole = np.broadcast_to(one, (5, 4, 301))
        np.testing.assert_allclose(surrogate.gradient(structures, one), expected_gradient(structures, whole), atol=1e-6)
        assert surrogate.gradient(structures[:0], one).shape == (0, 128, 128)


def brightness_of_blue(spectra: metaspec.Spectra) -> tuple[Array, Array]:
    """The mean square of channel B, and its derivative."""
    blue = spectra.channel("B")
    cotangent = np.zeros_like(spectra.values)
    cotangent[:, 3] = 2 * blue / blue.shape[1]
    return (blue**2).mean(axis=1), cotangent


def test_an_objective_and_its_gradient(server: RunningServer, expected: Expected) -> None:
    density = np.random.default_rng(3).uniform(0.1, 0.9, (3, 128, 128))
    step = np.zeros_like(density)
    step[:, 30:60, 90:120] = 1e-2
    with Surrogate(server.url) as surrogate:
        value, gradient, spectra = surrogate.predict_and_gradient(density, brightness_of_blue)
        more, less = (brightness_of_blue(surrogate.predict(density + sign * step))[0] for sign in (1, -1))
    np.testing.assert_allclose(value, (expected(density)[:, 3] ** 2).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose((gradient * step).sum(axis=(1, 2)), (more - less) / 2, rtol=2e-2, atol=1e-7)
    assert len(spectra) == 3


async def test_gradients_for_asyncio(
    server: RunningServer, structures: Array, expected_gradient: ExpectedGradient
) -> None:
    cotangent = np.random.default_rng(2).normal(size=(5, 4, 301))
    async with AsyncSurrogate(server.url, batch_size=2) as surrogate:
        gradient = await surrogate.gradient(structures, cotangent)
        np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent), atol=1e-6)
        value, _, spectra = await surrogate.predict_and_gradient(structures, brightness_of_blue)
        np.testing.assert_allclose(value, brightness_of_blue(spectra)[0])
        with pytest.raises(InvalidCotangent):
            await surrogate.gradient(structures, cotangent[:2])


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (np.zeros((4, 300)), r"must be \(4, 301\), \(5, 4, 301\) or \(5, K, 4, 301\), got \(4, 300\)"),
        (np.zeros((3, 4, 301)), r"got \(3, 4, 301\)"),
        (np.zeros((3, 5, 4, 301)), r"got \(3, 5, 4, 301\)"),
        (np.zeros((5, 1, 1, 4, 301)), r"got \(5, 1, 1, 4, 301\)"),
        (np.zeros(301), r"got \(301,\)"),
        (np.full((4, 301), np.nan), "finite, got nan"),
        (np.full((4, 301), 1e300), "finite, got inf"),
        (np.full((4, 301), "x"), "must be numbers"),
        ([[1], [1, 2]], "must be an array"),
    ],
)
def test_invalid_cotangents(server: RunningServer, structures: Array, cotangent: Any, message: str) -> None:
    with Surrogate(server.url) as surrogate, pytest.raises(InvalidCotangent, match=message) as caught:
        surrogate.gradient(structures, cotangent)
    assert isinstance(caught.value, ValueError)


def test_api_keys(small_repository: Path, tmp_path: Path, structures: Array, expected: Expected) -> None:
    (tmp_path / "keys").write_text("a-key-for-the-tests\n")
    with running_server("--repository", str(small_repository), "--api-keys", str(tmp_path / "keys")) as server:
        with Surrogate(server.url, api_key="a-key-for-the-tests") as surrogate:
            np.testing.assert_allclose(surrogate.predict(structures).values, expected(structures), atol=1e-6)
        for wrong in (None, "another"):
            with Surrogate(server.url, api_key=wrong) as surrogate, pytest.raises(NotAllowed, match="valid API key"):
                surrogate.predict(structures)


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (np.zeros((64, 64)), r"got \(64, 64\)"),
        (np.zeros((1, 2, 128, 128)), r"got \(1, 2, 128, 128\)"),
        (np.full((128, 128), np.nan), "got nan at structure 0, row 0, column 0"),
        (np.full((2, 128, 128), 255), "divide 8-bit images by 255"),
        (np.full((128, 128), np.float32(1.000002)), r"got 1\.000002 at .*; numpy\.clip\(array, 0, 1\) cuts off"),
        (np.full((128, 128), -0.07), r"got -0\.07 at .*; numpy\.clip\(array, 0, 1\) cuts off"),
        (np.full((128, 128), -3.0), r"got -3 at structure 0, row 0, column 0$"),
        (np.full((128, 128), "x"), "must be numbers"),
        ([[1], [1, 2]], "must be an array"),
    ],
)
def test_invalid_structures(server: RunningServer, structures: Any, message: str) -> None:
    with Surrogate(server.url) as surrogate, pytest.raises(InvalidStructure, match=message) as caught:
        surrogate.predict(structures)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MetaSpecError)


def test_what_the_server_refuses(server: RunningServer, structures: Array) -> None:
    with Surrogate(server.url, model="other") as surrogate, pytest.raises(ModelUnavailable, match="no model 'other'"):
        surrogate.predict(structures)
    with Surrogate(server.url, version=3) as surrogate, pytest.raises(ModelUnavailable, match="no version '3'"):
        surrogate.predict(structures)
    with Surrogate(server.url, batch_size=1000) as surrogate, pytest.raises(RequestTooLarge, match="at most 600"):
        surrogate.predict(np.zeros((601, 128, 128), bool))


def test_nobody_there(nobody: str) -> None:
    with Surrogate(f"http://{nobody}", retries=1) as surrogate:
        assert not surrogate.is_ready()
        with pytest.raises(ServerUnreachable, match="Is metaspec-serve running"):
            surrogate.predict(np.zeros((128, 128)))


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "localhost:8000",
        "ftp://127.0.0.1",
        "",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999",
        "grpc://127.0.0.1",
        "grpc://127.0.0.1:8001/v2",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="url must be"):
        Surrogate(url)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("retries", -1),
        ("batch_size", 0),
        ("concurrency", 0),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", "60"),
        ("timeout", True),
        ("wait", -1.0),
        ("wait", float("nan")),
        ("retries", 1.0),
        ("batch_size", 64.0),
        ("batch_size", True),
        ("batch_size", np.float32(8)),
        ("concurrency", -1),
        ("concurrency", 2.5),
        ("priority", -1),
        ("priority", True),
        ("priority", "high"),
        ("version", 1.5),
        ("version", True),
        ("url", None),
        ("model", None),
        ("model", ""),
        ("api_key", "two\nlines"),
        ("api_key", "clé"),
    ],
)
def test_bad_settings(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{setting} must"):
        Surrogate(**{setting: value})


def test_settings_are_spelt_out() -> None:
    """For editors and `help()`."""
    for kind in (Surrogate, AsyncSurrogate):
        assert {"url", "model", "version", "api_key", "timeout", "retries"} <= inspect.signature(kind).parameters.keys()


async def test_after_close(server: RunningServer, structures: Array) -> None:
    surrogate, asynchronous = Surrogate(server.url), AsyncSurrogate(server.url)
    surrogate.predict(structures)
    await asynchronous.predict(structures)
    surrogate.close()
    await asynchronous.close()
    for run in (lambda: surrogate.predict(structures), surrogate.is_ready):
        with pytest.raises(ValueError, match=r"<Surrogate diffractionnet at http.* is closed: create another one"):
            run()
    with pytest.raises(ValueError, match=r"<AsyncSurrogate .* is closed: create another one"):
        await asynchronous.predict(structures)
    surrogate.close()
    await asynchronous.close()


@pytest.mark.parametrize("concurrency", [1, 4])
def test_one_asynchronous_surrogate_in_several_event_loops(
    concurrency: int, server: RunningServer, structures: Array, expected: Expected
) -> None:
    """Notebooks and scripts call `asyncio.run` again and again; threads have a loop of their own each."""
    surrogate = AsyncSurrogate(server.url, batch_size=2, concurrency=concurrency)
    wanted = expected(structures)

    def run(_: int = 0) -> None:
        np.testing.assert_allclose(asyncio.run(surrogate.predict(structures)).values, wanted, atol=1e-6)

    for _ in range(3):
        run()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(6)))
    asyncio.run(surrogate.close())


def test_masked_arrays(server: RunningServer, structures: Array) -> None:
    masked = np.ma.masked_array(structures, mask=structures == 0)
    with Surrogate(server.url) as surrogate:
        with pytest.raises(InvalidStructure, match="in every pixel, got a masked array: use its method filled"):
            surrogate.predict(masked)
        with pytest.raises(InvalidCotangent, match="got a masked array"):
            surrogate.gradient(structures, np.ma.masked_less(np.zeros((4, 301)), 1))
        assert len(surrogate.predict(np.ma.masked_array(structures))) == 5  # nothing is masked


@pytest.mark.parametrize("value", [np.zeros(5), np.zeros(2), 0.0, None, (1, 2, 3)])
async def test_objectives_that_return_something_else(server: RunningServer, structures: Array, value: Any) -> None:
    message = "must return N values and N derivatives with respect to the spectra, `return value, cotangent`, got "
    with Surrogate(server.url) as surrogate, pytest.raises(TypeError, match=message):
        surrogate.predict_and_gradient(structures, lambda spectra: value)
    async with AsyncSurrogate(server.url) as asynchronous:
        with pytest.raises(TypeError, match=message):
            await asynchronous.predict_and_gradient(structures, lambda spectra: value)


def test_names_are_no_paths(server: RunningServer) -> None:
    with Surrogate(server.url, model="../health/live") as surrogate, pytest.raises(ModelUnavailable):
        surrogate.metadata()


def test_what_was_sent_is_counted(server: RunningServer, structures: Array) -> None:
    cotangent = np.zeros((5, 3, 4, 301))
    with Surrogate(server.url, batch_size=2) as surrogate:
        assert surrogate.sent == (0, 0)
        surrogate.metadata()
        assert surrogate.sent == (0, 0)
        surrogate.predict(structures)
        assert (surrogate.sent.requests, surrogate.sent.structures) == (3, 5)
        surrogate.gradient(structures, cotangent[:, 0])
        assert surrogate.sent == (6, 10)
        surrogate.gradient(structures, cotangent)
        assert surrogate.sent == (6 + 8, 10 + 15)


async def test_several_cotangents_of_each_structure(
    server: RunningServer, structures: Array, expected_gradient: ExpectedGradient
) -> None:
    cotangent = np.random.default_rng(8).normal(size=(5, 3, 4, 301))
    whole = expected_gradient(np.repeat(structures, 3, axis=0), cotangent.reshape(15, 4, 301))
    with Surrogate(server.url, batch_size=4) as surrogate:
        gradient = surrogate.gradient(structures, cotangent)
        assert gradient.shape == (5, 3, 128, 128)
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, whole.reshape(gradient.shape), atol=1e-6)
        assert surrogate.gradient(structures, cotangent[:, :0]).shape == (5, 0, 128, 128)
    async with AsyncSurrogate(server.url) as asynchronous:
        np.testing.assert_array_equal(await asynchronous.gradient(structures, cotangent), gradient)


@pytest.fixture(scope="module")
def five_channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = write_repository(tmp_path_factory.mktemp("five"), five_channel_model())
    write_repository(root, five_channel_model("vjp"))
    with running_server("--repository", str(root)) as server:
        yield server.url


def test_more_channels_and_other_wavelengths(five_channels: str, structures: Array) -> None:
    cotangent = np.random.default_rng(9).normal(size=(5, 5, 7))
    with Surrogate(five_channels) as surrogate:
        spectra = surrogate.predict(structures)
        gradient = surrogate.gradient(structures, cotangent)
        with pytest.raises(InvalidCotangent, match=r"must be \(5, 7\), "):
            surrogate.gradient(structures, np.zeros((4, 7)))
    np.testing.assert_allclose(spectra.values, spectra_of(structures), rtol=1e-5)
    np.testing.assert_allclose(gradient, gradient_of(cotangent), rtol=1e-4, atol=1e-9)
    assert spectra.channels == tuple(CHANNELS)
    assert spectra.wavelengths_nm.tolist() == WAVELENGTHS_NM
    np.testing.assert_allclose(spectra.channel("spread"), spectra_of(structures)[:, 4], rtol=1e-5)
    green = spectra_of(structures)[:, 1:3].sum(axis=1)[:, 2:4].mean(axis=1)
    np.testing.assert_allclose(spectra.colour_efficiency()[:, 1], green, rtol=1e-5)


def test_binary_structures_travel_as_bits_where_the_server_takes_them(server: RunningServer, structures: Array) -> None:
    with Surrogate(server.url) as surrogate:
        assert surrogate.metadata().takes_bits
    stacked = structures[:, None]
    for binary in (stacked, stacked.astype(bool), stacked.astype(float)):
        np.testing.assert_array_equal(as_sent(binary, takes_bits=True), np.packbits(structures.reshape(5, -1), axis=1))
    for floats in (as_sent(stacked, takes_bits=False), as_sent(stacked * 0.5, takes_bits=True) * 2):
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, stacked)


def test_packed_structures_are_taken_as_they_are(server: RunningServer, structures: Array) -> None:
    packed, cotangent = pack(structures), np.ones((4, 301), np.float32)
    with Surrogate(server.url, batch_size=2) as surrogate:
        np.testing.assert_array_equal(surrogate.predict(packed).values, surrogate.predict(structures).values)
        np.testing.assert_array_equal(surrogate.gradient(packed, cotangent), surrogate.gradient(structures, cotangent))
        info = surrogate.metadata()

    async def predict() -> Array:
        async with AsyncSurrogate(server.url, batch_size=2) as surrogate:
            return (await surrogate.predict(packed)).values

    with Surrogate(server.url, batch_size=2) as surrogate:
        np.testing.assert_array_equal(asyncio.run(predict()), surrogate.predict(structures).values)
    for takes_bits, sent in ((True, packed), (False, structures[:, None].astype(np.float32))):
        told = replace(info, takes_bits=takes_bits)
        call = Call(packed, None, {}, info=told, model=info.name, version="", batch_size=5, priority=0)
        (tensor,) = call.request(0).inputs.values()
        assert tensor.dtype == sent.dtype
        np.testing.assert_array_equal(tensor, sent)


def test_packed_structures_are_told_apart_by_shape_and_dtype() -> None:
    packed = np.array([[0b10101010, 0b10000000]], np.uint8)
    assert as_packed(packed, (3, 3)) is packed
    assert as_packed(packed.astype(float), (3, 3)) is None
    assert as_packed(packed, (4, 3)) is packed
    assert as_packed(np.eye(8, 2, dtype=np.uint8), (8, 2)) is None  # one structure
    assert as_packed(np.ma.masked_array(packed), (3, 3)) is None
    with pytest.raises(InvalidStructure, match="packed structures must end with 7 zero bits"):
        as_packed(packed | 1, (3, 3))
