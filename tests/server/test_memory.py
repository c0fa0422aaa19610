"""Memory of the server with the bundled models."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from metaspec_contract.model import is_gradient_model
from metaspec_testing.servers import running_server

RAW = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_bundled_models_fit_into_little_memory() -> None:
    """Idle, and after every model has computed full micro-batches, all at once. Figures are in docs/server.md."""
    bits = np.random.default_rng(0).integers(0, 256, (8, 2048), np.uint8).tobytes()
    with running_server("--cache-mb", "0") as server:
        assert server.resident_bytes < 1000 * 2**20
        models = [entry["name"] for entry in server.post("/v2/repository/index").json()]
        assert len(models) == 10

        def use(model: str) -> None:
            (shape,) = [output["shape"] for output in outputs(model) if output["name"] == "spectra"]
            cotangents = np.ones((8, *shape[1:]), "<f4").tobytes() if is_gradient_model(model) else b""
            route = "/gradient" if cotangents else "/predict"
            server.post(f"{route}?model={model}", content=bits + cotangents, headers=RAW).raise_for_status()

        def outputs(model: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = server.get(f"/v2/models/{model}").json()["outputs"]
            return found

        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(use, models))
        assert server.peak_bytes < 1500 * 2**20
