"""Numbers that are far from one: infinities, denormals, and what float32 and float16 cannot hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from metaspec_server.core.errors import OutOfRange
from metaspec_server.core.service import Service
from metaspec_server.core.tensors import Rows
from metaspec_server.engines.factory import engine_factory
from metaspec_server.engines.onnx import OnnxEngine
from metaspec_server.ops.metrics import Metrics
from metaspec_server.repository import find_models
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import (
    Array,
    Expected,
    ExpectedGradient,
    small_gradient_model,
    write_repository,
)

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
INFER = "/v2/models/diffractionnet_vjp/infer"


@pytest.fixture
def cotangent(structures: Array) -> Array:
    return np.random.default_rng(3).normal(size=(len(structures), 4, 301))


def gradient(server: RunningServer, structures: Array, cotangent: Array, query: str = "") -> httpx.Response:
    buffer = io.BytesIO()
    np.save(buffer, structures)
    np.save(buffer, cotangent)
    return server.post("/gradient" + query, content=buffer.getvalue(), headers=NPY)


def oip(
    server: RunningServer, structures: Array, cotangent: Array, datatype: str, kind: str | None = None
) -> httpx.Response:
    blobs = [structures.astype("u1").tobytes(), cotangent.tobytes()]
    tensors = [("structure", "UINT8", [len(structures), 1, 128, 128]), ("cotangent", datatype, list(cotangent.shape))]
    inputs = [
        {"name": name, "datatype": dtype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
        for (name, dtype, shape), blob in zip(tensors, blobs, strict=True)
    ]
    wanted: dict[str, Any] = {"name": "gradient", "parameters": {"datatype": kind} if kind else {}}
    head = json.dumps({"inputs": inputs, "outputs": [wanted]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return server.post(INFER, content=head + b"".join(blobs), headers=headers)


@pytest.mark.parametrize("scale", [1e-30, 1e-36, 1e-25, 1e25, 1e35])
def test_gradients_scale_with_their_cotangents(
    server: RunningServer, structures: Array, cotangent: Array, expected_gradient: ExpectedGradient, scale: float
) -> None:
    answer = gradient(server, structures, cotangent * scale).raise_for_status()
    file = io.BytesIO(answer.content)
    np.load(file)
    np.testing.assert_allclose(np.load(file) / scale, expected_gradient(structures, cotangent), rtol=1e-4, atol=1e-6)
    (output,) = oip(server, structures, cotangent * scale, "FP64").raise_for_status().json()["outputs"]
    values = np.array(output["data"]).reshape(-1, 128, 128) / scale
    np.testing.assert_allclose(values, expected_gradient(structures, cotangent), rtol=1e-4, atol=1e-6)


def test_rows_of_a_micro_batch_are_scaled_each_for_itself(
    small_repository: Path, structures: Array, cotangent: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    engine = OnnxEngine(find_models(small_repository)["diffractionnet_vjp"][0], max_batch=5)
    scales = np.array([1e-37, 1, 1e-20, 1e30, 0])
    rows = (cotangent * scales[:, None, None]).astype(np.float32)
    results = engine.run([{"structure": structures[:, None].astype(np.float32), "cotangent": rows}])
    np.testing.assert_allclose(results["spectra"], expected(structures), atol=1e-6)
    wanted = expected_gradient(structures, cotangent) * scales[:, None, None]
    for got, gradient_of, scale in zip(results["gradient"][:, 0], wanted, scales, strict=True):
        np.testing.assert_allclose(got, gradient_of, rtol=1e-4, atol=1e-6 * scale)
    usual = cotangent.astype(np.float32)
    results = engine.run([{"structure": structures[:, None].astype(np.float32), "cotangent": usual}])
    np.testing.assert_array_equal(results["gradient"][:, 0], expected_gradient(structures, usual))


def test_negligible_numbers_count_as_nothing(
    small_repository: Path, structures: Array, cotangent: Array, expected_gradient: ExpectedGradient
) -> None:
    engine = OnnxEngine(find_models(small_repository)["diffractionnet_vjp"][0], max_batch=5)
    mixed = cotangent.astype(np.float32)
    mixed[:, 1:] = 1e-39
    density = np.where(structures[:, None] > 0, 0.5, 1e-40).astype(np.float32)
    results = engine.run([{"structure": density, "cotangent": mixed}])
    mixed[:, 1:] = 0
    np.testing.assert_allclose(results["gradient"][:, 0], expected_gradient(structures * 0.5, mixed), atol=1e-6)


@pytest.mark.parametrize("value", [1e300, -1e39, np.inf, np.nan])
def test_cotangents_that_are_not_finite_in_single_precision(
    server: RunningServer, structures: Array, cotangent: Array, value: float
) -> None:
    cotangent[2, 1, 5] = value
    refusals = [gradient(server, structures, cotangent)]
    if np.isfinite(value):
        fields = {"structures": structures.tolist(), "cotangent": cotangent.tolist()}
        refusals.append(server.post("/gradient", json=fields))
    for refused in refusals:
        assert refused.status_code == 422
        assert refused.json()["detail"] == f"cotangent: expected finite numbers in float32, got {value:g}"
    refused = oip(server, structures, cotangent, "FP64")
    assert refused.status_code == 400
    assert refused.json()["error"] == f"cotangent: values must be finite in FP32, got {value:g}"
    assert not [line for line in server.log if "Warning" in line]


def test_cotangents_whose_sum_is_not_finite(server: RunningServer, structures: Array) -> None:
    twice = np.full((len(structures), 4, 2), 3e38)
    answer = gradient(server, structures, twice, "?wavelengths_nm=450&wavelengths_nm=450")
    assert answer.status_code == 422
    assert "finite numbers in float32" in answer.json()["detail"]


async def test_gradients_that_exceed_single_precision(tmp_path: Path, structures: Array) -> None:
    model = small_gradient_model()
    (share,) = (constant for constant in model.graph.initializer if constant.name == "share")
    share.CopyFrom(onnx.numpy_helper.from_array(np.full(1, 1e4, np.float32), "share"))
    options: dict[str, Any] = {"repository": write_repository(tmp_path, model)}
    settings, metrics = Settings(**options), Metrics()
    service = await Service.start(settings, engine_factory(settings, metrics.observe), metrics)
    try:
        served = service.registry.find("diffractionnet_vjp")
        rows: Rows = {"structure": np.packbits(structures.reshape(5, -1), axis=1)}
        good = await service.infer(served, rows | {"cotangent": np.full((5, 4, 301), 1e30, np.float32)})
        assert np.isfinite(good["gradient"]).all()
        with pytest.raises(OutOfRange, match=r"gradient: exceeds float32 for a cotangent of up to 3e\+38"):
            await service.infer(served, rows | {"cotangent": np.full((5, 4, 301), 3e38, np.float32)})
    finally:
        await service.close()


@pytest.mark.parametrize("scale", [1e-9, 1e-30, 1e9, 1e30])
def test_gradients_that_half_precision_cannot_hold(
    server: RunningServer, structures: Array, cotangent: Array, scale: float
) -> None:
    refused = gradient(server, structures, cotangent * scale, "?dtype=float16")
    assert refused.status_code == 422
    assert refused.json()["field"] == "cotangent"
    assert "float16 is for gradients from 3.8e-06 to 65504" in refused.json()["detail"]
    refused = oip(server, structures, (cotangent * scale).astype(np.float32), "FP32", "FP16")
    assert refused.status_code == 422
    assert "multiply the cotangent by a constant, or ask for float32" in refused.json()["error"]


def test_no_cotangent_at_all_in_half_precision(server: RunningServer, structures: Array) -> None:
    answer = gradient(server, structures, np.zeros((len(structures), 4, 301)), "?dtype=float16").raise_for_status()
    file = io.BytesIO(answer.content)
    np.load(file)
    assert not np.load(file).any()
