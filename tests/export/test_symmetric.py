"""The model over symmetric images: what the command publishes of it, and what the real server answers with it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from metaspec_contract.process import Process
from metaspec_contract.structures import Symmetry
from metaspec_export.cli import export
from metaspec_export.graph.gradient import gradient_graph
from metaspec_export.graph.operators import require_portable
from metaspec_export.metadata import attach, read
from metaspec_export.parity import check_gradient_parity, run, session
from metaspec_export.precision import deviation, reduce, require_within
from metaspec_export.publish import Publication, publish
from metaspec_export.triton_config import config_pbtxt
from metaspec_simulation.dataset import load
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.symmetric import SymmetricNetwork

DATA = Path(__file__).parents[2] / "datasets" / "bayer-600nm"
CONFIG = DiffractionFieldNetConfig(width=32, blocks=0, spectral_basis=8, wavelength_nodes=20)  # quick to trace
STRUCTURES = load(DATA).of("test").structures[:6]
IMAGES = [Symmetry(flip_rows=rows, flip_columns=columns) for rows in (False, True) for columns in (False, True)]


@pytest.fixture(scope="module")
def network() -> SymmetricNetwork:
    torch.manual_seed(0)
    return SymmetricNetwork(CONFIG.build().eval(), images=4)


@pytest.fixture(scope="module")
def repository(network: SymmetricNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forward models by the command, and the gradient model of the one over images alone: tracing takes long."""
    folder = tmp_path_factory.mktemp("run")
    root, checkpoint = folder / "repository", folder / "last.ckpt"
    state = {f"network.{name}": value for name, value in network.network.state_dict().items()}
    torch.save({"network": (type(CONFIG).__name__, CONFIG.to_dict()), "state_dict": state}, checkpoint)
    export(checkpoint, root, [DATA], gradient=False, symmetric=True, images=4)
    metadata = metadata_of(root) | {"name": "diffractionnet_symmetric_vjp", "kind": "vjp"}
    graph = gradient_graph(network)
    attach(graph, metadata)
    files = {"model.onnx": graph.SerializeToString()}
    publish(root, 1, [Publication("diffractionnet_symmetric_vjp", config_pbtxt(metadata), files)])
    return root


@pytest.fixture(scope="module")
def url(repository: Path, start_server) -> Iterator[str]:
    with start_server("--repository", str(repository), "--max-batch", "8") as running:
        yield running.url


def metadata_of(repository: Path) -> dict:
    return read(onnx.load(repository / "diffractionnet_symmetric" / "1" / "model.onnx"))


def predict(url: str, structures: np.ndarray, model: str = "diffractionnet_symmetric", **query: str) -> np.ndarray:
    body = io.BytesIO()
    np.save(body, structures)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer = httpx.post(f"{url}/predict", params={"model": model, **query}, headers=headers, content=body.getvalue())
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


def gradient(url: str, structures: np.ndarray, cotangent: np.ndarray, **query: str) -> tuple[np.ndarray, np.ndarray]:
    body = io.BytesIO()
    np.save(body, structures)
    np.save(body, cotangent)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    query = {"model": "diffractionnet_symmetric", **query}
    answer = httpx.post(f"{url}/gradient", params=query, headers=headers, content=body.getvalue(), timeout=60)
    assert answer.status_code == 200, answer.text
    arrays = io.BytesIO(answer.content)
    return np.load(arrays), np.load(arrays)


def test_what_is_published(repository: Path) -> None:
    names = ["diffractionnet", "diffractionnet_symmetric", "diffractionnet_symmetric_vjp"]
    assert sorted(path.name for path in repository.iterdir()) == names
    metadata, plain = metadata_of(repository), read(onnx.load(repository / "diffractionnet" / "1" / "model.onnx"))
    assert metadata["channels"] == ["R", "G1", "G2", "B", "spread"]
    assert "over 4 symmetric images" in metadata["units"]["spread"]
    assert (metadata["forward_passes"], plain["forward_passes"]) == (4, 1)
    assert metadata["training"] == plain["training"]
    assert plain["channels"] == ["R", "G1", "G2", "B"]
    told = metadata["metrics"]["validation"]["spread"]
    assert 0 < told["quantiles"]["0.1"] < told["quantiles"]["0.5"] < told["quantiles"]["0.99"]
    assert -1 <= told["rank_correlation_with_error"] <= 1
    card = (repository / "diffractionnet_symmetric" / "1" / "MODEL_CARD.md").read_text()
    assert "(N, 5, 301)" in card
    assert f"below {told['quantiles']['0.5']:.4f} for half of the structures" in " ".join(card.split())
    assert "spread" not in (repository / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()


def test_batches_are_counted_in_passes_through_the_network(repository: Path) -> None:
    text = (repository / "diffractionnet_symmetric_vjp" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [tuple(tensor.dims) for tensor in config.input] == [(1, 128, 128), (5, 301)]
    assert [tuple(tensor.dims) for tensor in config.output] == [(5, 301), (1, 128, 128)]
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 8, 32]
    told = json.loads(config.parameters["metaspec"].string_value)
    assert told["channels"] == ["R", "G1", "G2", "B", "spread"]
    options = json.loads((repository / "diffractionnet_symmetric" / "1" / "tensorrt.json").read_text())
    assert options["trt_profile_max_shapes"] == "structure:64x1x128x128"


def test_the_gradient_is_that_of_autograd_and_of_finite_differences(
    network: SymmetricNetwork, repository: Path
) -> None:
    graph = onnx.load(repository / "diffractionnet_symmetric_vjp" / "1" / "model.onnx")
    require_portable(graph)
    parity = check_gradient_parity(network, graph.SerializeToString(), STRUCTURES[:3])
    assert 0 < parity.autograd <= 1e-4
    assert 0 < parity.finite_differences <= 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precision_keeps_the_spread(repository: Path, precision: str) -> None:
    exact = onnx.load(repository / "diffractionnet_symmetric" / "1" / "model.onnx")
    expected, got = (
        run(session(model.SerializeToString()), STRUCTURES) for model in (exact, reduce(exact, precision, STRUCTURES))
    )
    require_within(deviation(tuple(got), tuple(expected), Process()), precision)
    assert np.corrcoef(got[0][:, 4].ravel(), expected[0][:, 4].ravel())[0, 1] > 0.95


def test_the_server_answers_with_mean_and_spread_of_the_images(url: str) -> None:
    images = []
    for symmetry in IMAGES:
        moved = np.ascontiguousarray(symmetry.apply(STRUCTURES))
        images.append(predict(url, moved, model="diffractionnet")[:, np.argsort(symmetry.channels)])
    mean = np.mean(images, axis=0)
    spread = np.sqrt(np.mean((images - mean) ** 2, axis=(0, 2)))
    assert spread.max() > 1e-3
    got = predict(url, STRUCTURES)
    assert got.shape == (6, 5, 301)
    np.testing.assert_allclose(got[:, :4], mean, atol=1e-5)
    np.testing.assert_allclose(got[:, 4], spread, atol=2e-5)
    np.testing.assert_array_equal(predict(url, STRUCTURES, channels="spread"), got[:, 4:])


def test_structures_that_every_image_shares_have_no_spread(url: str) -> None:
    uniform = np.stack([np.zeros((128, 128), np.uint8), np.ones((128, 128), np.uint8)])
    assert predict(url, uniform)[:, 4].max() < 5e-5


def test_the_gradient_of_the_spread_through_the_server(url: str) -> None:
    density = np.random.default_rng(3).uniform(0.3, 0.7, (1, 128, 128)).astype(np.float32)
    cotangent = np.full((1, 1, 301), 1 / 301, np.float32)
    spectra, slope = gradient(url, density, cotangent, channels="spread")
    assert spectra.shape == (1, 1, 301)
    assert slope.shape == (1, 128, 128)
    step = 1e-3 * slope / np.abs(slope).max()
    up, down = (float(predict(url, density + sign * step, channels="spread").mean()) for sign in (1, -1))
    assert (up - down) / 2 == pytest.approx(float((slope * step).sum()), rel=0.02)
    whole = np.zeros((1, 5, 301), np.float32)
    whole[:, 4:] = cotangent
    np.testing.assert_allclose(gradient(url, density, whole)[1], slope, rtol=1e-5, atol=1e-9)


def test_the_protocol_tells_five_channels(url: str) -> None:
    with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
        described = client.get_model_metadata("diffractionnet_symmetric_vjp")
        assert {t["name"]: t["shape"] for t in described["inputs"]}["cotangent"] == [-1, 5, 301]
        density = STRUCTURES[:2, None].astype(np.float32)
        inputs = []
        for name, value in (("structure", density), ("cotangent", np.ones((2, 5, 301), np.float32))):
            inputs.append(tritonclient.http.InferInput(name, value.shape, "FP32"))
            inputs[-1].set_data_from_numpy(value)
        answer = client.infer("diffractionnet_symmetric_vjp", inputs)
    np.testing.assert_allclose(answer.as_numpy("spectra"), predict(url, STRUCTURES[:2]), atol=1e-6)


def test_micro_batches_are_counted_in_passes_through_the_network(url: str) -> None:
    predict(url, np.random.default_rng(4).integers(0, 2, (8, 128, 128), np.uint8))
    predict(url, np.random.default_rng(5).integers(0, 2, (8, 128, 128), np.uint8), model="diffractionnet")
    metrics = httpx.get(f"{url}/metrics").text

    def batches(model: str, upto: str) -> float:
        pattern = rf'metaspec_batch_size_bucket\{{le="{re.escape(upto)}",model="{model}"\}} (\S+)'
        return float(re.search(pattern, metrics)[1])

    assert batches("diffractionnet_symmetric", "2.0") == batches("diffractionnet_symmetric", "+Inf") > 0
    assert batches("diffractionnet", "4.0") < batches("diffractionnet", "+Inf")


def test_another_number_of_images_is_refused_before_anything_is_traced(repository: Path) -> None:
    checkpoint = repository.parent / "last.ckpt"
    with pytest.raises(ValueError, match="images must be one of 2, 4, 8, got 3"):
        export(checkpoint, repository.parent / "other", [DATA], symmetric=True, images=3)
    assert not (repository.parent / "other").exists()
