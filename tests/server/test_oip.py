"""The stock Triton client against the real server, and requests that no client would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected, ExpectedGradient

INFER = "/v2/models/diffractionnet/infer"


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=8) as client:
        yield client


def infer_input(structures: Array, binary: bool = True, datatype: str = "FP32") -> triton.InferInput:
    dtype = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8, "BOOL": bool}[datatype]
    tensor = triton.InferInput("structure", [len(structures), 1, 128, 128], datatype)
    tensor.set_data_from_numpy(structures[:, None].astype(dtype), binary_data=binary)
    return tensor


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("diffractionnet")
    assert client.is_model_ready("diffractionnet", "1")
    assert not client.is_model_ready("diffractionnet", "2")
    assert client.get_server_metadata()["name"] == "metaspec"
    metadata = client.get_model_metadata("diffractionnet")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "structure", "datatype": "FP32", "shape": [-1, 1, 128, 128]}]
    assert metadata["outputs"] == [{"name": "spectra", "datatype": "FP32", "shape": [-1, 4, 301]}]
    assert metadata["parameters"]["channels"] == ["R", "G1", "G2", "B"]
    assert client.get_model_config("diffractionnet")["output"][0]["dims"] == [4, 301]
    index = client.get_model_repository_index()
    assert index == [
        {"name": "diffractionnet", "version": "1", "state": "READY"},
        {"name": "diffractionnet_vjp", "version": "1", "state": "READY"},
    ]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_inference(
    server: RunningServer,
    client: triton.InferenceServerClient,
    structures: Array,
    expected: Expected,
    binary_in: bool,
    binary_out: bool,
) -> None:
    output = triton.InferRequestedOutput("spectra", binary_data=binary_out)
    result = client.infer("diffractionnet", [infer_input(structures, binary_in)], outputs=[output], request_id="a7")
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
    assert result.get_response()["id"] == "a7"
    assert result.get_response()["model_version"] == "1"
    assert 'route="/v2/models/{model}/infer"' in server.get("/metrics").text


@pytest.mark.parametrize("datatype", ["FP16", "UINT8", "BOOL"])
def test_smaller_datatypes_are_taken_too(
    client: triton.InferenceServerClient, structures: Array, expected: Expected, datatype: str
) -> None:
    result = client.infer("diffractionnet", [infer_input(structures, datatype=datatype)])
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    client: triton.InferenceServerClient, structures: Array, expected: Expected, algorithm: str
) -> None:
    result = client.infer("diffractionnet", [infer_input(structures)], request_compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)


def test_gradients(
    client: triton.InferenceServerClient, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    values = np.random.default_rng(2).normal(size=(len(structures), 4, 301)).astype(np.float32)
    cotangent = triton.InferInput("cotangent", values.shape, "FP32")
    cotangent.set_data_from_numpy(values)
    result = client.infer("diffractionnet_vjp", [infer_input(structures), cotangent])
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("gradient")[:, 0], expected_gradient(structures, values), atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_packed_bits_and_half_precision(
    client: triton.InferenceServerClient, structures: Array, expected: Expected, binary: bool
) -> None:
    assert "metaspec_packed_structures" in client.get_server_metadata()["extensions"]
    packed = triton.InferInput("structure", [len(structures), 2048], "UINT8")
    packed.set_data_from_numpy(np.packbits(structures.reshape(-1, 16384), axis=1), binary_data=binary)
    output = triton.InferRequestedOutput("spectra", binary_data=True)
    output._parameters["datatype"] = "FP16"
    result = client.infer("diffractionnet", [packed], outputs=[output]).as_numpy("spectra")
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, expected(structures).astype(np.float16))
    packed = triton.InferInput("structure", [len(structures), 2047], "UINT8")
    packed.set_data_from_numpy(np.zeros((len(structures), 2047), np.uint8))
    with pytest.raises(InferenceServerException, match=r"or UINT8 \[N, 2048\] of packed bits, got \[5, 2047\]"):
        client.infer("diffractionnet", [packed])


async def test_the_stock_asyncio_client(
    server: RunningServer, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    values = np.random.default_rng(2).normal(size=(len(structures), 4, 301)).astype(np.float32)
    cotangent = triton.InferInput("cotangent", values.shape, "FP32")
    cotangent.set_data_from_numpy(values)
    async with triton_aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("diffractionnet_vjp")
        forward, backward = await asyncio.gather(
            client.infer("diffractionnet", [infer_input(structures)]),
            client.infer("diffractionnet_vjp", [infer_input(structures), cotangent]),
        )
        with pytest.raises(InferenceServerException, match="cotangent is missing"):
            await client.infer("diffractionnet_vjp", [infer_input(structures)])
    np.testing.assert_allclose(forward.as_numpy("spectra"), expected(structures), atol=1e-6)
    np.testing.assert_allclose(backward.as_numpy("gradient")[:, 0], expected_gradient(structures, values), atol=1e-6)


def test_hundreds_of_concurrent_callers_get_their_own_answers(server: RunningServer, expected: Expected) -> None:
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, 2, (rng.integers(1, 6), 128, 128)).astype(np.float32) for _ in range(200)]
    with server.client(limits=httpx.Limits(max_connections=64)) as http:

        def ask(structures: Array) -> Array:
            content = structures.tobytes()
            shape, size = [len(structures), 1, 128, 128], {"binary_data_size": len(content)}
            tensor = {"name": "structure", "datatype": "FP32", "shape": shape, "parameters": size}
            header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Inference-Header-Content-Length": str(len(header))}
            answer = http.post(INFER, content=header + content, headers=headers).raise_for_status()
            offset = int(answer.headers["Inference-Header-Content-Length"])
            return np.frombuffer(answer.content[offset:], np.float32).reshape(len(structures), 4, 301)

        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, requests))
    for structures, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, expected(structures), atol=1e-5)


def test_errors_reach_the_stock_client(client: triton.InferenceServerClient, structures: Array) -> None:
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        client.infer("other", [infer_input(structures)])
    with pytest.raises(InferenceServerException, match="no version '9'"):
        client.infer("diffractionnet", [infer_input(structures)], model_version="9")
    with pytest.raises(InferenceServerException, match="no output 'phase'"):
        client.infer("diffractionnet", [infer_input(structures)], outputs=[triton.InferRequestedOutput("phase")])
    with pytest.raises(
        InferenceServerException, match=r"must lie between 0 \(void\) and 1 \(solid\), got 2 at structure 0"
    ):
        client.infer("diffractionnet", [infer_input(2 * structures)])
    with pytest.raises(InferenceServerException, match="at most 600 structures"):
        client.infer("diffractionnet", [infer_input(np.zeros((601, 128, 128)))])
    wrong = triton.InferInput("structure", [1, 128, 128], "FP32")
    wrong.set_data_from_numpy(structures[:1].astype(np.float32))
    with pytest.raises(InferenceServerException, match=r"shape must be \[N, 1, 128, 128\]"):
        client.infer("diffractionnet", [wrong])


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "structure", "datatype": "FP32", "shape": [1, 1, 128, 128], **changes}


SIZED = {"binary_data_size": 65536}
HALF = {"name": "spectra", "parameters": {"datatype": "INT8"}}
BITS = {"name": "structure", "datatype": "UINT8", "shape": [1, 2048]}


@pytest.mark.parametrize(
    ("header", "blob", "message"),
    [
        ([], b"", "must be a JSON object"),
        ({}, b"", "inputs must be a list"),
        ({"inputs": [tensor(name="x")]}, b"", "no input 'x'"),
        ({"inputs": [tensor(datatype="INT4")]}, b"", "datatype must be one of"),
        ({"inputs": [tensor(shape=[1, 1, 128])]}, b"", "shape must be"),
        ({"inputs": [tensor(shape=[0, 1, 128, 128])]}, b"", "N >= 1"),
        ({"inputs": [tensor(data=[1, 2])]}, b"", "data must be 16384 numbers"),
        ({"inputs": [BITS | {"data": [0] * 2047 + [256]}]}, b"", "whole numbers from 0 to 255"),
        ({"inputs": [BITS | {"data": [0] * 2047 + [0.5]}]}, b"", "whole numbers from 0 to 255"),
        ({"inputs": [BITS | {"datatype": "FP32", "data": [0] * 2048}]}, b"", "or UINT8 [N, 2048] of packed bits"),
        ({"inputs": [tensor(parameters=SIZED)], "outputs": [HALF]}, b"\0" * 65536, "datatype must be FP16 or FP32"),
        ({"inputs": [tensor(data="x")]}, b"", "data must be a list"),
        ({"inputs": [tensor(parameters=SIZED)]}, b"\0" * 65535, "only 65535 bytes are left"),
        ({"inputs": [tensor(parameters=SIZED)]}, b"\0" * 65537, "1 bytes are left over"),
        ({"inputs": [tensor(parameters={"binary_data_size": 4})]}, b"\0" * 4, "is 65536 bytes, got 4"),
        ({"inputs": [tensor(parameters={"binary_data_size": -1})]}, b"", "whole number of bytes"),
    ],
)
def test_malformed_requests(server: RunningServer, header: object, blob: bytes, message: str) -> None:
    content = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))}
    answer = server.post(INFER, content=content + blob, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["inputs", "outputs", "parameters", "name", "shape", "data", "id"]), inner
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    length=st.none() | st.text(alphabet="0123456789-x", max_size=6),
)
def test_random_requests_never_break_the_server(server: RunningServer, body: bytes, length: str | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = server.post(INFER, content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]
