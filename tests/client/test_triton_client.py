"""The client on a bare Triton, over HTTP and gRPC."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import (
    AsyncSurrogate,
    DeadlineExceeded,
    ModelUnavailable,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerUnreachable,
    Surrogate,
)
from metaspec_contract.model import gradient_model
from metaspec_contract.process import Process
from metaspec_testing.five_channels import CHANNELS, PROCESS, WAVELENGTHS_NM, five_channel_model, metadata, spectra_of
from metaspec_testing.small_models import (
    METADATA,
    Array,
    Expected,
    ExpectedGradient,
    small_gradient_model,
    small_model,
    write_repository,
)
from metaspec_testing.triton import Triton, python_repository, start_triton

pytestmark = pytest.mark.triton

STRUCTURE = '{ name: "structure", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }'
PATIENT: dict[str, Any] = {"retries": 100, "timeout": 60.0}


def config(
    name: str, about: dict[str, Any], gradient: bool = False, max_batch: int = 8, more: str = "dynamic_batching { }"
) -> str:
    """`config.pbtxt` of a model, with its description as a parameter."""
    spectra = f"[ {len(about['channels'])}, {len(about['wavelengths_nm'])} ]"
    inputs = [STRUCTURE] + [f'{{ name: "cotangent", data_type: TYPE_FP32, dims: {spectra} }}'] * gradient
    outputs = [f'{{ name: "spectra", data_type: TYPE_FP32, dims: {spectra} }}']
    outputs += [STRUCTURE.replace("structure", "gradient")] * gradient
    told = json.dumps(json.dumps(about))  # a string in the configuration
    return (
        f'name: "{name}" backend: "onnxruntime" max_batch_size: {max_batch} '
        f"input [ {', '.join(inputs)} ] output [ {', '.join(outputs)} ] {more} "
        f'parameters {{ key: "metaspec" value {{ string_value: {told} }} }}'
    )


def gradient_of(about: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Description of the gradient model of a described model."""
    return about | {"name": gradient_model(about["name"]), "kind": "vjp"} | changes


def slowed(repository: Path, name: str) -> None:
    """Let a model take a fifth of a second for each batch."""
    model, head = repository / name / "1" / "model.py", "def execute(self, requests):\n"
    model.write_text(model.read_text().replace(head, f"{head}        __import__('time').sleep(0.2)\n"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model and its gradient, a slow one with a short queue, one with five channels, and two of two devices."""
    root = write_repository(tmp_path_factory.mktemp("source"), small_model())
    write_repository(root, small_gradient_model())
    shutil.copytree(root / "diffractionnet", root / "busy")
    five = write_repository(tmp_path_factory.mktemp("five"), five_channel_model())
    shutil.copytree(five / "diffractionnet", root / "five")
    shutil.copytree(root / "diffractionnet", root / "mixed")
    shutil.copytree(root / "diffractionnet_vjp", root / "mixed_vjp")
    narrow = Process(period_um=1.6).model_dump(mode="json")
    short = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    texts = {
        "diffractionnet": config("diffractionnet", METADATA),
        "diffractionnet_vjp": config("diffractionnet_vjp", gradient_of(METADATA), gradient=True, max_batch=128),
        "busy": config("busy", METADATA, max_batch=1, more=short),
        "five": config("five", metadata("forward")),
        "mixed": config("mixed", METADATA),
        "mixed_vjp": config("mixed_vjp", gradient_of(METADATA, process=narrow), gradient=True),
    }
    for name, text in texts.items():
        (root / name / "config.pbtxt").write_text(text)
    repository = python_repository(root, tmp_path_factory.mktemp("triton") / "repository")
    slowed(repository, "busy")
    return repository


@pytest.fixture(scope="module")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with start_triton(repository, tmp_path_factory.mktemp("work")) as running:
        yield running


def address(triton: Triton, scheme: str) -> str:
    return f"{scheme}://{triton.http if scheme == 'http' else triton.grpc}"


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, triton: Triton) -> str:
    return address(triton, request.param)


def test_spectra_and_gradients(url: str, expected: Expected, expected_gradient: ExpectedGradient) -> None:
    """In several requests at a time, which come back in order."""
    rng = np.random.default_rng(1)
    structures = rng.integers(0, 2, (101, 128, 128), dtype=np.uint8)
    cotangent = rng.normal(size=(30, 4, 301))
    with Surrogate(url, batch_size=8) as surrogate:
        assert surrogate.is_ready()
        spectra = surrogate.predict(structures)
        gradient = surrogate.gradient(structures[:30] * 0.5, cotangent)
        several = surrogate.gradient(structures[:10], cotangent.reshape(10, 3, 4, 301))
        assert surrogate.sent == (13 + 4 + 4, 101 + 30 + 30)
        assert not surrogate.metadata().takes_bits
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient(structures[:30] * 0.5, cotangent), atol=1e-6)
    repeated = expected_gradient(np.repeat(structures[:10], 3, axis=0), cotangent)
    np.testing.assert_allclose(several.reshape(30, 128, 128), repeated, atol=1e-6)
    assert (spectra.model, spectra.version, spectra.channels) == ("diffractionnet", "1", ("R", "G1", "G2", "B"))
    assert spectra.wavelengths_nm[[0, -1]].tolist() == [400, 700]


async def test_asyncio(url: str, expected: Expected, expected_gradient: ExpectedGradient) -> None:
    structures = np.random.default_rng(2).integers(0, 2, (40, 128, 128), dtype=np.uint8)
    cotangent = np.random.default_rng(3).normal(size=(4, 301))
    async with AsyncSurrogate(url, batch_size=8) as surrogate:
        assert await surrogate.is_ready()
        spectra = await surrogate.predict(structures)
        gradient = await surrogate.gradient(structures, cotangent)
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-6)
    whole = np.broadcast_to(cotangent, (40, 4, 301))
    np.testing.assert_allclose(gradient, expected_gradient(structures, whole), atol=1e-6)


def test_answers_of_many_megabytes(url: str, expected_gradient: ExpectedGradient) -> None:
    """128 gradients are more than the 4 MiB that gRPC takes by default."""
    density = np.random.default_rng(4).random((128, 128, 128), dtype=np.float32)
    cotangent = np.random.default_rng(5).normal(size=(128, 4, 301))
    with Surrogate(url, batch_size=128) as surrogate:
        gradient = surrogate.gradient(density, cotangent)
    np.testing.assert_allclose(gradient, expected_gradient(density, cotangent), atol=1e-6)


def test_channels_and_wavelengths_that_the_configuration_tells(url: str, structures: Array) -> None:
    with Surrogate(url, model="five") as surrogate:
        spectra = surrogate.predict(structures)
        assert surrogate.metadata().process == PROCESS
    np.testing.assert_allclose(spectra.values, spectra_of(structures), rtol=1e-5)
    assert (spectra.channels, spectra.wavelengths_nm.tolist()) == (tuple(CHANNELS), WAVELENGTHS_NM)


def test_a_gradient_of_another_device_is_refused(url: str, structures: Array) -> None:
    with Surrogate(url, model="mixed") as surrogate:
        assert len(surrogate.predict(structures)) == 5
        with pytest.raises(
            ProtocolError, match=r"'mixed_vjp' version 1 and model 'mixed'.*period_um 1\.6 against 2\.0"
        ):
            surrogate.gradient(structures, np.zeros((4, 301)))


def test_what_triton_refuses(url: str, structures: Array) -> None:
    with Surrogate(url, model="other") as surrogate:
        assert not surrogate.is_ready()
        with pytest.raises(ModelUnavailable, match=r"unknown model: 'other'.* Check model and version"):
            surrogate.predict(structures)
    with Surrogate(url, version=7) as surrogate, pytest.raises(ModelUnavailable, match="version 7"):
        surrogate.predict(structures)
    with Surrogate(url, model="busy") as surrogate, pytest.raises(ModelUnavailable, match=r"'busy_vjp'.*MODEL_vjp"):
        surrogate.gradient(structures, np.zeros((4, 301)))
    with Surrogate(url) as surrogate, pytest.raises(RequestTooLarge, match=r"must be <= 8 .* Lower batch_size"):
        surrogate.predict(np.zeros((9, 128, 128)))
    with Surrogate(url, model="busy", timeout=0.1) as surrogate:
        surrogate.metadata()
        with pytest.raises(DeadlineExceeded, match=r"within 0.1 s.* Raise timeout"):
            surrogate.predict(structures[:1])


async def test_a_busy_triton_is_asked_again(url: str, expected: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes one structure at a time, and lets one more wait."""
    monkeypatch.setattr("metaspec._surrogate.base._LONGEST_PAUSE", 0.5)
    structures = np.random.default_rng(7).integers(0, 2, (6, 128, 128), dtype=np.uint8)
    settings: dict[str, Any] = {"model": "busy", "batch_size": 1, "concurrency": 6}
    with Surrogate(url, retries=0, **settings) as surrogate, pytest.raises(ServerBusy, match="maximum queue size"):
        surrogate.predict(structures)
    with Surrogate(url, **settings, **PATIENT) as surrogate:
        np.testing.assert_allclose(surrogate.predict(structures).values, expected(structures), atol=1e-6)
    async with AsyncSurrogate(url, **settings, **PATIENT) as asynchronous:
        values = (await asynchronous.predict(structures)).values
    np.testing.assert_allclose(values, expected(structures), atol=1e-6)


def test_a_triton_that_goes_away_and_comes_back(
    repository: Path, tmp_path: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of calls: patient ones are finished by the next Triton, hasty ones end with a typed error."""
    monkeypatch.setattr("metaspec._surrogate.base._LONGEST_PAUSE", 0.5)
    structures = np.random.default_rng(8).integers(0, 2, (16, 128, 128), dtype=np.uint8)
    only = tmp_path / "repository"
    shutil.copytree(repository / "diffractionnet", only / "diffractionnet")
    slowed(only, "diffractionnet")
    with start_triton(only, tmp_path) as first, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))

        def surrogates(**settings: Any) -> list[Surrogate]:
            made = [
                Surrogate(address(first, scheme), batch_size=1, concurrency=2, **settings)
                for scheme in ("http", "grpc")
            ]
            return [stack.enter_context(surrogate) for surrogate in made]

        hasty, patient = surrogates(retries=0), surrogates(**PATIENT)
        calls = {surrogate: pool.submit(surrogate.predict, structures) for surrogate in [*hasty, *patient]}
        wait_until(lambda: all(surrogate.sent.requests > 3 for surrogate in calls))
        first.process.kill()
        first.process.wait(20)
        for surrogate in hasty:
            with pytest.raises(ServerUnreachable, match="Is metaspec-serve running there, or Triton"):
                calls[surrogate].result(60)
            assert not surrogate.is_ready()
        with start_triton(only, tmp_path / "again", first):
            for surrogate in patient:
                np.testing.assert_allclose(calls[surrogate].result(60).values, expected(structures), atol=1e-6)
                assert surrogate.sent == (16, 16)
            for surrogate in hasty:
                assert surrogate.is_ready()
                np.testing.assert_allclose(
                    surrogate.predict(structures[:1]).values, expected(structures[:1]), atol=1e-6
                )
            stack.close()  # Triton does not end while callers are connected


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
