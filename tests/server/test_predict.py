from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def npy(array: Array, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def post(http: httpx.Client, content: bytes, content_type: str, accept: str = JSON) -> httpx.Response:
    return http.post("/predict", content=content, headers={"Content-Type": content_type, "Accept": accept})


def test_json(http: httpx.Client, structures: Array, expected: Expected) -> None:
    answer = http.post("/predict", json={"structures": structures.tolist()})
    body = answer.raise_for_status().json()
    np.testing.assert_allclose(np.float32(body["spectra"]), expected(structures), atol=1e-6)
    assert body["model"] == "diffractionnet"
    assert body["version"] == "1"
    assert body["channels"] == ["R", "G1", "G2", "B"]
    assert body["wavelengths_nm"] == list(range(400, 701))
    assert body["units"] == "efficiency"


def test_one_structure_and_densities(http: httpx.Client, expected: Expected) -> None:
    density = np.random.default_rng(1).random((128, 128))
    body = http.post("/predict", json={"structures": density.tolist()}).raise_for_status().json()
    np.testing.assert_allclose(np.float32(body["spectra"]), expected(density), atol=1e-6)


def test_rest_and_the_open_inference_protocol_check_structures_alike(
    server: RunningServer, http: httpx.Client, expected: Expected
) -> None:
    """Both clip what leaves [0, 1] by rounding, and refuse the rest with the same words."""

    def ask_oip(density: Array) -> httpx.Response:
        tensor = {"name": "structure", "datatype": "FP64", "shape": [1, 1, 128, 128], "data": density.ravel().tolist()}
        return server.post("/v2/models/diffractionnet/infer", json={"inputs": [tensor]})

    density = np.random.default_rng(4).random((128, 128))
    density[0, :2] = -5e-7, 1 + 5e-7
    body = http.post("/predict", json={"structures": density.tolist()}).raise_for_status().json()
    np.testing.assert_allclose(np.float32(body["spectra"]), expected(density.clip(0, 1)), atol=1e-6)
    (output,) = ask_oip(density).raise_for_status().json()["outputs"]
    np.testing.assert_allclose(np.float32(output["data"]), np.float32(body["spectra"]).ravel(), atol=1e-6)

    for value in (-2e-6, 1 + 2e-6, 255.0):
        density[5, 7] = value
        problem = http.post("/predict", json={"structures": density.tolist()})
        refused = ask_oip(density)
        assert problem.status_code == refused.status_code == 422
        assert problem.json()["field"] == "structures"
        assert "at structure 0, row 5, column 7" in problem.json()["detail"]
        assert refused.json()["error"] == problem.json()["detail"]
    missing = np.full((1, 1, 128, 128), np.nan, np.float32).tobytes()
    tensor = {"name": "structure", "datatype": "FP32", "shape": [1, 1, 128, 128]}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(missing)}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    refused = server.post("/v2/models/diffractionnet/infer", content=header + missing, headers=headers)
    assert refused.status_code == 422
    assert "got nan at structure 0, row 0, column 0" in refused.json()["error"]


def test_every_way_in_and_out_gives_the_same(http: httpx.Client, structures: Array, expected: Expected) -> None:
    packed = np.packbits(structures, axis=None).tobytes()
    bodies = [
        (npy(structures), NPY),
        (npy(structures[:, None].astype(np.float16)), RAW),
        (npy(structures.astype(bool)), NPY),
        (packed, RAW),
        (json.dumps({"packed": base64.b64encode(packed).decode()}).encode(), JSON),
    ]
    for content, content_type in bodies:
        as_npy = post(http, content, content_type, NPY).raise_for_status()
        np.testing.assert_allclose(np.load(io.BytesIO(as_npy.content)), expected(structures), atol=1e-6)
        raw = post(http, content, content_type, RAW).raise_for_status()
        shape = [int(n) for n in raw.headers["MetaSpec-Shape"].split(",")]
        np.testing.assert_array_equal(
            np.frombuffer(raw.content, "<f4").reshape(shape), np.load(io.BytesIO(as_npy.content))
        )


def test_channels_and_interpolated_wavelengths(http: httpx.Client, structures: Array, expected: Expected) -> None:
    wanted = {"structures": structures.tolist(), "wavelengths_nm": [400, 450.25, 700], "channels": ["B", "R"]}
    body = http.post("/predict", json=wanted).raise_for_status().json()
    full = expected(structures)[:, [3, 0]]
    between = 0.75 * full[..., 50] + 0.25 * full[..., 51]
    np.testing.assert_allclose(body["spectra"], np.stack([full[..., 0], between, full[..., 300]], axis=-1), atol=1e-6)


def test_compressed_body(http: httpx.Client, structures: Array, expected: Expected) -> None:
    headers = {"Content-Type": RAW, "Accept": NPY, "Content-Encoding": "gzip"}
    answer = http.post("/predict", content=gzip.compress(np.packbits(structures).tobytes()), headers=headers)
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected(structures), atol=1e-6)


def test_damaged_compressed_bodies(http: httpx.Client, structures: Array) -> None:
    whole = gzip.compress(np.packbits(structures).tobytes())
    headers = {"Content-Type": RAW, "Content-Encoding": "gzip"}
    for content, message in ((whole[:-9], "incomplete"), (b"\0" + whole, "not valid gzip")):
        answer = http.post("/predict", content=content, headers=headers)
        assert answer.status_code == 400
        assert message in answer.json()["detail"]


GOOD = np.zeros((128, 128))


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (np.zeros((2, 64, 64)), r"got (2, 64, 64)"),
        (np.zeros((2, 3, 128, 128)), r"got (2, 3, 128, 128)"),
        (np.zeros((0, 128, 128)), "at least one structure"),
        (np.full((128, 128), np.nan), "got nan at structure 0, row 0, column 0"),
        (GOOD - np.eye(128)[::-1] * np.arange(128), "got -127 at structure 0, row 0, column 127"),
        (np.full((128, 128), 255, np.uint8), "divide 8-bit images by 255"),
        (np.zeros((128, 128), complex), "got complex128"),
    ],
)
def test_what_is_no_structure(http: httpx.Client, structures: Array, message: str) -> None:
    answer = post(http, npy(structures), NPY)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["field"] == "structures"
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b"{", "body", "cannot be read"),
        (b"[]", "body", "JSON object"),
        (b"{}", "structures", "exactly one of"),
        (b'{"structures": [], "packed": ""}', "structures", "exactly one of"),
        (b'{"structures": [[1], [1, 2]]}', "structures", "got ragged ones"),
        (b'{"structures": "x"}', "structures", "nested lists of numbers, got text"),
        (b'{"packed": "%%"}', "packed", "base64"),
        (b'{"packed": 3}', "packed", "base64"),
        (b'{"packed": "AAAA"}', "body", "2048 bytes each, got 3"),
        (b'{"packed": "", "colour": 1}', "colour", "unknown field"),
    ],
)
def test_malformed_json(http: httpx.Client, body: bytes, field: str, message: str) -> None:
    answer = post(http, body, JSON)
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"wavelengths_nm": [399]}, "wavelengths_nm"),
        ({"wavelengths_nm": []}, "wavelengths_nm"),
        ({"wavelengths_nm": ["red"]}, "wavelengths_nm"),
        ({"channels": ["X"]}, "channels"),
        ({"channels": "R"}, "channels"),
    ],
)
def test_bad_selections(http: httpx.Client, extra: dict[str, object], field: str) -> None:
    answer = http.post("/predict", json={"structures": GOOD.tolist(), **extra})
    assert answer.status_code == 422
    assert answer.json()["field"] == field


def test_damaged_and_pickled_npy(http: httpx.Client) -> None:
    assert "cannot be read" in post(http, npy(GOOD)[:-1], NPY).json()["detail"]
    pickled = npy(np.array([{"a": 1}], object), allow_pickle=True)
    assert "pickled Python objects, which are refused" in post(http, pickled, NPY).json()["detail"]
    assert post(http, pickle.dumps(GOOD), RAW).status_code == 422


def test_types_that_are_not_spoken(http: httpx.Client) -> None:
    assert post(http, b"", "text/csv").status_code == 415
    assert post(http, npy(GOOD), NPY, accept="image/png").status_code == 406
    assert http.post("/predict?model=other", json={"structures": GOOD.tolist()}).status_code == 404
    assert http.get("/predict").status_code == 405
    headers = {"Content-Type": NPY, "Content-Encoding": "br"}
    assert http.post("/predict", content=b"x", headers=headers).status_code == 415


def test_too_much(http: httpx.Client, small_repository: Path) -> None:
    assert post(http, npy(np.zeros((601, 128, 128), bool)), NPY).status_code == 413
    with running_server("--repository", str(small_repository), "--max-body-bytes", "50000") as small:
        headers = {"Content-Type": NPY}
        answer = small.post("/predict", content=npy(GOOD), headers=headers)
        assert answer.status_code == 413
        assert "50000 bytes" in answer.json()["detail"]
        some = npy(np.zeros((4, 128, 128), bool))  # its head fits the limits of the model
        streamed = small.post(
            "/predict", content=iter([some[:30000], some[30000:60000], some[60000:]]), headers=headers
        )
        assert streamed.status_code == 413, "also without a Content-Length"
        bomb = gzip.compress(b"\0" * 10**7)
        answer = small.post("/predict", content=bomb, headers={**headers, "Content-Encoding": "gzip"})
        assert answer.status_code == 413


def test_more_than_the_queue_could_ever_hold_and_a_late_answer(small_repository: Path) -> None:
    flags = ("--repository", str(small_repository), "--max-queue", "4", "--request-timeout", "1e-6")
    with running_server(*flags) as server:
        body = npy(np.zeros((5, 128, 128), bool))
        answer = server.post("/predict", content=body, headers={"Content-Type": NPY})
        assert answer.status_code == 413
        assert "at most 4 structures" in answer.json()["detail"]
        answer = server.post("/predict", content=npy(GOOD), headers={"Content-Type": NPY})
        assert answer.status_code == 504


def test_a_client_that_hangs_up_harms_nobody(
    server: RunningServer, http: httpx.Client, structures: Array, expected: Expected
) -> None:
    before = list(server.log)  # other tests share the server
    host, port = server.address.split(":")

    def hang_up() -> None:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n")
            connection.sendall(b"Content-Length: 2048000\r\n\r\n" + b"\0" * 2048)

    threads = [threading.Thread(target=hang_up) for _ in range(20)]
    for thread in threads:
        thread.start()
    answer = post(http, npy(structures), NPY, NPY)
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected(structures), atol=1e-6)
    for thread in threads:
        thread.join()
    assert http.get("/v2/health/ready").status_code == 200
    assert server.log == before, "it is not worth a word in the log, let alone a traceback"
