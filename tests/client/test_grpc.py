"""What the client makes of all that a server may answer over gRPC: a real server on a real port that answers as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
import trustme
from grpc import StatusCode
from tritonclient.grpc import model_config_pb2 as model_config
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from metaspec import (
    AsyncSurrogate,
    DeadlineExceeded,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    Surrogate,
    __version__,
)
from metaspec_contract.model import DEFAULT_MODEL, METADATA_KEY, gradient_model
from metaspec_contract.process import Process
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import METADATA

ONE = np.zeros((128, 128))
Answer: TypeAlias = messages.ModelInferResponse | tuple[StatusCode, str]


def good(rows: int = 1, version: str = "1", identifier: str = "", **tensor: object) -> messages.ModelInferResponse:
    """Spectra that are 0.25 times the version; or another tensor."""
    fields = {"name": "spectra", "datatype": "FP32", "shape": [rows, 4, 301]} | tensor
    return messages.ModelInferResponse(
        id=identifier,
        model_name="diffractionnet",
        model_version=version,
        outputs=[messages.ModelInferResponse.InferOutputTensor(**fields)],
        raw_output_contents=[np.full((rows, 4, 301), 0.25 * int(version), "<f4").tobytes()],
    )


def is_gradient(name: str) -> bool:
    return name == gradient_model(DEFAULT_MODEL)


class Scripted(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that speaks as Triton does.

    Attributes:
        asked: model, version and metadata of the inference requests so far.
        gradient: description of the gradient model; None if there is none.
    """

    def __init__(self, answers: Iterator[Answer]) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.gradient: dict[str, Any] | None = None
        self._answers = answers

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerMetadataResponse(name="scripted", version="1", extensions=["model_configuration"])

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        tensor = messages.ModelMetadataResponse.TensorMetadata
        inputs = [tensor(name="structure", datatype="FP32", shape=[-1, 1, 128, 128])]
        outputs = [tensor(name="spectra", datatype="FP32", shape=[-1, 4, 301])]
        if is_gradient(request.name):
            if self.gradient is None:
                context.abort(StatusCode.NOT_FOUND, f"unknown model: '{request.name}'")
            inputs.append(tensor(name="cotangent", datatype="FP32", shape=[-1, 4, 301]))
            outputs.append(tensor(name="gradient", datatype="FP32", shape=[-1, 1, 128, 128]))
        return messages.ModelMetadataResponse(name=request.name, versions=["1"], inputs=inputs, outputs=outputs)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        about = self.gradient if is_gradient(request.name) else METADATA
        told = {METADATA_KEY: model_config.ModelParameter(string_value=json.dumps(about))}
        return messages.ModelConfigResponse(config=model_config.ModelConfig(name=request.name, parameters=told))

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append((request.model_name, request.model_version, dict(context.invocation_metadata())))
        answer = next(self._answers)
        if isinstance(answer, tuple):
            context.abort(*answer)
        return answer


@contextmanager
def scripted(*answers: Answer, credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[str, Scripted]]:
    """The address of a server that answers inference as told, one after the other."""
    servicer = Scripted(iter(answers))
    server = grpc.server(ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = (
        server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("localhost:0")
    )
    server.start()
    try:
        yield f"localhost:{port}", servicer
    finally:
        server.stop(grace=None).wait()


BUSY = (StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
LOST = (StatusCode.UNAVAILABLE, "Socket closed")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_keys_versions_and_asking_again(kind: str) -> None:
    with scripted(BUSY, LOST, good(version="2")) as (address, server):
        settings: dict[str, Any] = {"api_key": "a-key-for-the-tests", "version": 2}
        if kind == "sync":
            with Surrogate(f"grpc://{address}", **settings) as surrogate:
                spectra = surrogate.predict(ONE)
        else:
            async with AsyncSurrogate(f"grpc://{address}", **settings) as asynchronous:
                spectra = await asynchronous.predict(ONE)
    assert (spectra.values == 0.5).all()
    assert spectra.version == "2"
    assert [(model, version) for model, version, _ in server.asked] == [("diffractionnet", "2")] * 3
    assert {metadata["authorization"] for *_, metadata in server.asked} == {"Bearer a-key-for-the-tests"}
    assert all(metadata["user-agent"].startswith(f"metaspec/{__version__} ") for *_, metadata in server.asked)


def test_a_new_version_in_the_middle_of_a_call() -> None:
    answers = [good(version=version) for version in "12122"]
    with (
        scripted(*answers) as (address, server),
        Surrogate(f"grpc://{address}", batch_size=1, concurrency=1) as surrogate,
    ):
        spectra = surrogate.predict(np.zeros((3, 128, 128)))
        assert surrogate.sent == (5, 5)
    assert (spectra.values == 0.5).all()
    assert spectra.version == "2"
    assert [version for _, version, _ in server.asked] == ["", "", "", "2", "2"]


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
async def test_gradients_are_of_the_same_device(client: type) -> None:
    async def ask(surrogate: Any) -> Any:
        answer = surrogate.gradient(ONE, np.zeros((4, 301)))
        return await answer if client is AsyncSurrogate else answer

    zeros = messages.ModelInferResponse(
        model_version="1",
        outputs=[
            messages.ModelInferResponse.InferOutputTensor(name="gradient", datatype="FP32", shape=[1, 1, 128, 128])
        ],
        raw_output_contents=[bytes(4 * 128 * 128)],
    )
    with scripted(zeros) as (address, server):
        surrogate = client(f"grpc://{address}", retries=0)
        with pytest.raises(ModelUnavailable, match=r"'diffractionnet_vjp'.*MODEL_vjp"):
            await ask(surrogate)
        process = Process(period_um=1.6).model_dump(mode="json")
        server.gradient = METADATA | {"name": "diffractionnet_vjp", "kind": "vjp", "process": process}
        with pytest.raises(
            ProtocolError, match=r"'diffractionnet_vjp' .*'diffractionnet' .*period_um 1\.6 against 2\.0"
        ):
            await ask(surrogate)
        assert server.asked == []
        server.gradient |= {"process": METADATA["process"]}
        assert (await ask(surrogate)).shape == (1, 128, 128)
        if client is AsyncSurrogate:
            await surrogate.close()
        else:
            surrogate.close()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (BUSY, ServerBusy, r"queue size \(gRPC UNAVAILABLE from grpc://.*Try again later"),
        ((StatusCode.RESOURCE_EXHAUSTED, "quota"), ServerBusy, "quota"),
        (LOST, ServerUnreachable, r"Socket closed .*Is metaspec-serve running there, or Triton"),
        ((StatusCode.CANCELLED, "going down"), ServerUnreachable, "going down"),
        ((StatusCode.INTERNAL, "Received RST_STREAM with error code 2"), ServerUnreachable, "RST_STREAM"),
        ((StatusCode.INTERNAL, "cannot compute"), ServerError, r"cannot compute .*The server's log"),
        ((StatusCode.INTERNAL, ""), ServerError, "no reason given"),
        ((StatusCode.INVALID_ARGUMENT, "batch-size must be <= 8 for x"), RequestTooLarge, "Lower batch_size"),
        ((StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max"), RequestTooLarge, "Lower batch_size"),
        ((StatusCode.NOT_FOUND, "unknown model"), ModelUnavailable, "Check model and version"),
        ((StatusCode.UNAUTHENTICATED, "no key"), NotAllowed, "api_key"),
        ((StatusCode.PERMISSION_DENIED, "not yours"), NotAllowed, "api_key"),
        ((StatusCode.DEADLINE_EXCEEDED, "late"), DeadlineExceeded, "Raise timeout"),
        ((StatusCode.UNIMPLEMENTED, "no such method"), ProtocolError, "Is this a server of models"),
        (good(3), ProtocolError, r"shape \(1, 4, 301\), got float32 of shape \(3, 4, 301\)"),
        (good(shape=[1, 4, 300]), ProtocolError, "cannot be read"),
        (good(datatype="FP64", shape=[2, 301]), ProtocolError, "got float64"),
        (good(datatype="nonsense"), ProtocolError, "cannot be read"),
        (good(name="other"), ProtocolError, "has no spectra"),
        (good(identifier="another"), ProtocolError, "sent the answer to another request: its id is 'another', not"),
    ],
)
def test_errors(answer: Answer, kind: type[MetaSpecError], message: str) -> None:
    with (
        scripted(answer) as (address, server),
        Surrogate(f"grpc://{address}", retries=0) as surrogate,
        pytest.raises(kind, match=message) as caught,
    ):
        surrogate.predict(ONE)
    assert type(caught.value) is kind
    assert len(server.asked) == 1


async def test_nobody_there(nobody: str) -> None:
    with Surrogate(f"grpc://{nobody}", retries=1) as surrogate:
        assert not surrogate.is_ready()
        with pytest.raises(ServerUnreachable, match=r"Connection refused .*Is metaspec-serve running there, or Triton"):
            surrogate.predict(ONE)
    async with AsyncSurrogate(f"grpc://{nobody}", retries=1) as asynchronous:
        assert not await asynchronous.is_ready()
        with pytest.raises(ServerUnreachable):
            await asynchronous.predict(ONE)


def test_the_port_for_http(server: RunningServer) -> None:
    with (
        Surrogate(f"grpc://{server.address}", retries=0, timeout=10) as surrogate,
        pytest.raises(ServerUnreachable, match="is this its port for HTTP or gRPC"),
    ):
        surrogate.metadata()


def test_tls(tmp_path: Path) -> None:
    """Only servers whose certificate is trusted; gRPC reads the trusted ones once, so this is another process."""
    authority, certificate = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(certificate))
    own = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), chain)])
    with scripted(good(), credentials=credentials) as (address, server):
        with (
            Surrogate(f"grpcs://{address}", retries=0) as surrogate,
            pytest.raises(ServerUnreachable, match=r"(?i)certificate|handshak"),
        ):
            surrogate.predict(ONE)
        with Surrogate(f"grpc://{address}", retries=0) as surrogate, pytest.raises(ServerUnreachable):
            surrogate.predict(ONE)
        assert server.asked == []
        program = (
            f"import metaspec, numpy; print(metaspec.Surrogate('grpcs://{address}').predict(numpy.zeros((128, 128))))"
        )
        environment = os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
        )
    assert "1 structure," in ran.stdout, ran.stderr


def test_without_tritonclient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "metaspec._transport.grpc", raising=False)
    monkeypatch.delattr("metaspec._transport.grpc", raising=False)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    for kind in (Surrogate, AsyncSurrogate):
        with pytest.raises(ImportError, match=r'pip install "metaspec\[grpc\]"'):
            kind("grpc://127.0.0.1:8001")


def test_http_needs_no_tritonclient() -> None:
    program = (
        "import sys, metaspec; metaspec.Surrogate().close(); assert not {'grpc', 'tritonclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
