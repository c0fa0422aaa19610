"""What is not understood is refused by name: queries, fields and parameters; what stock clients send by default is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected

INFER = "/v2/models/diffractionnet/infer"


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/gradient"),
        ("POST", "/gdsii/read"),
        ("POST", "/gdsii/write"),
        ("GET", "/contract"),
        ("GET", "/metrics"),
        ("GET", "/v2"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/diffractionnet"),
        ("GET", "/v2/models/diffractionnet/config"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/diffractionnet/load"),
        ("POST", INFER),
        ("POST", "/v2/models/diffractionnet/versions/1/infer"),
    ],
)
def test_unknown_names_in_the_query(server: RunningServer, method: str, path: str) -> None:
    with server.client() as http:
        octets = {
            "Content-Type": "application/octet-stream"
        }  # what is wrong with the query is said before the body is read
        answer = http.request(method, path + "?wavelength_nm=450", headers=octets)
    assert answer.status_code == (400 if path.startswith("/v2") else 422)
    message = answer.json()["error" if path.startswith("/v2") else "detail"]
    known = ""
    if path in ("/predict", "/gradient"):
        known = "known are channels, conditions, dtype, model, priority, version, wavelengths_nm; "
        known += "wavelength_nm is no condition of this model, which takes none"
    elif path.startswith("/gdsii/"):
        known = "known are cell, layer, model"
    assert message == f"wavelength_nm: unknown name in the query; {known or 'this route takes none'}"


def test_names_that_are_given_twice(server: RunningServer) -> None:
    answer = server.post("/predict?model=diffractionnet&model=other", json={"structures": np.eye(128).tolist()})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "model: given twice in the query, expected once"


ODD = ["3", "-1", "high", "", "1.0", "+1", " 1", "1 ", "01", "-0", "0_1", "1e0", "true", "\uff11", "9" * 5000]
"""No priorities, though Python or pydantic takes some of them for a whole number."""


@pytest.mark.parametrize("wrong", ODD)
def test_priorities_of_our_own_routes(server: RunningServer, structures: Array, expected: Expected, wrong: str) -> None:
    body = np.packbits(structures).tobytes()
    raw = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    for known in ("0", "1", "2"):
        answer = server.post(f"/predict?priority={known}", content=body, headers=raw).raise_for_status()
        np.testing.assert_allclose(np.frombuffer(answer.content, "<f4"), expected(structures).ravel(), atol=1e-6)
    answer = server.post("/predict", params={"priority": wrong}, content=body, headers=raw)
    assert answer.status_code == 422
    assert answer.json()["field"] == "priority"
    assert answer.json()["detail"] == f"priority: expected a whole number from 0 to 2, got {wrong[:60]!r}"


@pytest.mark.parametrize(
    "wrong", ["", " 450", "+450", "4_50", "450.", ".5", "inf", "nan", "0x1c2", "\uff14\uff15\uff10"]
)
def test_numbers_in_the_query_are_spelled_as_in_json(server: RunningServer, wrong: str) -> None:
    answer = server.post("/predict", params={"wavelengths_nm": wrong}, json={"structures": np.eye(128).tolist()})
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"wavelengths_nm.0: expected a number, got {wrong!r}"
    answer = server.post(
        "/predict?wavelengths_nm=4.5e2&wavelengths_nm=450.5", json={"structures": np.eye(128).tolist()}
    )
    assert answer.raise_for_status().json()["wavelengths_nm"] == [450, 450.5]


def infer(server: RunningServer, structures: Array, **changes: Any) -> httpx.Response:
    tensor = {
        "name": "structure",
        "datatype": "FP32",
        "shape": [len(structures), 1, 128, 128],
        "data": structures.ravel().tolist(),
    }
    return server.post(INFER, json={"inputs": [tensor | changes.pop("tensor", {})], **changes})


WANTED = {"name": "spectra"}
REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 4816}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "the request: unknown field 'colour'"),
        ({"model_name": "other"}, "model_name is 'other', but the path asks for 'diffractionnet'"),
        (
            {"parameters": {"colour": 1}},
            "the request: unknown parameter 'colour'; known are binary_data_output, timeout, priority",
        ),
        ({"parameters": {"binary_data_output": "true"}}, "binary_data_output must be true or false, got 'true'"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false, got 1"),
        (
            {"parameters": {"priority": 3}},
            "the parameter priority must be 0 for the default, or from 1, the highest, to 2, got 3",
        ),
        ({"parameters": {"priority": True}}, "the parameter priority must be 0 for the default"),
        ({"parameters": {"sequence_id": 7}}, "the parameter sequence_id is not supported here, got 7"),
        ({"parameters": {"sequence_id": "s"}}, "the parameter sequence_id is not supported here, got 's'"),
        ({"parameters": {"sequence_start": True}}, "the parameter sequence_start is not supported here"),
        ({"parameters": {"timeout": 1.5}}, "timeout must be a whole number of microseconds, 0 for none, got 1.5"),
        ({"parameters": {"timeout": True}}, "timeout must be a whole number of microseconds, 0 for none, got True"),
        ({"parameters": {"timeout": -1}}, "timeout must be a whole number of microseconds, 0 for none, got -1"),
        ({"parameters": ["x"]}, "parameters must be an object, got list"),
        ({"parameters": ""}, "parameters must be an object, got str"),
        ({"outputs": [WANTED | {"shape": [1]}]}, "spectra: unknown field 'shape'"),
        ({"outputs": [WANTED, WANTED]}, "outputs: 'spectra' is given twice"),
        (
            {"outputs": [WANTED | {"parameters": {"binary_data": "yes"}}]},
            "binary_data must be true or false, got 'yes'",
        ),
        ({"outputs": [WANTED | {"parameters": {"classification": 3}}]}, "classification is not supported here, got 3"),
        ({"outputs": [WANTED | {"parameters": REGION}]}, "no shared memory region 'r' is registered; there is none"),
        (
            {"outputs": [WANTED | {"parameters": REGION | {"shared_memory_offset": -1}}]},
            "shared_memory_offset must be a whole number of bytes, got -1",
        ),
        (
            {"outputs": [WANTED | {"parameters": REGION | {"shared_memory_region": 1}}]},
            "shared_memory_region must be the name of a region, got 1",
        ),
        (
            {"outputs": [WANTED | {"parameters": {"shared_memory_region": "r"}}]},
            "shared_memory_region needs shared_memory_byte_size, a number of bytes above 0",
        ),
        (
            {"outputs": [WANTED | {"parameters": {"shared_memory_byte_size": 4816}}]},
            "shared_memory_byte_size and shared_memory_offset need shared_memory_region",
        ),
        ({"outputs": [WANTED | {"parameters": {"colour": 1}}]}, "spectra: unknown parameter 'colour'"),
        ({"outputs": {}}, "outputs must be a list of objects"),
        ({"tensor": {"colour": 1}}, "structure: unknown field 'colour'"),
        ({"tensor": {"parameters": REGION}}, "structure: values must come as a list data of numbers, as bytes with"),
        ({"tensor": {"parameters": REGION, "data": None}}, "FP32 of shape [1, 1, 128, 128] is 65536 bytes, got 4816"),
        ({"tensor": {"parameters": {"binary_data_size": "9"}}}, "binary_data_size must be a whole number of bytes"),
        ({"tensor": {"parameters": {"binary_data_size": 65536}}}, "got data and binary_data_size"),
        ({"tensor": {"data": None}}, "got none"),
        (
            {"tensor": {"datatype": "BOOL", "data": [0.5] + [0] * 16383}},
            "BOOL must be true and false, or 1 and 0, got 0.5",
        ),
        ({"tensor": {"datatype": "BOOL", "data": [2] + [0] * 16383}}, "BOOL must be true and false, or 1 and 0, got 2"),
        (
            {"tensor": {"datatype": "UINT8", "data": [0.5] + [0] * 16383}},
            "UINT8 must be whole numbers from 0 to 255, got 0.5",
        ),
        (
            {"tensor": {"data": ["1"] + [0] * 16383}},
            "structure: data: expected evenly nested lists of numbers, got text",
        ),
        ({"id": 5}, "id must be a string, got 5"),
    ],
)
def test_what_the_protocol_or_this_server_does_not_know(
    server: RunningServer, structures: Array, changes: dict[str, Any], message: str
) -> None:
    answer = infer(server, structures[:1], **changes)
    assert answer.status_code == (404 if "no shared memory region" in message else 400)
    assert message in answer.json()["error"]


def test_booleans_are_bytes_of_0_and_1(server: RunningServer) -> None:
    size = {"binary_data_size": 16384}
    tensor = {"name": "structure", "datatype": "BOOL", "shape": [1, 1, 128, 128], "parameters": size}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.post(INFER, content=head + b"\7" * 16384, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"] == "structure: the bytes of BOOL must be 0 or 1, got 7"


@pytest.mark.parametrize("length", ["9" * 5000, "99999999", "-1", "0x10", "1.0", ""])
def test_lengths_of_the_json_that_are_none(server: RunningServer, length: str) -> None:
    answer = server.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": 0}},
        {"parameters": None, "outputs": None, "id": None},
        {"outputs": []},
        {"outputs": [WANTED | {"parameters": {"classification": 0, "binary_data": False}}]},
        {"parameters": {"timeout": 30_000_000, "binary_data_output": False}},
        {"id": "7", "model_name": "diffractionnet"},  # as KServe's client sends it
        {"tensor": {"datatype": "BOOL"}},
    ],
)
def test_what_asks_for_nothing_is_taken(
    server: RunningServer, structures: Array, expected: Expected, changes: dict[str, Any]
) -> None:
    (output,) = infer(server, structures, **changes).raise_for_status().json()["outputs"]
    np.testing.assert_allclose(np.array(output["data"]).ravel(), expected(structures).ravel(), atol=1e-6)


def test_a_caller_may_wait_for_less_than_the_server_would(server: RunningServer) -> None:
    new = np.random.default_rng(77).integers(0, 2, (1, 128, 128), np.uint8)  # in no cache yet
    answer = infer(server, new, parameters={"timeout": 1})
    assert answer.status_code == 504
    assert answer.json()["error"] == "not finished within 1e-06 s"


def test_parameters_of_the_stock_client(
    client: triton.InferenceServerClient, structures: Array, expected: Expected
) -> None:
    tensor = triton.InferInput("structure", [len(structures), 1, 128, 128], "UINT8")
    tensor.set_data_from_numpy(structures[:, None])
    result = client.infer("diffractionnet", [tensor], timeout=60_000_000, priority=1)
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"priority": 3}, "priority must be 0 for the default, or from 1, the highest, to 2, got 3"),
        ({"sequence_id": 9, "sequence_start": True}, "sequence_id is not supported"),
        ({"parameters": {"colour": "red"}}, "unknown parameter 'colour'"),
        ({"outputs": [triton.InferRequestedOutput("spectra", class_count=2)]}, "classification is not supported"),
    ]
    for options, message in refused:
        with pytest.raises(InferenceServerException, match=message):
            client.infer("diffractionnet", [tensor], **options)
    tensor.set_shared_memory("region", 5 * 16384)
    with pytest.raises(InferenceServerException, match="no shared memory region 'region' is registered"):
        client.infer("diffractionnet", [tensor])


def test_the_repository_takes_no_override(client: triton.InferenceServerClient, server: RunningServer) -> None:
    with pytest.raises(InferenceServerException, match="the load request: the parameter config is not supported here"):
        client.load_model("diffractionnet", config="{}")
    with pytest.raises(InferenceServerException, match="unload_dependents is not supported here, got True"):
        client.unload_model("diffractionnet", unload_dependents=True)
    assert client.is_model_ready("diffractionnet")
    load = "/v2/repository/models/diffractionnet/load"
    for body, message in (
        (b"{", "cannot be read"),
        (b"[]", "must be a JSON object"),
        (b'{"colour": 1}', "unknown field 'colour'"),
        (b'{"parameters": {"file:1/model.onnx": "QQ=="}}', "unknown parameter 'file:1/model.onnx'"),
    ):
        answer = server.post(load, content=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def test_the_index_of_those_that_are_ready(server: RunningServer) -> None:
    everything = server.post("/v2/repository/index").json()
    assert server.post("/v2/repository/index", json={"ready": True}).json() == everything
    answer = server.post("/v2/repository/index", json={"ready": "true"})
    assert answer.status_code == 400
    assert "ready must be true or false" in answer.json()["error"]


def test_health_is_json_as_the_protocol_says(server: RunningServer) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/diffractionnet/ready", "/v2/models/diffractionnet/versions/1/ready"):
        assert server.get(path).json() == {"name": "diffractionnet", "ready": True}
    missing = server.get("/v2/models/other/ready")
    assert (missing.status_code, list(missing.json())) == (404, ["error"])
