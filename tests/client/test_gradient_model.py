"""The gradient model is asked for its description and held against the forward model: their devices are never mixed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from metaspec import AsyncSurrogate, Evaluation, ModelUnavailable, ProtocolError, Spectra, Surrogate
from metaspec_contract.detectors import SPREAD
from metaspec_contract.model import COTANGENT, DEFAULT_MODEL, GRADIENT, METADATA_KEY, gradient_model
from metaspec_contract.process import Process
from metaspec_testing.scripted import METADATA, TENSORS, Answer, Scripted, good, scripted
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, small_model, write_repository

ONE = np.zeros((128, 128))
VJP = gradient_model(DEFAULT_MODEL)
OTHER_PROCESS = {"process": Process(period_um=1.6).model_dump(mode="json")}


def gradient(version: str = "1") -> Answer:
    """The answer of a gradient model."""
    blob = bytes(4 * 128 * 128)
    tensor = {"name": GRADIENT, "datatype": "FP32", "shape": [1, 1, 128, 128]}
    header = {"model_version": version, "outputs": [tensor | {"parameters": {"binary_data_size": len(blob)}}]}
    content = json.dumps(header).encode()
    return 200, {"Inference-Header-Content-Length": str(len(content))}, content + blob


class Description:
    """Answers of our server, or of a bare Triton, to questions about a forward model and its gradient model.

    Attributes:
        changes: fields of a model's description, by the end of the path that they are asked with.
        asked: paths of the questions about the gradient model so far.
    """

    def __init__(self, triton: bool, changes: dict[str, dict[str, Any]]) -> None:
        self.triton, self.changes = triton, changes
        self.asked: list[str] = []

    def __call__(self, path: str) -> Any:
        if path == "/v2":
            return {"extensions": ["model_configuration"] if self.triton else []}
        about, tensors = METADATA["parameters"], TENSORS
        if VJP in path:
            self.asked.append(path)
            about = about | {"name": VJP, "kind": "vjp"}
            channels = len(self._changed(path).get("channels", about["channels"]))
            cotangent = {"name": COTANGENT, "shape": [-1, channels, 301]}
            density = {"name": GRADIENT, "shape": [-1, 1, 128, 128]}
            spectra = TENSORS["outputs"][0] | {"shape": [-1, channels, 301]}
            inputs, outputs = [*TENSORS["inputs"], cotangent], [spectra, density]
            tensors = TENSORS | {"name": VJP, "inputs": inputs, "outputs": outputs}
        about = about | self._changed(path)
        if path.endswith("/config"):
            return {"parameters": {METADATA_KEY: {"string_value": json.dumps(about)}}}
        return tensors if self.triton else tensors | {"parameters": about}

    def _changed(self, path: str) -> dict[str, Any]:
        place = path.removesuffix("/config")
        return next((fields for end, fields in self.changes.items() if place.endswith(end)), {})


@pytest.fixture(params=["our server", "bare Triton"])
def describe(request: pytest.FixtureRequest) -> Callable[..., Description]:
    return lambda changes: Description(request.param == "bare Triton", changes)


@pytest.fixture(params=[Surrogate, AsyncSurrogate])
def client(request: pytest.FixtureRequest) -> Any:
    return request.param


async def given(answer: Any) -> Any:
    """A result of either client."""
    return await answer if hasattr(answer, "__await__") else answer


def mean(spectra: Spectra) -> tuple[Array, Array]:
    return spectra.values.mean(axis=(1, 2)), np.full_like(spectra.values, 1 / spectra.values[0].size)


def connect(client: Any, server: Scripted, description: Description) -> Any:
    """A surrogate on a server that describes its models so."""
    server.describe = description
    return client(server.url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (OTHER_PROCESS, r"different processes: .*period_um 1\.6 against 2\.0"),
        ({"merged_greens": True}, "knows only the mean of G1 and G2, model 'diffractionnet' .* knows each of them"),
        (
            {"channels": ["R", "G1", "G2", "B", SPREAD]},
            f"has the channels R, G1, G2, B, {SPREAD}, model '{DEFAULT_MODEL}'",
        ),
    ],
)
async def test_a_gradient_of_another_device_is_refused(
    client: Any, describe: Callable[..., Description], changes: dict[str, Any], message: str
) -> None:
    with scripted(good(1)) as server:
        surrogate = connect(client, server, describe({f"/{VJP}": changes}))
        with pytest.raises(ProtocolError, match=f"^the gradient would be of another device .*'{VJP}'.*{message}"):
            await given(surrogate.predict_and_gradient(ONE, mean))
        await given(surrogate.close())
    assert server.asked == [f"/v2/models/{DEFAULT_MODEL}/infer"]


async def test_the_gradient_model_is_described_once(client: Any, describe: Callable[..., Description]) -> None:
    with scripted(good(1), gradient(), gradient(), gradient()) as server:
        description = describe({})
        surrogate = connect(client, server, description)
        evaluation: Evaluation = await given(surrogate.predict_and_gradient(ONE, mean))
        assert evaluation.gradient.shape == (1, 128, 128)
        asked = description.asked.copy()
        for _ in range(2):
            await given(surrogate.gradient(ONE, np.ones((4, 301))))
        await given(surrogate.close())
    place = f"/v2/models/{VJP}"
    assert asked == ([place, f"{place}/config"] if description.triton else [place])
    assert description.asked == asked


async def test_a_prediction_needs_no_gradient_model(client: Any, describe: Callable[..., Description]) -> None:
    with scripted(good(1)) as server:
        description = describe({f"/{VJP}": OTHER_PROCESS})
        surrogate = connect(client, server, description)
        await given(surrogate.predict(ONE))
        await given(surrogate.close())
    assert description.asked == []


async def test_a_new_version_of_the_gradient_model_is_described(
    client: Any, describe: Callable[..., Description]
) -> None:
    with scripted(gradient("1"), gradient("2"), gradient("2"), gradient("3")) as server:
        description = describe({f"/{VJP}/versions/3": OTHER_PROCESS})
        surrogate = connect(client, server, description)
        for _ in range(3):
            await given(surrogate.gradient(ONE, np.ones((4, 301))))
        with pytest.raises(ProtocolError, match=rf"'{VJP}' version 3 .*period_um 1\.6 against 2\.0"):
            await given(surrogate.gradient(ONE, np.ones((4, 301))))
        await given(surrogate.close())
    place = f"/v2/models/{VJP}"
    asked = [path for path in description.asked if not path.endswith("/config")]
    assert asked == [place, f"{place}/versions/2", f"{place}/versions/3"]


async def test_a_new_version_of_the_forward_model_is_held_against(
    client: Any, describe: Callable[..., Description]
) -> None:
    with scripted(good(1), gradient(), good(1, "2")) as server:
        description = describe({f"/{DEFAULT_MODEL}/versions/2": OTHER_PROCESS})
        surrogate = connect(client, server, description)
        await given(surrogate.predict_and_gradient(ONE, mean))
        with pytest.raises(ProtocolError, match=rf"'{DEFAULT_MODEL}' version 2 .*period_um 2\.0 against 1\.6"):
            await given(surrogate.predict_and_gradient(ONE, mean))
        await given(surrogate.close())


async def test_a_server_without_the_gradient_model(client: Any, forward_only: RunningServer) -> None:
    surrogate = client(forward_only.url)
    with pytest.raises(ModelUnavailable, match=rf"{VJP}.* Check model and version \(gradients .* MODEL_vjp\)"):
        await given(surrogate.gradient(ONE, np.ones((4, 301))))
    await given(surrogate.close())


@pytest.fixture(scope="module")
def forward_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = write_repository(tmp_path_factory.mktemp("forward"), small_model())
    with running_server("--repository", str(root)) as server:
        yield server
