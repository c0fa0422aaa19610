from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec_server.core.tensors import Rows
from metaspec_server.engines.onnx import OnnxEngine
from metaspec_server.engines.onnx_session import describe
from metaspec_server.repository import RepositoryError, find_models
from metaspec_testing.small_models import Array, Expected, ExpectedGradient


def engine(repository: Path, name: str = "diffractionnet", **options: Any) -> OnnxEngine:
    (file,) = find_models(repository)[name]
    return OnnxEngine(file, **options)


def test_pieces_packed_or_not_come_back_row_for_row(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    density = np.random.default_rng(0).random((2, 1, 128, 128)).astype(np.float32)
    bits = np.packbits(structures.reshape(5, -1), axis=1)
    pieces: list[Rows] = [{"structure": bits[:3]}, {"structure": density}, {"structure": bits[3:]}]
    spectra = engine(small_repository).run(pieces)["spectra"]
    together = np.concatenate([structures[:3], density[:, 0], structures[3:]])
    np.testing.assert_allclose(spectra, expected(together), atol=1e-6)


def test_bits_and_densities_of_a_micro_batch_lose_their_negligible_numbers(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    density = np.where(structures[:2, None] > 0, 0.5, 1e-40).astype(np.float32)
    bits = np.packbits(structures[2:].reshape(3, -1), axis=1)
    model = engine(small_repository)
    spectra = model.run([{"structure": bits}, {"structure": density}])["spectra"]
    assert not np.any((model._buffers["structure"] > 0) & (model._buffers["structure"] < 1e-30))
    together = np.concatenate([structures[2:], np.where(density[:, 0] > 0.1, 0.5, 0)])
    np.testing.assert_allclose(spectra, expected(together), atol=1e-6)


def test_twins_compute_at_once(small_repository: Path, structures: Array, expected_gradient: ExpectedGradient) -> None:
    model = engine(small_repository, "diffractionnet_vjp", max_batch=5)
    rng = np.random.default_rng(0)
    cotangents = [rng.normal(size=(5, 4, 301)).astype(np.float32) for _ in range(3)]

    def compute(twin: OnnxEngine, cotangent: Array) -> None:
        wanted = expected_gradient(structures, cotangent)
        for _ in range(50):
            results = twin.run([{"structure": structures[:, None].astype(np.float32), "cotangent": cotangent}])
            np.testing.assert_allclose(results["gradient"][:, 0], wanted, atol=1e-6)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compute, [model.twin(), model.twin(), model.twin()], cotangents))
    ended = model.twin()
    ended.stop()
    with pytest.raises(Exception, match="terminate"):
        ended.run([{"structure": structures[:, None].astype(np.float32), "cotangent": cotangents[0]}])
    compute(model.twin(), cotangents[0])


@pytest.mark.parametrize("max_batch", [1, 5, 8])
def test_bound_tensors_of_fixed_sizes_compute_the_same(
    small_repository: Path, expected_gradient: ExpectedGradient, max_batch: int
) -> None:
    """What runs on GPUs, on the CPU: batches filled up to the next size, tensors allocated once."""
    model = engine(small_repository, "diffractionnet_vjp", max_batch=max_batch)
    model._bind("cpu", 0, cuda_graphs=False)
    assert max(model._bound) == max_batch
    rng = np.random.default_rng(0)
    for size in [*range(1, max_batch + 1), 1]:
        density = rng.random((size, 1, 128, 128)).astype(np.float32)
        cotangent = rng.normal(size=(size, 4, 301)).astype(np.float32)
        results = model.run([{"structure": density, "cotangent": cotangent}])
        assert {name: len(array) for name, array in results.items()} == {"spectra": size, "gradient": size}
        np.testing.assert_allclose(results["gradient"][:, 0], expected_gradient(density, cotangent), atol=1e-6)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here(small_repository: Path, provider: str) -> None:
    import onnxruntime

    if any(provider in name.lower() for name in onnxruntime.get_available_providers()):
        pytest.skip(f"{provider} is here")
    with pytest.raises(RepositoryError, match=r"ExecutionProvider, only .*CPUExecutionProvider"):
        engine(small_repository, provider=provider)


@pytest.mark.gpu
def test_a_gpu_computes_the_same(small_repository: Path, structures: Array, expected: Expected) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has no CUDAExecutionProvider here")
    model = engine(small_repository, provider="cuda", max_batch=8)
    assert "CUDAExecutionProvider" in model.about.platform
    spectra = model.run([{"structure": np.packbits(structures.reshape(5, -1), axis=1)}])["spectra"]
    np.testing.assert_allclose(spectra, expected(structures), atol=2e-3)  # TF32 has 10 bits of mantissa


def test_a_description_is_that_of_the_engine(small_repository: Path) -> None:
    (file,) = find_models(small_repository)["diffractionnet_vjp"]
    about, loaded = describe(file, "elsewhere"), OnnxEngine(file).about
    assert (about.metadata, about.inputs, about.outputs) == (loaded.metadata, loaded.inputs, loaded.outputs)
    assert about.platform == "elsewhere"
