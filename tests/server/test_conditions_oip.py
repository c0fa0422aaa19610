"""Conditions in the Open Inference Protocol: optional tensors, by the stock clients of Triton over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from metaspec_testing.conditioned_models import CONDITIONS
from metaspec_testing.direct import Direct
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

NAME, GRADIENT = "diffractionnet", "diffractionnet_vjp"
INFER = f"/v2/models/{NAME}/infer"
OUTPUTS = ["spectra", "gradient", "gradient_distance_um", "gradient_incidence"]


def seeded(count: int, seed: int) -> tuple[Array, dict[str, Array]]:
    generator = np.random.default_rng(seed)
    structures = generator.integers(0, 2, (count, 128, 128), np.uint8)
    distance = generator.uniform(1, 3, (count, 1)).astype(np.float32)
    return structures, {"distance_um": distance, "incidence": generator.uniform(-20, 20, (count, 2)).astype(np.float32)}


def single(values: Any) -> Array:
    return np.array(values, np.float32)


class Client:
    """A stock client of Triton, of one of the two protocols."""

    def __init__(self, server: RunningServer, grpc: bool) -> None:
        self.module: Any = tritonclient.grpc if grpc else tritonclient.http
        self.grpc = grpc
        self.raw = self.module.InferenceServerClient(server.grpc_address if grpc else server.address)

    def inputs(self, tensors: dict[str, Array], binary: bool = True) -> list[Any]:
        made = []
        for name, array in tensors.items():
            made.append(self.module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            made[-1].set_data_from_numpy(array, **({} if self.grpc else {"binary_data": binary}))
        return made

    def ask(self, model: str, tensors: dict[str, Array], binary: bool = True, **options: Any) -> dict[str, Array]:
        answer = self.raw.infer(model, self.inputs(tensors, binary), **options)
        response = answer.get_response()
        names = [
            one.name if self.grpc else one["name"] for one in (response.outputs if self.grpc else response["outputs"])
        ]
        return {name: answer.as_numpy(name) for name in names}


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, conditioned: RunningServer) -> Iterator[Client]:
    made = Client(conditioned, request.param == "grpc")
    yield made
    made.raw.close()


def as_tensor(structures: Array) -> Array:
    return structures[:, None].astype(np.float32)


def packed(structures: Array) -> Array:
    return np.packbits(structures.reshape(len(structures), -1), axis=1)


@pytest.mark.parametrize("binary", [True, False])
def test_values_of_each_row_whatever_the_order_and_the_form(client: Client, direct: Direct, binary: bool) -> None:
    structures, conditions = seeded(5, 1)
    expected = direct.spectra(structures, **conditions)
    tensors = {"structure": as_tensor(structures), **conditions}
    for order in (tensors, dict(reversed(tensors.items()))):
        np.testing.assert_allclose(client.ask(NAME, order, binary)["spectra"], expected, atol=1e-6)
    flat = tensors | {"distance_um": conditions["distance_um"][:, 0], "structure": packed(structures)}
    np.testing.assert_allclose(client.ask(NAME, flat, binary)["spectra"], expected, atol=1e-6)
    assert np.abs(expected - direct.spectra(structures)).max() > 0.1


def test_two_requests_whose_bytes_are_equal_in_another_order(client: Client, direct: Direct) -> None:
    """The cache compares rows by the bytes of their tensors, which it puts in one order."""
    structures, _ = seeded(1, 12 + client.grpc)
    bits = packed(structures)
    first = {"structure": bits, "incidence": single([[2, 2.75]]), "distance_um": single([[1.5]])}
    second = {"structure": bits, "distance_um": single([[2]]), "incidence": single([[2.75, 1.5]])}
    for tensors in (first, second):
        given = {name: array for name, array in tensors.items() if name != "structure"}
        np.testing.assert_allclose(client.ask(NAME, tensors)["spectra"], direct.spectra(structures, **given), atol=1e-6)


@pytest.mark.parametrize("names", [(), ("distance_um",), ("incidence",)])
def test_those_not_given_have_their_defaults(client: Client, direct: Direct, names: tuple[str, ...]) -> None:
    structures, conditions = seeded(3, 2)
    given = {name: conditions[name] for name in names}
    answered = client.ask(NAME, {"structure": as_tensor(structures), **given})
    np.testing.assert_allclose(answered["spectra"], direct.spectra(structures, **given), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.float32])
def test_other_dtypes(client: Client, direct: Direct, dtype: Any) -> None:
    structures, _ = seeded(2, 3)
    distance, incidence = np.array([[1.25], [2]]).astype(dtype).clip(1, 3), np.array([[3.5, 4], [0, 7]]).astype(dtype)
    answered = client.ask(NAME, {"structure": packed(structures), "distance_um": distance, "incidence": incidence})
    expected = direct.spectra(structures, distance_um=distance, incidence=incidence)
    np.testing.assert_allclose(answered["spectra"], expected, atol=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_gradients_with_respect_to_each(client: Client, direct: Direct, given: bool) -> None:
    structures, conditions = seeded(4, 4)
    conditions = conditions if given else {}
    cotangent = np.random.default_rng(4).standard_normal((4, 4, 301), np.float32)
    tensors = {"structure": packed(structures), "cotangent": cotangent, **conditions}
    expected = direct.gradients(structures, cotangent, **conditions)
    answered = client.ask(GRADIENT, tensors)
    assert sorted(answered) == sorted(OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_allclose(answered[name], expected[name], rtol=1e-5, atol=1e-6)
    wanted = [client.module.InferRequestedOutput("gradient_incidence"), client.module.InferRequestedOutput("spectra")]
    some = client.ask(GRADIENT, tensors, outputs=wanted)
    assert sorted(some) == ["gradient_incidence", "spectra"]
    np.testing.assert_allclose(some["gradient_incidence"], expected["gradient_incidence"], rtol=1e-5, atol=1e-6)


def test_gradients_of_extreme_cotangents(client: Client, direct: Direct) -> None:
    """Rows far from 1 are scaled on their way through the model, and so are all gradients on the way back."""
    structures, conditions = seeded(3, 5)
    cotangent = np.random.default_rng(5).standard_normal((3, 4, 301), np.float32)
    scale = single([2.0**-60, 1, 2.0**60]).reshape(-1, 1, 1)
    expected = direct.gradients(structures, cotangent, **conditions)
    tensors = {"structure": packed(structures), "cotangent": cotangent * scale, **conditions}
    answered = client.ask(GRADIENT, tensors)
    for name in OUTPUTS[2:]:
        np.testing.assert_allclose(answered[name], expected[name] * scale[..., 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("distance_um", single([[2], [3.5]]), "distance_um must lie between 1 and 3 um, got 3.5 at structure 1"),
        ("distance_um", single([np.nan, 2]), "distance_um must lie between 1 and 3 um, got nan at structure 0"),
        ("distance_um", np.array([[1e300], [1]]), "distance_um must lie between 1 and 3 um, got 1e+300 at structure 0"),
        ("distance_um", np.array([True, True]), "distance_um must be numbers between 1 and 3 um, got bool"),
        (
            "incidence",
            single([[0, 0], [0, 21]]),
            "incidence must lie between -20 and 20 degrees, got 21 at structure 1",
        ),
        (
            "distance_um",
            single([[1, 2], [1, 2]]),
            "shape must be [N, 1] with N >= 1, or [N], for distance_um between 1",
        ),
        (
            "incidence",
            single([1, 2]),
            "incidence: shape must be [N, 2] with N >= 1 for incidence between -20 and 20",
        ),
        ("incidence", single([[1, 2]]), "inputs differ in their batch size: {'structure': 2, 'incidence': 1}"),
        (
            "thickness_um",
            single([1, 2]),
            "no input 'thickness_um', its inputs are structure, distance_um, incidence",
        ),
    ],
)
def test_what_is_no_value_of_a_condition(client: Client, name: str, value: Array, message: str) -> None:
    tensors = {"structure": packed(seeded(2, 6)[0]), name: value}
    with pytest.raises(InferenceServerException) as raised:
        client.ask(NAME, tensors)
    assert message in raised.value.message()


def test_priority_and_timeout(client: Client, direct: Direct) -> None:
    """A request that came too late is refused; the same structures at other values are answered."""
    structures, conditions = seeded(3, 21)
    late = {"structure": packed(structures), **conditions, "distance_um": single([[1.1], [1.2], [1.3]])}
    with pytest.raises(InferenceServerException) as raised:
        client.ask(NAME, late, timeout=1)
    assert "not finished within 1e-06 s" in raised.value.message()
    found = client.ask(NAME, {"structure": packed(structures), **conditions}, priority=1, timeout=60_000_000)
    np.testing.assert_allclose(found["spectra"], direct.spectra(structures, **conditions), atol=1e-6)
    cotangent = np.random.default_rng(22).standard_normal((3, 4, 301), np.float32)
    expected = direct.gradients(structures, cotangent, **conditions)
    tensors = {"structure": packed(structures), "cotangent": cotangent, **conditions}
    found = client.ask(GRADIENT, tensors, priority=1, timeout=60_000_000)
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_statuses_over_http(conditioned: RunningServer, server: RunningServer) -> None:
    structure = {"name": "structure", "datatype": "FP32", "shape": [1, 1, 128, 128], "data": [0] * 16384}

    def ask(to: RunningServer, data: Any, **fields: Any) -> tuple[int, str]:
        tensor = {"name": "distance_um", "datatype": "FP32", "shape": [1, 1], "data": data} | fields
        answer = to.post(INFER, content=json.dumps({"inputs": [tensor, structure]}))
        return answer.status_code, answer.json().get("error", "")

    assert ask(conditioned, [1.5]) == (200, "")
    assert ask(conditioned, [[1.5]], shape=[1]) == (200, "")
    assert ask(conditioned, [0.5]) == (422, "distance_um must lie between 1 and 3 um, got 0.5")
    assert ask(conditioned, ["x"]) == (400, "distance_um: data: expected evenly nested lists of numbers, got text")
    assert ask(conditioned, [True]) == (
        400,
        "distance_um: data: expected evenly nested lists of numbers, got true or false",
    )
    assert ask(conditioned, [1.5, 2]) == (400, "distance_um: data must be 1 numbers, flat or nested evenly, got 2")
    assert ask(server, [1.5]) == (400, "inputs: the model has no input 'distance_um', its inputs are structure")


def test_many_callers_with_a_distance_of_their_own(conditioned: RunningServer, direct: Direct) -> None:
    """Rows of many requests share micro-batches, and each answer is that of its own values. Packed ones are cached, too."""
    structures, _ = seeded(2, 7)
    distances = np.linspace(1, 3, 48, dtype=np.float32)
    expected = {float(d): direct.spectra(structures, distance_um=d) for d in distances}

    def ask(number: int) -> None:
        made = Client(conditioned, grpc=number % 2 == 0)
        for distance in np.random.default_rng(number).permutation(distances):
            tensors = {"structure": packed(structures) if number % 3 else as_tensor(structures)}
            answered = made.ask(NAME, tensors | {"distance_um": np.full((2, 1), distance, np.float32)})
            np.testing.assert_allclose(answered["spectra"], expected[float(distance)], atol=1e-6)
        made.raw.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_shared_memory(client: Client, direct: Direct) -> None:
    structures, conditions = seeded(3, 8)
    distance, bits = conditions["distance_um"], packed(structures)
    cotangent = np.random.default_rng(8).standard_normal((3, 4, 301), np.float32)
    name = f"conditions-{'grpc' if client.grpc else 'http'}"
    region = shm.create_shared_memory_region(name, f"/{name}", distance.nbytes + 3 * 2 * 4)
    try:
        shm.set_shared_memory_region(region, [distance])
        client.raw.register_system_shared_memory(name, f"/{name}", distance.nbytes + 24)
        given = client.inputs({"structure": bits, "cotangent": cotangent})
        given.append(client.module.InferInput("distance_um", [3, 1], "FP32"))
        given[-1].set_shared_memory(name, distance.nbytes)
        wanted = client.module.InferRequestedOutput("gradient_incidence")
        wanted.set_shared_memory(name, 24, offset=distance.nbytes)
        client.raw.infer(GRADIENT, given, outputs=[wanted])
        found = shm.get_contents_as_numpy(region, np.float32, [3, 2], offset=distance.nbytes)
        expected = direct.gradients(structures, cotangent, distance_um=distance)["gradient_incidence"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    finally:
        client.raw.unregister_system_shared_memory(name)
        shm.destroy_shared_memory_region(region)


def test_a_stream_over_grpc(conditioned: RunningServer, direct: Direct) -> None:
    structures, _ = seeded(1, 9)
    distances = [1.0, 1.5, 3.0]

    async def ask() -> dict[str, Array]:
        made = Client(conditioned, grpc=True)
        made.raw.close()

        async def requests() -> Any:
            for distance in distances:
                inputs = made.inputs({"structure": packed(structures), "distance_um": single([[distance]])})
                yield {"model_name": NAME, "inputs": inputs, "request_id": str(distance)}

        async with tritonclient.grpc.aio.InferenceServerClient(conditioned.grpc_address) as streaming:
            found = {}
            async for result, error in streaming.stream_infer(requests()):
                assert error is None
                found[result.get_response().id] = result.as_numpy("spectra")
                if len(found) == len(distances):
                    return found
        raise AssertionError("the stream has ended early")

    for number, spectra in asyncio.run(ask()).items():
        np.testing.assert_allclose(spectra, direct.spectra(structures, distance_um=float(number)), atol=1e-6)


def test_half_precision_outputs(conditioned: RunningServer, direct: Direct) -> None:
    structures, conditions = seeded(2, 10)
    cotangent = np.random.default_rng(10).standard_normal((2, 4, 301), np.float32)
    tensors = {"structure": structures[:, None].astype(np.float32), "cotangent": cotangent, **conditions}
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in tensors.items()
    ]
    wanted = [{"name": "gradient_distance_um", "parameters": {"datatype": "FP16"}}]
    path = f"/v2/models/{GRADIENT}/infer"
    (output,) = conditioned.post(path, json={"inputs": inputs, "outputs": wanted}).raise_for_status().json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP16", [2, 1])
    expected = direct.gradients(structures, cotangent, **conditions)["gradient_distance_um"]
    np.testing.assert_array_equal(np.float16(output["data"]), expected.astype(np.float16).ravel())
    inputs[1]["data"] = (cotangent * np.float32(1e5)).ravel().tolist()
    answer = conditioned.post(path, json={"inputs": inputs, "outputs": wanted})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("gradient_distance_um: the largest value of structure ")


def test_metadata_and_configuration_list_them(conditioned: RunningServer, server: RunningServer) -> None:
    metadata = conditioned.get(f"/v2/models/{GRADIENT}").json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["structure", "cotangent", "distance_um", "incidence"]
    assert metadata["inputs"][2:] == [
        {"name": "distance_um", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "incidence", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert [tensor["name"] for tensor in metadata["outputs"]] == OUTPUTS
    assert metadata["parameters"]["conditions"] == [condition.model_dump(mode="json") for condition in CONDITIONS]
    config = conditioned.get(f"/v2/models/{NAME}/config").json()
    assert {tensor["name"]: tensor.get("optional", False) for tensor in config["input"]} == {
        "structure": False,
        "distance_um": True,
        "incidence": True,
    }
    with tritonclient.grpc.InferenceServerClient(conditioned.grpc_address) as client:
        over_grpc = client.get_model_config(NAME).config.input
    assert [tensor.optional for tensor in over_grpc] == [False, True, True]
    assert "optional" not in server.get(f"/v2/models/{NAME}/config").json()["input"][0]
    assert "conditions" not in server.get(f"/v2/models/{NAME}").json()["parameters"]
