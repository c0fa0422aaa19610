"""The model over symmetric images: what the command publishes of it, and what the real server answers with it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.http
from google.protobuf import text_format
from numpy.typing import NDArray
from torch import nn
from tritonclient.grpc import model_config_pb2

from metaspec_contract.process import Process
from metaspec_contract.structures import Structure, Symmetry
from metaspec_export.graph import require_portable
from metaspec_export.metadata import read
from metaspec_export.parity import check_gradient_parity, run, session
from metaspec_export.precision import Precision, deviation, reduce, require_within
from metaspec_testing.servers import running_server
from metaspec_training.networks.symmetric import SymmetricNetwork

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # tracing takes minutes on a busy machine

IMAGES = [Symmetry(flip_rows=rows, flip_columns=columns) for rows in (False, True) for columns in (False, True)]

Array = NDArray[np.float32]
Graph = Callable[[str], onnx.ModelProto]


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with running_server("--repository", str(repository), "--max-batch", "8") as running:
        yield running.url


def predict(url: str, structures: NDArray[np.generic], model: str = "diffractionnet_symmetric", **query: str) -> Array:
    body = io.BytesIO()
    np.save(body, structures)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer = httpx.post(f"{url}/predict", params={"model": model, **query}, headers=headers, content=body.getvalue())
    assert answer.status_code == 200, answer.text
    predicted: Array = np.load(io.BytesIO(answer.content))
    return predicted


def gradient(
    url: str, structures: NDArray[np.generic], cotangent: NDArray[np.generic], **query: str
) -> tuple[Array, Array]:
    body = io.BytesIO()
    np.save(body, structures)
    np.save(body, cotangent)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    query = {"model": "diffractionnet_symmetric", **query}
    answer = httpx.post(f"{url}/gradient", params=query, headers=headers, content=body.getvalue(), timeout=60)
    assert answer.status_code == 200, answer.text
    arrays = io.BytesIO(answer.content)
    return np.load(arrays), np.load(arrays)


def test_metadata_and_card(repository: Path, graph: Graph) -> None:
    metadata, plain = read(graph("diffractionnet_symmetric")), read(graph("diffractionnet"))
    assert metadata.channels == ["R", "G1", "G2", "B", "spread"]
    assert "over 4 symmetric images" in metadata.units["spread"]
    assert (metadata.forward_passes, plain.forward_passes) == (4, 1)
    assert metadata.training == plain.training
    assert plain.channels == ["R", "G1", "G2", "B"]
    spread = metadata.metrics["validation"]["spread"]
    assert 0 < spread["quantiles"]["0.1"] < spread["quantiles"]["0.5"] < spread["quantiles"]["0.99"]
    assert -1 <= spread["rank_correlation_with_error"] <= 1
    card = (repository / "diffractionnet_symmetric" / "1" / "MODEL_CARD.md").read_text()
    assert "(N, 5, 31)" in card
    assert f"below {spread['quantiles']['0.5']:.4f} for half of the structures" in " ".join(card.split())
    assert "spread" not in (repository / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()


def test_batches_are_counted_in_passes_through_the_network(repository: Path) -> None:
    text = (repository / "diffractionnet_symmetric_vjp" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [tuple(tensor.dims) for tensor in config.input] == [(1, 128, 128), (5, 31)]
    assert [tuple(tensor.dims) for tensor in config.output] == [(5, 31), (1, 128, 128)]
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 8, 32]
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (2, 2)
    parameter = json.loads(config.parameters["metaspec"].string_value)
    assert parameter["channels"] == ["R", "G1", "G2", "B", "spread"]
    options = json.loads((repository / "diffractionnet_symmetric" / "1" / "tensorrt.json").read_text())
    assert options["trt_profile_max_shapes"] == "structure:64x1x128x128"


def test_the_gradient_is_that_of_autograd_and_of_finite_differences(
    network: nn.Module, graph: Graph, unseen: Structure
) -> None:
    model = graph("diffractionnet_symmetric_vjp")
    require_portable(model)
    parity = check_gradient_parity(SymmetricNetwork(network, images=4), model.SerializeToString(), unseen[:3])
    assert 0 < parity.autograd <= 1e-4
    assert 0 < parity.finite_differences <= 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precision_keeps_the_spread(
    graph: Graph, unseen: Structure, precision: Precision, process: Process
) -> None:
    exact = graph("diffractionnet_symmetric")
    models = (exact, reduce(exact, precision, unseen))
    expected, got = (run(session(model.SerializeToString()), unseen) for model in models)
    require_within(deviation(tuple(got), tuple(expected), process), precision)
    assert np.corrcoef(got[0][:, 4].ravel(), expected[0][:, 4].ravel())[0, 1] > 0.95


def test_the_server_answers_with_mean_and_spread_of_the_images(url: str, unseen: Structure) -> None:
    images = []
    for symmetry in IMAGES:
        moved = np.ascontiguousarray(symmetry.apply(unseen))
        images.append(predict(url, moved, model="diffractionnet")[:, np.argsort(symmetry.channels)])
    mean = np.mean(images, axis=0)
    spread = np.sqrt(np.mean((images - mean) ** 2, axis=(0, 2)))
    assert spread.max() > 1e-3
    got = predict(url, unseen)
    assert got.shape == (len(unseen), 5, 31)
    np.testing.assert_allclose(got[:, :4], mean, atol=1e-5)
    np.testing.assert_allclose(got[:, 4], spread, atol=2e-5)
    np.testing.assert_array_equal(predict(url, unseen, channels="spread"), got[:, 4:])


def test_structures_that_every_image_shares_have_no_spread(url: str) -> None:
    uniform = np.stack([np.zeros((128, 128), np.uint8), np.ones((128, 128), np.uint8)])
    assert predict(url, uniform)[:, 4].max() < 5e-5


def test_the_gradient_of_the_spread_through_the_server(url: str) -> None:
    density = np.random.default_rng(3).uniform(0.3, 0.7, (1, 128, 128)).astype(np.float32)
    cotangent = np.full((1, 1, 31), 1 / 31, np.float32)
    spectra, slope = gradient(url, density, cotangent, channels="spread")
    assert spectra.shape == (1, 1, 31)
    assert slope.shape == (1, 128, 128)
    step = 1e-3 * slope / np.abs(slope).max()
    up, down = (float(predict(url, density + sign * step, channels="spread").mean()) for sign in (1, -1))
    assert (up - down) / 2 == pytest.approx(float((slope * step).sum()), rel=0.02)
    whole = np.zeros((1, 5, 31), np.float32)
    whole[:, 4:] = cotangent
    np.testing.assert_allclose(gradient(url, density, whole)[1], slope, rtol=1e-5, atol=1e-9)


def test_the_protocol_has_five_channels(url: str, unseen: Structure) -> None:
    with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
        described = client.get_model_metadata("diffractionnet_symmetric_vjp")
        assert {t["name"]: t["shape"] for t in described["inputs"]}["cotangent"] == [-1, 5, 31]
        density = unseen[:2, None].astype(np.float32)
        inputs = []
        for name, value in (("structure", density), ("cotangent", np.ones((2, 5, 31), np.float32))):
            inputs.append(tritonclient.http.InferInput(name, value.shape, "FP32"))
            inputs[-1].set_data_from_numpy(value)
        answer = client.infer("diffractionnet_symmetric_vjp", inputs)
    np.testing.assert_allclose(answer.as_numpy("spectra"), predict(url, unseen[:2]), atol=1e-6)


def test_micro_batches_are_counted_in_passes_through_the_network(url: str) -> None:
    predict(url, np.random.default_rng(4).integers(0, 2, (8, 128, 128), np.uint8))
    predict(url, np.random.default_rng(5).integers(0, 2, (8, 128, 128), np.uint8), model="diffractionnet")
    metrics = httpx.get(f"{url}/metrics").text

    def batches(model: str, upto: str) -> float:
        pattern = rf'metaspec_batch_size_bucket\{{le="{re.escape(upto)}",model="{model}"\}} (\S+)'
        match = re.search(pattern, metrics)
        assert match is not None
        return float(match[1])

    assert batches("diffractionnet_symmetric", "2.0") == batches("diffractionnet_symmetric", "+Inf") > 0
    assert batches("diffractionnet", "4.0") < batches("diffractionnet", "+Inf")
