"""The server as a front of a real Triton, with models that take conditions: Triton needs all of them, so it gets all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metaspec_contract.model import parse_metadata
from metaspec_export.triton_config import config_pbtxt
from metaspec_testing.conditioned_models import conditioned_gradient_model, conditioned_model
from metaspec_testing.direct import Direct, conditioned_repository
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array
from metaspec_testing.triton import python_repository, start_triton

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}

pytestmark = [pytest.mark.slow, pytest.mark.triton]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = conditioned_repository(tmp_path_factory.mktemp("source"))
    for model in (conditioned_model(), conditioned_gradient_model()):
        metadata = parse_metadata({entry.key: entry.value for entry in model.metadata_props})
        (root / metadata.name / "config.pbtxt").write_text(config_pbtxt(metadata, "fp32"))
    repository = python_repository(root, tmp_path_factory.mktemp("triton") / "repository")
    with start_triton(repository, tmp_path_factory.mktemp("work")) as triton:
        flags = ("--engine", "triton", "--triton-url", triton.grpc, "--repository", str(repository))
        with running_server(*flags) as server:
            yield server


def ask(front: RunningServer, path: str, body: bytes) -> Array:
    answer = front.post(path, content=body, headers=PACKED).raise_for_status()
    return np.frombuffer(answer.content, np.float32)


def test_spectra_and_gradients(front: RunningServer, direct: Direct, structures: Array) -> None:
    body = np.packbits(structures).tobytes()
    for query, given in (
        ("", {}),
        ("?distance_um=1.25", {"distance_um": 1.25}),
        ("?incidence=10,-5", {"incidence": [10, -5]}),
    ):
        found = ask(front, f"/predict{query}", body)
        np.testing.assert_allclose(found, direct.spectra(structures, **given).ravel(), atol=1e-6)
    cotangent = np.random.default_rng(0).standard_normal((5, 4, 301), np.float32)
    found = ask(front, "/gradient?distance_um=1.25", body + cotangent.tobytes())
    expected = direct.gradients(structures, cotangent, distance_um=1.25)
    parts = np.split(found, np.cumsum([5 * 4 * 301, 5 * 16384, 5]))
    for part, name in zip(parts, ("spectra", "gradient", "gradient_distance_um", "gradient_incidence"), strict=True):
        np.testing.assert_allclose(part, expected[name].ravel(), rtol=1e-5, atol=1e-6)


def test_callers_with_values_of_their_own(front: RunningServer, direct: Direct, structures: Array) -> None:
    """Triton joins requests of one model into batches; the values travel with their rows."""
    distances = np.linspace(1, 3, 24)
    body = np.packbits(structures[:2]).tobytes()

    def one(distance: float) -> Array:
        return ask(front, f"/predict?distance_um={distance!r}", body)

    with ThreadPoolExecutor(8) as pool:
        for distance, found in zip(distances, pool.map(one, map(float, distances)), strict=True):
            np.testing.assert_allclose(found, direct.spectra(structures[:2], distance_um=distance).ravel(), atol=1e-6)


def test_values_out_of_range_never_reach_triton(front: RunningServer, structures: Array) -> None:
    answer = front.post("/predict?distance_um=0.5", content=np.packbits(structures).tobytes(), headers=PACKED)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "distance_um must lie between 1 and 3 um, got 0.5"
