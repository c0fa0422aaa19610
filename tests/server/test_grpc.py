"""The Open Inference Protocol over gRPC: the stock Triton clients and ours against the real server."""

from __future__ import annotations

import asyncio
import gzip
import queue
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import trustme
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from metaspec import Surrogate
from metaspec_server.core.keys import ApiKeys
from metaspec_server.core.service import Service
from metaspec_server.engines.factory import engine_factory
from metaspec_server.oip_grpc import inference
from metaspec_server.oip_grpc import server as grpc_server
from metaspec_server.oip_grpc.messages import encode_answer
from metaspec_server.oip_grpc.methods import METHODS, SERVICE
from metaspec_server.ops.metrics import Metrics
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected, ExpectedGradient, hanging_model, write_repository

NAME = "diffractionnet"
HEALTH = "/grpc.health.v1.Health/Check"
TIMEOUT = 60.0
MINE = {"x-api-key": "infer-key-0123456789"}
DTYPES: dict[str, Any] = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "UINT8": np.uint8, "BOOL": bool}


@pytest.fixture(scope="module")
def running(small_repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(small_repository), "--max-structures", "600", "--grpc-port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def address(running: RunningServer) -> str:
    return running.grpc_address


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def infer_input(structures: Array, datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("structure", [len(structures), 1, 128, 128], datatype)
    tensor.set_data_from_numpy(structures.reshape(-1, 1, 128, 128).astype(DTYPES[datatype]))
    return tensor


def random_structures(number: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 2, (number, 128, 128), np.uint8)


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready(NAME, "2")
    assert not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert server.name == "metaspec"
    assert {"statistics", "system_shared_memory", "logging", "model_configuration"} <= set(server.extensions)
    metadata = client.get_model_metadata(NAME, as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "structure", "datatype": "FP32", "shape": ["-1", "1", "128", "128"]}]
    assert metadata["outputs"] == [{"name": "spectra", "datatype": "FP32", "shape": ["-1", "4", "301"]}]
    index = client.get_model_repository_index().models
    assert [(model.name, model.version, model.state) for model in index] == [
        (NAME, "1", "READY"),
        (f"{NAME}_vjp", "1", "READY"),
    ]


def test_the_configuration_is_the_one_of_http(client: triton.InferenceServerClient, running: RunningServer) -> None:
    config = client.get_model_config(NAME).config
    assert (config.name, config.backend, config.max_batch_size) == (NAME, "onnxruntime", 600)
    assert [list(tensor.dims) for tensor in [*config.input, *config.output]] == [[1, 128, 128], [4, 301]]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.priority_levels == 2
    over_http = running.get(f"/v2/models/{NAME}/config").json()
    assert config.parameters["metaspec"].string_value == over_http["parameters"]["metaspec"]["string_value"]
    assert over_http["max_batch_size"] == 600
    assert over_http["input"][0]["dims"] == [1, 128, 128]
    assert over_http["input"][0]["data_type"] == "TYPE_FP32"


def test_every_method_of_the_service_is_there() -> None:
    methods = {name for name in dir(service_pb2_grpc.GRPCInferenceServiceServicer) if name[0].isupper()}
    ours = {path.rpartition("/")[2] for path in METHODS if path.startswith(f"/{SERVICE}/")}
    assert ours | {"ModelInfer", "ModelStreamInfer"} == methods


@pytest.mark.parametrize("datatype", DTYPES)
def test_inference(client: triton.InferenceServerClient, structures: Array, expected: Expected, datatype: str) -> None:
    result = client.infer(NAME, [infer_input(structures, datatype)], request_id="a7", priority=1, timeout=60_000_000)
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
    assert (result.get_response().id, result.get_response().model_version) == ("a7", "1")


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT8", "BOOL"])
def test_numbers_that_do_not_come_as_bytes(address: str, structures: Array, expected: Expected, datatype: str) -> None:
    """As KServe's client sends lists."""
    values = structures[:2].ravel().astype(DTYPES[datatype]).tolist()
    field = {"FP32": "fp32", "FP64": "fp64", "UINT8": "uint", "BOOL": "bool"}[datatype]
    tensor = {
        "name": "structure",
        "datatype": datatype,
        "shape": [2, 1, 128, 128],
        "contents": {f"{field}_contents": values},
    }
    request = messages.ModelInferRequest(model_name=NAME, inputs=[tensor])
    with grpc.insecure_channel(address) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT)
    spectra = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 4, 301)
    np.testing.assert_allclose(spectra, expected(structures[:2]), atol=1e-6)


def test_packed_bits_half_precision_and_compression(
    client: triton.InferenceServerClient, structures: Array, expected: Expected
) -> None:
    packed = triton.InferInput("structure", [len(structures), 2048], "UINT8")
    packed.set_data_from_numpy(np.packbits(structures.reshape(-1, 16384), axis=1))
    output = triton.InferRequestedOutput("spectra")
    output._output.parameters["datatype"].string_param = "FP16"
    result = client.infer(NAME, [packed], outputs=[output], compression_algorithm="gzip").as_numpy("spectra")
    np.testing.assert_array_equal(result, expected(structures).astype(np.float16))


async def test_the_asyncio_client_and_gradients(
    address: str, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    values = np.random.default_rng(2).normal(size=(len(structures), 4, 301)).astype(np.float32)
    cotangent = triton.InferInput("cotangent", values.shape, "FP32")
    cotangent.set_data_from_numpy(values)
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        result = await client.infer(f"{NAME}_vjp", [infer_input(structures), cotangent])
        with pytest.raises(InferenceServerException, match="cotangent is missing"):
            await client.infer(f"{NAME}_vjp", [infer_input(structures)])
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("gradient")[:, 0], expected_gradient(structures, values), atol=1e-6)


async def test_many_concurrent_callers_get_their_own_answers(address: str, expected: Expected) -> None:
    requests = [random_structures(1 + n % 5, seed=100 + n) for n in range(100)]
    async with triton_aio.InferenceServerClient(address) as client:
        answers = await asyncio.gather(*(client.infer(NAME, [infer_input(one, "UINT8")]) for one in requests))
    for structures, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer.as_numpy("spectra"), expected(structures), atol=1e-6)


def test_a_stream_is_answered_in_order_and_outlives_an_error(
    client: triton.InferenceServerClient, expected: Expected
) -> None:
    requests = [random_structures(1 + n % 3, seed=n) for n in range(24)]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for n, structures in enumerate(requests):
        wrong = 2 * structures if n == 9 else structures
        client.async_stream_infer(NAME, [infer_input(wrong)], request_id=str(n), enable_empty_final_response=n == 3)
    got = [answers.get(timeout=TIMEOUT) for _ in requests]
    client.stop_stream()
    assert answers.empty()
    assert "must lie between 0 (void) and 1 (solid)" in str(got[9][1])
    for n, (result, error) in enumerate(got):
        if n != 9:
            assert error is None
            assert result.get_response().id == str(n)
            assert result.get_response().parameters["triton_final_response"].bool_param
            np.testing.assert_allclose(result.as_numpy("spectra"), expected(requests[n]), atol=1e-6)


def test_our_own_client(
    address: str, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    with Surrogate(f"grpc://{address}") as surrogate:
        spectra = surrogate.predict(structures)
        np.testing.assert_allclose(np.asarray(spectra), expected(structures), atol=1e-6)
        cotangent = np.random.default_rng(3).normal(size=(len(structures), 4, 301)).astype(np.float32)
        gradient = surrogate.gradient(structures, cotangent)
    np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent), atol=1e-6)


def test_errors_have_the_messages_of_http_and_a_status_code(
    client: triton.InferenceServerClient, structures: Array
) -> None:
    def refused(code: str, message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer(*arguments, **options)
        assert caught.value.status() == f"StatusCode.{code}"

    good = [infer_input(structures)]
    refused("NOT_FOUND", "no model 'other'", "other", good)
    refused("NOT_FOUND", "no version '9'", NAME, good, model_version="9")
    refused("INVALID_ARGUMENT", "no output 'phase'", NAME, good, outputs=[triton.InferRequestedOutput("phase")])
    refused("INVALID_ARGUMENT", "must lie between 0", NAME, [infer_input(2 * structures)])
    refused("INVALID_ARGUMENT", "at most 600 structures", NAME, [infer_input(np.zeros((601, 128, 128)), "BOOL")])
    refused("INVALID_ARGUMENT", "unknown parameter 'colour'", NAME, good, parameters={"colour": "red"})
    refused("INVALID_ARGUMENT", "sequence_(id|start) is not supported", NAME, good, sequence_id=9, sequence_start=True)
    refused("INVALID_ARGUMENT", "priority must be", NAME, good, priority=3)
    ranked = [triton.InferRequestedOutput("spectra", class_count=2)]
    refused("INVALID_ARGUMENT", "classification is not supported", NAME, good, outputs=ranked)
    as_numbers = triton.InferRequestedOutput("spectra")
    as_numbers._output.parameters["binary_data"].bool_param = False
    refused("INVALID_ARGUMENT", "spectra: over gRPC, outputs come as bytes", NAME, good, outputs=[as_numbers])
    refused(
        "DEADLINE_EXCEEDED", "not finished within 1e-06 s", NAME, [infer_input(random_structures(1, 77))], timeout=1
    )


def tensor(parameters: dict[str, dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    stated = {name: messages.InferParameter(**value) for name, value in (parameters or {}).items()}
    return {"name": "structure", "datatype": "FP32", "shape": [1, 1, 128, 128], "parameters": stated, **changes}


@pytest.mark.parametrize(
    ("inputs", "raw", "message"),
    [
        ([tensor()], [], "structure: neither raw_input_contents nor contents, nor shared memory"),
        ([tensor()], [bytes(65536), b"x"], "raw_input_contents: 2 entries, 1 of them for no input"),
        ([tensor()], [bytes(65535)], "is 65536 bytes, got 65535"),
        (
            [tensor(contents={"fp64_contents": [0.0] * 16384})],
            [],
            "numbers of FP32 must come in contents.fp32_contents or raw_input_contents, got fp64_contents",
        ),
        (
            [tensor(contents={"fp32_contents": [0.0] * 9})],
            [],
            "data must be 16384 numbers, flat or nested evenly, got 9",
        ),
        ([tensor(datatype="FP16", contents={"fp32_contents": [0.0]})], [], "FP16 must come in raw_input_contents"),
        ([tensor(datatype="UINT8", contents={"uint_contents": [256] * 16384})], [], "whole numbers from 0 to 255"),
        ([tensor(name="x")], [bytes(65536)], "no input 'x'"),
        ([tensor(), tensor()], [bytes(65536)] * 2, "'structure' is given twice"),
        ([tensor(parameters={"binary_data": {}})], [bytes(65536)], "unknown parameter 'binary_data'"),
        (
            [tensor(parameters={"binary_data_size": {"int64_param": 1}})],
            [bytes(65536)],
            "structure: its entry of raw_input_contents has 65536 bytes, but binary_data_size is 1",
        ),
    ],
)
def test_malformed_requests(address: str, inputs: list[dict[str, Any]], raw: list[bytes], message: str) -> None:
    request = messages.ModelInferRequest(model_name=NAME, inputs=inputs, raw_input_contents=raw)
    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert message in caught.value.details()


def test_bytes_that_are_no_message_and_methods_that_are_none(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        for method, code, message in (
            (f"/{SERVICE}/ModelInfer", grpc.StatusCode.INVALID_ARGUMENT, "cannot be read as ModelInferRequest"),
            (f"/{SERVICE}/ModelReady", grpc.StatusCode.INVALID_ARGUMENT, "cannot be read as ModelReadyRequest"),
            (f"/{SERVICE}/Paint", grpc.StatusCode.UNIMPLEMENTED, "Method not found"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"\xff" * 100, timeout=TIMEOUT)
            assert caught.value.code() == code
            assert message in caught.value.details()


def test_a_small_message_that_would_need_much_memory(running: RunningServer, address: str) -> None:
    """Each of its two million inputs takes two bytes, and many times that once it is parsed."""
    request = messages.ModelInferRequest(model_name=NAME).SerializeToString()
    before = running.peak_bytes
    with grpc.insecure_channel(address) as channel:
        for method, message, text in (
            ("ModelInfer", request + b"\x2a\x00" * 2**21, "more than 1000 fields"),
            ("ModelInfer", request + b"\x2a\x80\x80\x80\x05" + bytes(10 * 2**20), "bytes beside raw_input_contents"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(message, timeout=TIMEOUT)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert text in caught.value.details()
    assert running.peak_bytes - before < 100 * 2**20


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"all-roles-0123456789\noptimiser: {MINE['x-api-key']} infer\n")
    return path


@pytest.fixture(scope="module")
def guarded(small_repository: Path, keys: Path) -> Iterator[RunningServer]:
    """A server that requires keys, and waits for an hour for messages."""
    flags = ["--repository", str(small_repository), "--grpc-port", "0", "--api-keys", str(keys)]
    with running_server(*flags, "--body-timeout", "3600", "--max-body-bytes", "1000000") as server:
        yield server


def test_messages_take_no_more_memory_than_their_methods_need(guarded: RunningServer) -> None:
    """40 MB of zeros, compressed to less than 40 kB and as they are."""
    zeros, before = bytes(40 * 10**6), guarded.peak_bytes
    gzipped, deflated = grpc.Compression.Gzip, grpc.Compression.Deflate
    with grpc.insecure_channel(guarded.grpc_address) as channel:

        def ask(path: str, compression: grpc.Compression | None, **headers: str) -> bytes:
            method = channel.unary_unary(path)
            answer: bytes = method(zeros, timeout=TIMEOUT, compression=compression, metadata=list(headers.items()))
            return answer

        assert ask(f"/{SERVICE}/ServerLive", gzipped) == b"\x08\x01", "true, and its message is not received"
        assert ask(f"/{SERVICE}/ServerReady", None) == b"\x08\x01"
        for path, compression, limit in (
            (HEALTH, gzipped, 65536),
            (f"/{SERVICE}/SystemSharedMemoryRegister", deflated, 65536),
            (f"/{SERVICE}/ModelInfer", gzipped, 1_000_000),
        ):
            with pytest.raises(grpc.RpcError, match=f"larger than the limit of {limit} bytes") as caught:
                ask(path, compression, authorization="Bearer all-roles-0123456789")
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert guarded.peak_bytes - before < 20 * 2**20


def test_a_message_above_the_limit_is_counted_as_such(guarded: RunningServer) -> None:
    """gRPC itself refuses it, and cancels the call."""
    key = [("x-api-key", "all-roles-0123456789")]
    paths = (HEALTH, f"/{SERVICE}/ModelReady", f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer")
    count = {path: counted_over_http(guarded, path, 413) for path in paths}
    with grpc.insecure_channel(guarded.grpc_address) as channel:
        for path in paths:
            stream = channel.stream_stream(path)(iter([bytes(1_000_001)]), timeout=TIMEOUT, metadata=key)
            with pytest.raises(grpc.RpcError, match="larger than max") as caught:
                list(stream)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for path in paths:
        assert counted_over_http(guarded, path, 413) == count[path] + 1, path
        assert counted_over_http(guarded, path, 499) == 0, path
    assert "Traceback" not in "".join(guarded.log)


def test_probes_without_a_key_fill_no_memory(small_repository: Path, keys: Path) -> None:
    """Messages of 300 MB, as they are: what the methods of others may have."""
    flags = ["--repository", str(small_repository), "--grpc-port", "0", "--api-keys", str(keys)]
    with running_server(*flags) as server:
        before, message = server.peak_bytes, bytes(300 * 10**6)
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(server.grpc_address, options=options) as channel:
            calls = [channel.unary_unary(HEALTH).future(message, timeout=TIMEOUT) for _ in range(4)]
            assert all(call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED) for call in calls)
            assert channel.unary_unary(HEALTH)(b"", timeout=TIMEOUT) == b"\x08\x01"
        # One at most was received, which gRPC holds as it came, in a growing array, and as bytes. Four are 3.7 GB.
        assert server.peak_bytes - before < 1_100 * 10**6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "cannot be decompressed: it is incomplete"),
        (lambda data: data + b"x", "cannot be decompressed: bytes are left over after the compressed data"),
        (lambda data: data[:20] + b"\xff" * 20 + data[40:], "cannot be decompressed: Error"),
    ],
)
def test_damaged_compressed_messages(address: str, damage: Callable[[bytes], bytes], message: str) -> None:
    """Sent as they are: the server sees no difference."""
    request = messages.ModelInferRequest(model_name=NAME, raw_input_contents=[np.random.default_rng(0).bytes(200_000)])
    data = damage(gzip.compress(request.SerializeToString()))
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match=message) as caught:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(data, timeout=TIMEOUT)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_no_request_begins_as_compressed_data_does() -> None:
    """Deflated data begins with 0x78, which is the tag of a number in field 15. The tag 0x1f of gzip is none at all."""
    kinds = [messages.ModelInferRequest, *(method.request for method in METHODS.values() if method.request)]
    assert not any(15 in kind.DESCRIPTOR.fields_by_number for kind in kinds)


def test_callers_who_send_nothing_keep_nobody_waiting(
    guarded: RunningServer, structures: Array, expected: Expected
) -> None:
    """More of them than messages are received at a time. Those without a key can only call what needs none."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    with grpc.insecure_channel(guarded.grpc_address) as channel:
        key = list(MINE.items())
        calls = [
            channel.stream_unary(path).future(nothing(), metadata=metadata)
            for path, metadata in [(HEALTH, [])] * 12 + [(f"/{SERVICE}/ModelInfer", key)] * 9
        ]
        try:
            for silent in ("ServerLive", "ServerReady"):  # answered without a message
                assert channel.stream_unary(f"/{SERVICE}/{silent}")(nothing(), timeout=TIMEOUT) == b"\x08\x01"
            assert channel.unary_unary(HEALTH)(b"", timeout=TIMEOUT) == b"\x08\x01"
            with triton.InferenceServerClient(guarded.grpc_address) as client:
                assert client.is_server_live(client_timeout=TIMEOUT)
                assert client.is_model_ready(NAME, headers=MINE, client_timeout=TIMEOUT)
                result = client.infer(NAME, [infer_input(structures)], headers=MINE, client_timeout=TIMEOUT)
                np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)
            assert not any(call.done() for call in calls[12:]), "they were still waiting"
        finally:
            for call in calls:
                call.cancel()
            over.set()


def test_a_key_that_is_revoked_ends_open_streams(guarded: RunningServer, keys: Path, structures: Array) -> None:
    before = keys.read_text()
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(guarded.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=MINE)
        client.async_stream_infer(NAME, [infer_input(structures)])
        assert answers.get(timeout=TIMEOUT)[1] is None
        keys.write_text("all-roles-0123456789\n")
        try:
            deadline = time.monotonic() + TIMEOUT
            while guarded.get("/v2", headers=MINE).status_code != 401:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            client.async_stream_infer(NAME, [infer_input(structures)])
            result, error = answers.get(timeout=TIMEOUT)
            assert result is None
            assert error.status() == "StatusCode.UNAUTHENTICATED"
        finally:
            client.stop_stream()
            keys.write_text(before)


def test_what_would_be_ignored_is_refused(client: triton.InferenceServerClient, address: str) -> None:
    name = b"\x0a\x0e" + NAME.encode()
    infer, ready = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelReady"
    with grpc.insecure_channel(address) as channel:
        for path, sent, message in (
            (ready, [name + b"\x1a\x01x"], "unknown field number 3 in ModelReadyRequest"),
            (infer, [name + b"\x2a\x03\x98\x06\x01"], "unknown field number 99 in InferInputTensor"),
            (ready, [name, name], "the call has more than one message"),
            (infer, [name, name], "the call has more than one message"),
            (ready, [], "the call has no message"),
            (infer, [], "the call has no message"),
        ):
            with pytest.raises(grpc.RpcError, match=message) as caught:
                channel.stream_unary(path)(iter(sent), timeout=TIMEOUT)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InferenceServerException, match="version needs the name of a model, got '1' without one"):
        client.get_inference_statistics("", "1")
    assert len(client.get_inference_statistics("").model_stats) == 2, "of all models"


async def test_methods_are_counted_from_zero(small_repository: Path) -> None:
    async with in_this_process(small_repository) as (_, server, _):
        text = server._metrics.text().decode()
    for path in (*METHODS, f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"):
        for status in (200, 500, 503, 504):
            assert f'metaspec_requests_total{{route="{path}",status="{status}"}} 0.0' in text


def test_the_health_service(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(HEALTH)
        for name in ("", SERVICE):
            answer = check(StringValue(value=name).SerializeToString(), timeout=TIMEOUT)
            assert Int32Value.FromString(answer).value == 1, "SERVING"
        with pytest.raises(grpc.RpcError) as caught:
            check(StringValue(value="other").SerializeToString(), timeout=TIMEOUT)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_models_are_loaded_and_unloaded(
    client: triton.InferenceServerClient, structures: Array, expected: Expected
) -> None:
    client.unload_model(f"{NAME}_vjp")
    assert not client.is_model_ready(f"{NAME}_vjp")
    client.load_model(f"{NAME}_vjp")
    assert client.is_model_ready(f"{NAME}_vjp")
    with pytest.raises(InferenceServerException, match="the parameter config is not supported here"):
        client.load_model(NAME, config="{}")
    with pytest.raises(InferenceServerException, match="no model 'other' in the repository"):
        client.load_model("other")
    spectra = client.infer(NAME, [infer_input(structures)]).as_numpy("spectra")
    np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)


def test_calls_are_counted_and_have_an_id(address: str, running: RunningServer) -> None:
    with grpc.insecure_channel(address) as channel:
        live = channel.unary_unary(f"/{SERVICE}/ServerLive")
        _, call = live.with_call(b"", timeout=TIMEOUT, metadata=[("x-request-id", "mine-7")])
        assert dict(call.trailing_metadata())["x-request-id"] == "mine-7"
        _, call = live.with_call(b"", timeout=TIMEOUT, metadata=[("x-request-id", "not valid")])
        assert re.fullmatch("[0-9a-f]{32}", dict(call.trailing_metadata())["x-request-id"])
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(
                messages.ModelInferRequest(model_name="other").SerializeToString(),
                timeout=TIMEOUT,
                metadata=[("x-request-id", "mine-8")],
            )
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine-8"
    text = running.get("/metrics").text
    assert f'metaspec_requests_total{{route="/{SERVICE}/ServerLive",status="200"}}' in text
    assert f'metaspec_requests_total{{route="/{SERVICE}/ModelInfer",status="404"}}' in text


def test_tls_keys_roles_and_the_largest_message(
    small_repository: Path, tmp_path: Path, structures: Array, expected: Expected
) -> None:
    keys, authority, both = (tmp_path / name for name in ("keys", "authority.pem", "certificate-and-key.pem"))
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(authority)
    issuer.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(both)
    keys.write_text("all-roles-0123456789\na: infer-key-0123456789 infer\nb: control-key-0123456789 control\n")
    flags = [
        "--repository",
        str(small_repository),
        "--grpc-port",
        "0",
        "--api-keys",
        str(keys),
        "--tls-cert",
        str(both),
    ]
    with running_server(*flags, "--max-body-bytes", "400000") as server:
        with triton.InferenceServerClient(server.grpc_address) as plain, pytest.raises(InferenceServerException):
            plain.is_server_live(client_timeout=10)
        with triton.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=str(authority)) as client:

            def refused(code: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> None:
                with pytest.raises(InferenceServerException) as caught:
                    method(*arguments, **options)
                assert caught.value.status() == f"StatusCode.{code}", caught.value

            infer, good = client.infer, [infer_input(structures)]
            assert client.is_server_live()
            assert client.is_server_ready()
            refused("UNAUTHENTICATED", infer, NAME, good)
            refused("UNAUTHENTICATED", client.get_model_metadata, NAME)
            refused("UNAUTHENTICATED", infer, NAME, good, headers={"authorization": "Bearer all-roles-0123456780"})
            mine = MINE
            for headers in ({"authorization": "Bearer all-roles-0123456789"}, mine):
                spectra = infer(NAME, good, headers=headers).as_numpy("spectra")
                np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)
            refused("PERMISSION_DENIED", client.unload_model, NAME, headers=mine)
            refused("PERMISSION_DENIED", client.register_system_shared_memory, "r", "/r", 8, headers=mine)
            for headers in (mine, {"authorization": "Bearer control-key-0123456789"}):
                assert client.get_log_settings(headers=headers).settings["log_error"].bool_param
                assert client.get_trace_settings(NAME, headers=headers).settings["trace_level"].value == ["OFF"]
            trace = {"trace_level": "OFF"}
            refused("PERMISSION_DENIED", client.update_trace_settings, NAME, trace, headers=mine)
            assert client.update_trace_settings(NAME, trace, headers=headers).settings
            refused("PERMISSION_DENIED", client.get_model_metadata, NAME, headers=headers)
            refused("UNAUTHENTICATED", client.get_log_settings)
            refused("PERMISSION_DENIED", client.update_log_settings, {"log_info": True}, headers=mine)
            assert client.is_model_ready(NAME, headers=mine)
            refused("RESOURCE_EXHAUSTED", infer, NAME, [infer_input(random_structures(7, 0))], headers=mine)
            failed: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: failed.put(error))
            assert "UNAUTHENTICATED" in str(failed.get(timeout=TIMEOUT).status())
        server.process.terminate()
        assert server.process.wait(60) == 0


@asynccontextmanager
async def in_this_process(root: Path, **settings: Any) -> AsyncIterator[tuple[Service, grpc_server.GrpcServer, str]]:
    options, metrics = Settings(repository=root, grpc_port=0, cache_mb=0, **settings), Metrics()
    service = await Service.start(options, engine_factory(options, metrics.observe), metrics)
    server = grpc_server.GrpcServer(service, metrics, ApiKeys(None))
    try:
        yield service, server, await server.start(options)
    finally:
        await server.stop(0)
        await service.close(0.0)


def counted(server: grpc_server.GrpcServer, status: int) -> float:
    """Number of inference calls that were answered with a status."""
    labels = {"route": f"/{SERVICE}/ModelInfer", "status": str(status)}
    return server._metrics.registry.get_sample_value("metaspec_requests_total", labels) or 0.0


def counted_over_http(server: RunningServer, path: str, status: int) -> float:
    """Number of calls of a method that were answered with a status."""
    text = server.get("/metrics", headers={"X-API-Key": "all-roles-0123456789"}).text
    found = re.search(rf'metaspec_requests_total{{route="{path}",status="{status}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_caller_who_gives_up_is_dropped_from_the_queue(tmp_path: Path) -> None:
    """One request hangs in the engine; those behind it leave the queue with their callers, and count as what they are."""
    root = write_repository(tmp_path, hanging_model())
    hanging = np.zeros((1, 128, 128), np.uint8)
    hanging[0, 40, 50] = 1
    async with in_this_process(root, engine_timeout=3600) as (service, server, address):
        queue_of = service.registry.find(NAME).queue
        async with triton_aio.InferenceServerClient(address) as client:
            stuck = asyncio.ensure_future(client.infer(NAME, [infer_input(hanging)]))
            await until(lambda: any(queue_of.busy.values()) and not queue_of.waiting)
            leaving = asyncio.ensure_future(client.infer(NAME, [infer_input(random_structures(3, 1))]))
            await until(lambda: queue_of.waiting == 3)
            leaving.cancel()
            await until(lambda: queue_of.waiting == 0)
            with pytest.raises(InferenceServerException) as caught:
                await client.infer(NAME, [infer_input(random_structures(2, 2))], client_timeout=0.2)
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            await until(lambda: queue_of.waiting == 0)
            await until(lambda: counted(server, 499) == counted(server, 504) == 1)
            stuck.cancel()
        await until(lambda: service.registry.find(NAME).users == 0)


async def test_at_shutdown_calls_are_finished_and_streams_end(
    small_repository: Path, structures: Array, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, entered = threading.Event(), threading.Event()

    def held_up(*arguments: Any) -> Any:
        entered.set()
        assert held.wait(TIMEOUT)
        return encode_answer(*arguments)

    monkeypatch.setattr(inference, "encode_answer", held_up)
    async with (
        in_this_process(small_repository) as (_, server, address),
        triton_aio.InferenceServerClient(address) as client,
    ):
        many = np.repeat(structures, 20, axis=0)  # so many that the answer is made in a thread
        running = asyncio.ensure_future(client.infer(NAME, [infer_input(many, "UINT8")]))
        await until(entered.is_set)
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=TIMEOUT)
            await until(lambda: len(server._reading) == 1)
            stopping = asyncio.ensure_future(server.stop(TIMEOUT))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
            assert ended.value.details() == "the server is shutting down"
        assert not running.done()
        held.set()
        np.testing.assert_allclose((await running).as_numpy("spectra"), expected(many), atol=1e-6)
        await stopping
        with pytest.raises(InferenceServerException):
            await client.is_server_live(client_timeout=5)


async def test_a_connection_whose_caller_is_gone_is_closed(
    small_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller answers no ping, as a machine that is switched off; one that only waits is pinged, and stays."""
    monkeypatch.setattr(grpc_server, "_KEEP_ALIVE_MS", 1000)
    monkeypatch.setattr(grpc_server, "_PING_TIMEOUT_MS", 5000)
    async with in_this_process(small_repository) as (_, _, address), triton_aio.InferenceServerClient(address) as other:
        host, _, port = address.rpartition(":")
        answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        stream = other.stream_infer(iter_of(answers))
        waiting = asyncio.ensure_future(anext(aiter(stream)))
        reader, writer = await asyncio.open_connection(host, int(port))
        settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        async with asyncio.timeout(TIMEOUT):
            received = await reader.read()
        assert received, "until the end of the connection"
        writer.close()
        assert not waiting.done()
        answers.put_nowait({"model_name": NAME, "inputs": [infer_input(random_structures(1, 0))]})
        result, error = await waiting
        assert error is None
        assert result.as_numpy("spectra").shape == (1, 4, 301)
        stream.cancel()


async def iter_of(requests: asyncio.Queue[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    while True:
        yield await requests.get()


async def test_a_port_that_another_server_has(small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options: dict[str, Any] = {"repository": small_repository, "grpc_port": port}
        settings, metrics = Settings(**options), Metrics()
        service = Service(settings, engine_factory(settings, metrics.observe), metrics)
        server = grpc_server.GrpcServer(service, metrics, ApiKeys(None))
        with pytest.raises(OSError, match=f"--grpc-port: cannot listen on 127.0.0.1:{port}: Address already in use"):
            await server.start(settings)
        await server.stop(0)


def test_a_unix_socket_is_no_protection_where_grpc_listens(tmp_path: Path) -> None:
    options: dict[str, Any] = {"uds": tmp_path / "socket", "host": "0.0.0.0"}
    assert Settings(**options).allows_control
    assert not Settings(**options, grpc_port=0).allows_control
    assert Settings(**options | {"host": "127.0.0.1"}, grpc_port=0).allows_control
