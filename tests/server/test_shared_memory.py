"""System shared memory: tensors in regions that stock clients register, and regions that are not what they seem."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from metaspec_server.core import shared_memory
from metaspec_server.core.errors import InvalidSharedMemory, UnknownRegion
from metaspec_server.core.shared_memory import Place, SharedMemory
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected, ExpectedGradient

NAME = "diffractionnet"
PIXELS = 128 * 128
SPECTRA = 4 * 301


@pytest.fixture(scope="module")
def running(small_repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(small_repository), "--max-structures", "600", "--grpc-port", "0") as server:
        yield server


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def address(running: RunningServer, protocol: ModuleType) -> str:
    return running.address if protocol is tritonclient.http else running.grpc_address


@pytest.fixture
def client(address: str, protocol: ModuleType) -> Iterator[Any]:
    with protocol.InferenceServerClient(address) as client:
        yield client
        client.unregister_system_shared_memory()


@contextmanager
def region(name: str, nbytes: int) -> Iterator[tuple[Any, str]]:
    """A shared memory object as the stock clients make it, and its key."""
    key = f"/metaspec-test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(name, key, nbytes, create_only=True)
    try:
        yield handle, key
    finally:
        with suppress(FileNotFoundError):  # a test has removed it
            shm.destroy_shared_memory_region(handle)


def statuses(client: Any) -> dict[str, tuple[str, int, int]]:
    """Key, offset and size of each registered region."""
    answer = client.get_system_shared_memory_status()
    if isinstance(answer, list):
        return {one["name"]: (one["key"], one["offset"], one["byte_size"]) for one in answer}
    return {name: (one.key, one.offset, one.byte_size) for name, one in answer.regions.items()}


def shared_input(protocol: ModuleType, structures: Array, name: str, offset: int = 0, dtype: str = "FP32") -> Any:
    size = {"FP32": 4, "UINT8": 1}[dtype]
    tensor = protocol.InferInput("structure", [len(structures), 1, 128, 128], dtype)
    tensor.set_shared_memory(name, size * structures.size, offset)
    return tensor


def plain_input(protocol: ModuleType, structures: Array) -> Any:
    tensor = protocol.InferInput("structure", [len(structures), 1, 128, 128], "UINT8")
    tensor.set_data_from_numpy(structures[:, None])
    return tensor


def test_inputs_and_outputs(client: Any, protocol: ModuleType, structures: Array, expected: Expected) -> None:
    given, nbytes = structures[:, None].astype(np.float32), len(structures) * SPECTRA * 4
    with region("in", 64 + given.nbytes) as (inputs, in_key), region("out", 128 + nbytes) as (outputs, out_key):
        shm.set_shared_memory_region(inputs, [given], offset=64)
        client.register_system_shared_memory("in", in_key, given.nbytes + 32, offset=32)
        client.register_system_shared_memory("out", out_key.strip("/"), 128 + nbytes)
        assert statuses(client) == {
            "in": (in_key, 32, given.nbytes + 32),
            "out": (out_key.strip("/"), 0, 128 + nbytes),
        }
        output = protocol.InferRequestedOutput("spectra")
        output.set_shared_memory("out", nbytes + 28, offset=100)
        result = client.infer(NAME, [shared_input(protocol, given, "in", 32)], outputs=[output], request_id="s1")
        (described,) = (
            result.get_response(as_json=True)["outputs"]
            if protocol is tritonclient.grpc
            else (result.get_output("spectra"),)
        )
        assert [int(size) for size in described["shape"]] == [len(structures), 4, 301]
        assert "data" not in described
        written = shm.get_contents_as_numpy(outputs, np.float32, [len(structures), 4, 301], 100)
        np.testing.assert_allclose(written, expected(structures), atol=1e-6)
        before = shm.get_contents_as_numpy(outputs, np.uint8, [100], 0)
        assert not before.any(), "nothing is written outside"
        client.unregister_system_shared_memory("out")
        assert list(statuses(client)) == ["in"]
        with pytest.raises(InferenceServerException, match="no shared memory region 'out' is registered; there is in"):
            client.infer(NAME, [shared_input(protocol, given, "in", 32)], outputs=[output])
        del written, before


def test_some_tensors_in_shared_memory_and_some_not(
    client: Any, protocol: ModuleType, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    values = np.random.default_rng(3).normal(size=(len(structures), 4, 301)).astype(np.float32)
    size = len(structures) * SPECTRA * 4
    with region("both", 2 * size) as (handle, key):
        client.register_system_shared_memory("both", key, 2 * size)
        shm.set_shared_memory_region(handle, [values])
        cotangent = protocol.InferInput("cotangent", list(values.shape), "FP32")
        cotangent.set_shared_memory("both", size)
        spectra, gradient = protocol.InferRequestedOutput("spectra"), protocol.InferRequestedOutput("gradient")
        spectra.set_shared_memory("both", size, size)
        inputs = [cotangent, plain_input(protocol, structures)]
        result = client.infer(f"{NAME}_vjp", inputs, outputs=[spectra, gradient])
        np.testing.assert_allclose(result.as_numpy("gradient")[:, 0], expected_gradient(structures, values), atol=1e-6)
        written = shm.get_contents_as_numpy(handle, np.float32, [len(structures), 4, 301], size)
        np.testing.assert_allclose(written, expected(structures), atol=1e-6)
        del written


def test_concurrent_callers_with_places_of_their_own(
    client: Any, address: str, protocol: ModuleType, expected: Expected
) -> None:
    structures = np.random.default_rng(5).integers(0, 2, (16, 2, 128, 128), np.uint8)
    start, size = structures.nbytes, 2 * SPECTRA * 4
    with region("all", start + 16 * size) as (handle, key):
        client.register_system_shared_memory("all", key, start + 16 * size)
        shm.set_shared_memory_region(handle, [structures])

        def ask(n: int) -> None:
            output = protocol.InferRequestedOutput("spectra")
            output.set_shared_memory("all", size, start + n * size)
            tensor = shared_input(protocol, structures[n], "all", n * structures[n].nbytes, "UINT8")
            with protocol.InferenceServerClient(address) as own:  # a client is not for several threads
                own.infer(NAME, [tensor], outputs=[output])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(16)))
        written = shm.get_contents_as_numpy(handle, np.float32, [16, 2, 4, 301], start)
        for n in range(16):
            np.testing.assert_allclose(written[n], expected(structures[n]), atol=1e-6)
        del written


def test_outputs_that_would_overwrite_others_are_refused(
    client: Any, protocol: ModuleType, structures: Array, expected: Expected
) -> None:
    one = structures[:1]
    size, cotangent = SPECTRA * 4, protocol.InferInput("cotangent", [1, 4, 301], "FP32")
    cotangent.set_data_from_numpy(np.ones((1, 4, 301), np.float32))
    spectra, gradient = protocol.InferRequestedOutput("spectra"), protocol.InferRequestedOutput("gradient")
    with region("r", one.nbytes + size + 4 * PIXELS) as (handle, key):
        whole = one.nbytes + size + 4 * PIXELS
        shm.set_shared_memory_region(handle, [one])
        client.register_system_shared_memory("r", key, whole)
        client.register_system_shared_memory("tail", key.strip("/"), whole - 1000, offset=1000)  # of the same object

        def refused(model: str, message: str, inputs: list[Any], outputs: list[Any]) -> None:
            with pytest.raises(InferenceServerException, match=message):
                client.infer(model, inputs, outputs=outputs)
            content = shm.get_contents_as_numpy(handle, np.uint8, [whole])
            assert (content[: one.nbytes] == one.ravel()).all(), "nothing is written"
            assert not content[one.nbytes :].any()
            del content

        spectra.set_shared_memory("r", size, one.nbytes)
        gradient.set_shared_memory("r", 4 * PIXELS, one.nbytes + size - 1)
        both = "gradient: its place in shared memory, bytes 21199 to 86734 of 'r', overlaps that of spectra, bytes 16384 to"
        refused(f"{NAME}_vjp", both, [plain_input(protocol, one), cotangent], [spectra, gradient])
        gradient.set_shared_memory("tail", 4 * PIXELS, one.nbytes)
        refused(f"{NAME}_vjp", "of 'tail', overlaps", [plain_input(protocol, one), cotangent], [spectra, gradient])
        spectra.set_shared_memory("r", size, one.nbytes - 1)
        given = shared_input(protocol, one, "r", 0, "UINT8")
        refused(
            NAME, "bytes 16383 to 21198 of 'r', overlaps that of structure, bytes 0 to 16383 of 'r'", [given], [spectra]
        )

        spectra.set_shared_memory("r", size, one.nbytes)  # side by side
        gradient.set_shared_memory("r", 4 * PIXELS, one.nbytes + size)
        client.infer(f"{NAME}_vjp", [given, cotangent], outputs=[spectra, gradient])
        written = shm.get_contents_as_numpy(handle, np.float32, [1, 4, 301], one.nbytes)
        np.testing.assert_allclose(written, expected(one), atol=1e-6)
        del written


def test_an_object_that_changes_is_an_error_of_the_request(
    client: Any, protocol: ModuleType, structures: Array, expected: Expected
) -> None:
    def refused(message: str, tensor: Any, **options: Any) -> None:
        with pytest.raises(InferenceServerException, match=message):
            client.infer(NAME, [tensor], **options)

    one = structures[:1]
    size = one.nbytes
    with region("r", 10 * 4096) as (handle, key):
        path = Path("/dev/shm") / key.strip("/")
        shm.set_shared_memory_region(handle, [one])
        client.register_system_shared_memory("r", key, 10 * 4096)
        result = client.infer(NAME, [shared_input(protocol, one, "r", 0, "UINT8")])
        np.testing.assert_allclose(result.as_numpy("spectra"), expected(one), atol=1e-6)
        refused(
            "offset \\+ size to be at most that, got 30000 \\+ 16384", shared_input(protocol, one, "r", 30000, "UINT8")
        )
        output = protocol.InferRequestedOutput("spectra")
        output.set_shared_memory("r", SPECTRA * 4 - 1)
        refused("shared_memory_byte_size must be at least 4816, got 4815", plain_input(protocol, one), outputs=[output])
        output.set_shared_memory("r", SPECTRA * 4, 10 * 4096 - 4)
        refused("offset \\+ size to be at most that", plain_input(protocol, one), outputs=[output])
        wrong = protocol.InferInput("structure", [1, 1, 128, 128], "FP32")
        wrong.set_shared_memory("r", size)
        refused(f"FP32 of shape .* is 65536 bytes, got {size}", wrong)

        os.truncate(path, size - 1)
        refused(f"has {size - 1} bytes, expected at least {size}", shared_input(protocol, one, "r", 0, "UINT8"))
        output.set_shared_memory("r", SPECTRA * 4, 4 * 4096)
        refused(f"has {size - 1} bytes, expected at least", plain_input(protocol, one), outputs=[output])
        assert path.stat().st_size == size - 1, "nothing is written"
        path.rename(path.with_name(path.name + "-away"))
        try:
            refused("cannot be opened: No such file", shared_input(protocol, one, "r", 0, "UINT8"))
            path.write_bytes(bytes(10 * 4096))
            refused("was replaced: register it again", shared_input(protocol, one, "r", 0, "UINT8"))
            path.unlink()
        finally:
            path.with_name(path.name + "-away").rename(path)
    result = client.infer(NAME, [plain_input(protocol, structures)])
    np.testing.assert_allclose(result.as_numpy("spectra"), expected(structures), atol=1e-6)


def test_registrations_that_are_refused(client: Any, tmp_path: Path) -> None:
    def refused(message: str, name: str, key: str, size: int, offset: int = 0) -> None:
        with pytest.raises(InferenceServerException, match=message):
            client.register_system_shared_memory(name, key, size, offset)

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    with region("r", 4096) as (_, key):
        client.register_system_shared_memory("r", key, 4096)
        refused("the region 'r' is registered already: unregister it first", "r", key, 8)
        refused("has 4096 bytes, expected at least 4097", "s", key, 4096, 1)
        refused("a size > 0, got 0, 0", "s", key, 0)
        refused("cannot be opened: No such file", "s", "/metaspec-test-none", 8)
        for name in ("../etc/passwd", "..", "/", "", "/a/b", f"..{secret}", "x" * 300):
            refused("key must be the name of a POSIX shared memory object", "s", name, 8)
        refused("the name of a region must have 1 to 255 characters, got 256", "n" * 256, key, 8)
        link = Path("/dev/shm") / f"metaspec-test-{uuid.uuid4().hex}"
        link.symlink_to(secret)
        try:
            refused("cannot be opened", "s", link.name, 8)
        finally:
            link.unlink()
        os.mkfifo(link)
        try:
            refused("is not a shared memory object", "s", link.name, 8)
        finally:
            link.unlink()
        assert list(statuses(client)) == ["r"]
    client.unregister_system_shared_memory("never registered")
    with pytest.raises(InferenceServerException, match="no shared memory region 'x' is registered"):
        client.get_system_shared_memory_status("x")


def test_cuda_shared_memory_is_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not supported here"):
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8)
    answer = client.get_cuda_shared_memory_status()
    assert not (answer if isinstance(answer, list) else answer.regions)
    client.unregister_cuda_shared_memory()  # as perf_analyzer does, to begin with nothing
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not supported here"):
        client.unregister_cuda_shared_memory("r")


def test_callers_of_a_server_without_control_register_nothing(small_repository: Path) -> None:
    flags = ("--repository", str(small_repository), "--no-model-control")
    with running_server(*flags) as server:
        for path in ("region/r/register", "region/r/unregister", "unregister"):
            answer = server.post(f"/v2/systemsharedmemory/{path}", json={})
            assert answer.status_code == 403
            assert "does not let callers register shared memory (--no-model-control)" in answer.json()["error"]
        assert server.post("/v2/logging", json={"log_info": True}).status_code == 403
        assert server.get("/v2/logging").json()["log_info"] is False


def test_a_name_in_the_body_of_unregister_is_refused(small_repository: Path) -> None:
    """It would be ignored, and every region forgotten."""
    with running_server("--repository", str(small_repository)) as server:
        for path in ("system{}/region/q/unregister", "system{}/unregister", "cuda{}/unregister"):
            answer = server.post(f"/v2/{path.format('sharedmemory')}", json={"name": "p"})
            assert answer.status_code == 400
            assert "name" in answer.json()["error"]


def test_the_number_of_regions_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "object").write_bytes(bytes(range(100)))
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 3)
    regions = SharedMemory(tmp_path)
    for n in range(3):
        regions.register(str(n), "object", 10 * n, 20)
    with pytest.raises(InvalidSharedMemory, match="at most 3 regions can be registered"):
        regions.register("3", "object", 0, 8)
    assert regions.read(Place("2", 5, 3)) == bytes([25, 26, 27])
    regions.write(Place("1", 0, 2), memoryview(b"xy"))
    assert (tmp_path / "object").read_bytes()[9:13] == bytes([9]) + b"xy" + bytes([12])
    regions.unregister("2")
    with pytest.raises(UnknownRegion, match="no shared memory region '2' is registered; there is 0, 1"):
        regions.read(Place("2", 5, 3))
