"""`--models` and `--lazy`: some of the models, and each on its first request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import tritonclient.http as triton

from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, QueueFull
from metaspec_server.core.lazy import LazyQueue
from metaspec_server.core.tensors import Rows
from metaspec_server.settings import Settings
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import (
    METADATA,
    Array,
    Expected,
    ExpectedGradient,
    small_gradient_model,
    small_model,
    write_repository,
)

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_repository(tmp_path / "repository", small_model())
    write_repository(root, small_gradient_model())
    return write_repository(root, small_model(METADATA | {"name": "other"}))


def test_only_the_named_models_are_served(root: Path, structures: Array, expected: Expected) -> None:
    flags = ("--repository", str(root), "--models", "diffractionnet,other", "--poll-interval", "0.05")
    with running_server(*flags) as server, triton.InferenceServerClient(server.address) as client:
        names = {entry["name"] for entry in client.get_model_repository_index()}
        assert names == {"diffractionnet", "other"}
        answer = server.post("/predict", content=np.packbits(structures).tobytes(), headers=PACKED)
        np.testing.assert_allclose(np.frombuffer(answer.content, "<f4"), expected(structures).ravel(), atol=1e-6)
        assert server.post("/gradient", content=b"", headers=PACKED).status_code == 404
        client.load_model("diffractionnet_vjp")  # asked for by name
        assert client.is_model_ready("diffractionnet_vjp")
        assert server.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("names", ["diffractionnet,missing", "missing"])
def test_a_model_that_is_not_there(root: Path, names: str) -> None:
    message = r"--models: no model 'missing' in .*repository, there is diffractionnet, diffractionnet_vjp, other"
    with pytest.raises(RuntimeError, match=message), running_server("--repository", str(root), "--models", names):
        pass


def test_models_are_loaded_by_their_first_requests(
    root: Path, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    with running_server("--repository", str(root), "--lazy") as server:
        assert server.banner.count("loaded on its first request") == 3
        assert server.get("/v2/health/ready").status_code == 200
        assert server.get("/v2/models/other/ready").json() == {"name": "other", "ready": True}
        metadata = server.get("/v2/models/diffractionnet").json()
        assert metadata["parameters"]["channels"] == ["R", "G1", "G2", "B"]
        body = np.packbits(structures).tobytes()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.post("/predict", content=body, headers=PACKED), range(8)))
        for answer in answers:
            spectra = np.frombuffer(answer.raise_for_status().content, "<f4")
            np.testing.assert_allclose(spectra, expected(structures).ravel(), atol=1e-6)
        cotangent = np.ones((len(structures), 4, 301), "<f4")
        answer = server.post("/gradient", content=body + cotangent.tobytes(), headers=PACKED).raise_for_status()
        gradient = np.frombuffer(answer.content, "<f4")[cotangent.size :].reshape(-1, 128, 128)
        np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent), atol=1e-6)


def test_a_model_that_fails_on_its_first_request_is_not_ready(tmp_path: Path, structures: Array) -> None:
    model = small_model()
    (weight,) = (constant for constant in model.graph.initializer if constant.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((64, 1204), np.nan, np.float32), "weight"))
    root = write_repository(tmp_path, model)
    with running_server("--repository", str(root), "--lazy") as server:
        body = np.packbits(structures).tobytes()
        for _ in range(2):
            answer = server.post("/predict", content=body, headers=PACKED)
            assert answer.status_code == 500
            assert "the model cannot be loaded" in answer.json()["detail"]
            assert "output spectra is not finite" in answer.json()["detail"]
            assert server.get("/v2/health/ready").status_code == 503


@pytest.mark.parametrize("value", ["a,b", " a, b ,", '["a", "b"]'])
def test_names_in_a_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("METASPEC_MODELS", value)
    options: dict[str, Any] = {}
    assert Settings(**options).models == ["a", "b"]


def test_triton_loads_its_models_itself(root: Path) -> None:
    flags = ("--repository", str(root), "--engine", "triton", "--lazy")
    message = "--lazy: with --engine triton, that server loads the models"
    with pytest.raises(RuntimeError, match=message), running_server(*flags):
        pass


class Doubling:
    """A queue that answers at once."""

    engines, missing, abandoned, waiting, closed = 1, 0, 0, 0, False
    busy: ClassVar[dict[str, float]] = {}

    async def submit(
        self, rows: Rows, timeout: float | None = None, keys: Sequence[bytes] | None = None, priority: int = 2
    ) -> Rows:
        return {name: 2 * array for name, array in rows.items()}

    async def close(self, timeout: float) -> None:
        self.closed = True


async def test_those_who_wait_share_one_attempt() -> None:
    release, attempts = threading.Event(), list[int]()

    def make() -> Doubling:
        attempts.append(1)
        assert release.wait(60)
        return Doubling()

    queue = LazyQueue(make, 1, max_queue=8)
    assert (queue.engines, queue.waiting) == (1, 0)
    rows: Rows = {"x": np.ones((3, 2))}
    asking = [asyncio.create_task(queue.submit(rows)) for _ in range(2)]
    with pytest.raises(DeadlineExceeded):
        await queue.submit({"x": np.ones((1, 2))}, timeout=0.02)
    with pytest.raises(QueueFull):
        await queue.submit(rows)
    asking[0].cancel()
    release.set()
    np.testing.assert_array_equal((await asking[1])["x"], 2 * rows["x"])
    assert len(attempts) == 1
    assert queue.waiting == 0
    await queue.close(1)


async def test_loading_is_tried_again_by_the_next_request_and_not_after_the_end() -> None:
    attempts = list[int]()

    def make() -> Doubling:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no disk")
        return Doubling()

    queue, rows = LazyQueue(make, 1, max_queue=8), {"x": np.ones((3, 2))}
    with pytest.raises(EngineFailure, match="the model cannot be loaded: no disk"):
        await queue.submit(rows)
    assert queue.engines == 0
    np.testing.assert_array_equal((await queue.submit(rows))["x"], 2 * rows["x"])
    assert queue.engines == 1
    unused = LazyQueue(make, 1, max_queue=8)
    await unused.close(1)
    with pytest.raises(Closed):
        await unused.submit(rows)
