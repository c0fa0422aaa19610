"""What the command publishes of a real checkpoint, of another process than the default one."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc import model_config_pb2

from metaspec_contract.process import Process
from metaspec_contract.provenance import Provenance
from metaspec_contract.structures import Structure
from metaspec_export.metadata import network_sha256, read, weights_sha256
from metaspec_export.parity import check_gradient_parity, check_parity
from metaspec_export.source import read_source
from metaspec_simulation.dataset import load
from metaspec_testing.triton import python_repository, start_triton
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.networks.symmetric import SymmetricNetwork
from metaspec_training.report.evaluation import uselessness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # tracing takes minutes on a busy machine

ROOT = Path(__file__).parents[2]
NAMES = [
    f"diffractionnet{symmetric}{precision}{kind}"
    for symmetric in ("", "_symmetric")
    for precision in ("", "_fp16")
    for kind in ("", "_vjp")
]

Command = Callable[..., subprocess.CompletedProcess[str]]
Graph = Callable[[str], onnx.ModelProto]


def test_every_step_is_reported(published: tuple[Path, str]) -> None:
    for line in (
        "ONNX Runtime agrees with PyTorch to",
        "The gradient agrees with torch.autograd to",
        "fp16 deviates from fp32 by",
    ):
        assert published[1].count(line) >= 2


def test_a_network_that_has_learnt_nothing_is_called_useless(published: tuple[Path, str], data: Path) -> None:
    """On the terminal and in the card; its weights are random."""
    samples = load(data)
    test, mean = samples.of("test"), samples.of("train").spectra.mean(axis=0)
    metrics = read(onnx.load(published[0] / "diffractionnet" / "1" / "model.onnx")).metrics["test"]
    assert metrics["mean_spectrum_mae"] == pytest.approx(np.abs(test.spectra - mean).mean(), rel=1e-5)
    warning = uselessness(metrics["mae"], metrics["mean_spectrum_mae"])
    assert warning is not None
    assert published[1].count("This network is useless") == 1
    card = (published[0] / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()
    assert f"# diffractionnet\n\n**{warning}**\n" in card
    assert f"has a MAE of {metrics['mean_spectrum_mae']:.4f} on the test split" in card


def test_layout_and_config(repository: Path) -> None:
    assert sorted(path.name for path in repository.iterdir()) == sorted(NAMES)
    for name in NAMES:
        files = {str(path.relative_to(repository / name)) for path in (repository / name).rglob("*") if path.is_file()}
        assert files == {"config.pbtxt", "1/model.onnx", "1/MODEL_CARD.md", "1/tensorrt.json"}
        config = text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        assert config.name == name
        assert [(t.name, tuple(t.dims)) for t in config.input] == [
            (t.name, tuple(t.shape[1:])) for t in session.get_inputs()
        ]
        assert [(t.name, tuple(t.dims)) for t in config.output] == [
            (t.name, tuple(t.shape[1:])) for t in session.get_outputs()
        ]
        assert config.response_cache.enable
        assert [sample.batch_size for sample in config.model_warmup] == [1, 32 if "symmetric" in name else 128]
        accelerators = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
        assert accelerators == ["tensorrt"]
        parameter = json.loads(config.parameters["metaspec"].string_value)
        assert parameter["process"]["period_um"] == 1.6
        assert parameter["wavelengths_nm"] == list(range(450, 751, 10))
        assert parameter["merged_greens"] is False


def test_tensorrt_options_cover_every_batch(repository: Path) -> None:
    options = json.loads((repository / "diffractionnet_vjp" / "1" / "tensorrt.json").read_text())
    assert options["trt_profile_min_shapes"] == "structure:1x1x128x128,cotangent:1x4x31"
    assert options["trt_profile_max_shapes"] == "structure:256x1x128x128,cotangent:256x4x31"
    assert not any("fp16" in key for key in options)  # TensorRT 11 takes the precision from the graph


def test_any_batch_size_equals_pytorch(graph: Graph, network: nn.Module, unseen: Structure) -> None:
    session = onnxruntime.InferenceSession(graph("diffractionnet").SerializeToString())
    for count in (1, 3, 8):
        density = unseen[:count, None].astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(density)).flatten(1, 2).numpy()
        np.testing.assert_allclose(session.run(["spectra"], {"structure": density})[0], expected, atol=1e-5)


def test_metadata_come_from_the_checkpoint(graph: Graph, process: Process, trained_on: Provenance) -> None:
    model = graph("diffractionnet")
    metadata = read(model)
    assert metadata.schema_version == 2
    assert metadata.process == process
    assert metadata.wavelengths_nm == list(range(450, 751, 10))
    assert metadata.channels == ["R", "G1", "G2", "B"]
    assert metadata.merged_greens is False
    assert metadata.training.network == "DiffractionFieldNet"
    assert metadata.training.preset == "field"
    assert metadata.training.data == list(trained_on.data)
    assert metadata.evaluated_on == "narrow-450nm"
    assert metadata.weights_sha256 == weights_sha256(model)
    assert 0 < metadata.metrics["test"]["mae"] < 1
    assert metadata.tolerance["measured"] <= 1e-5
    assert read(graph("diffractionnet_fp16")).deviation["max_abs"] > 0


def test_all_models_of_a_network_have_its_hash(graph: Graph, network: nn.Module) -> None:
    names = ("diffractionnet", "diffractionnet_vjp", "diffractionnet_fp16", "diffractionnet_fp16_vjp")
    expected = network_sha256(network)
    assert {read(graph(name)).network_sha256 for name in names} == {expected}
    assert len({read(graph(name)).weights_sha256 for name in names}) > 1
    assert network_sha256(SymmetricNetwork(network, 4)) == expected
    assert isinstance(network, DiffractionFieldNet)
    assert network_sha256(network.with_distance_range(1, 3)) == expected
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert network_sha256(other) != expected


def test_cards(repository: Path, graph: Graph, trained_on: Provenance) -> None:
    metadata = read(graph("diffractionnet"))
    card = (repository / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()
    title, _, _, _, first, *_ = card.splitlines()  # a warning is between them
    assert title == "# diffractionnet"
    millions = f"{metadata.training.parameters / 1e6:.1f}"
    assert first == f"Field decoder (DiffractionFieldNet, preset field), {millions} million parameters, fp32."
    words = " ".join(card.split())
    assert "Period 1.6 um, 0.6 um of Si3N4 in vacuum on SiO2, detectors 2.0 um below" in words
    assert "31 wavelengths from 450 to 750 nm" in words
    assert f"- narrow-450nm: {trained_on.data[0].structures} training structures, labelled by imported" in words
    assert f"| test | {metadata.metrics['test']['count']} | {metadata.metrics['test']['mae']:.4f} |" in card
    hashes = f"SHA-256 of the trained network {metadata.network_sha256}, of the weights in this file {metadata.weights_sha256}."
    assert hashes in card
    assert "mean of G1 and G2" not in card
    card = (repository / "diffractionnet_fp16_vjp" / "1" / "MODEL_CARD.md").read_text()
    assert "million parameters, fp16." in card
    assert "from those of fp32, its gradient by" in card


def test_what_was_published_is_sound(repository: Path, command: Command, tmp_path: Path) -> None:
    result = command("inspect", repository)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count(" intact ") == len(NAMES) + 1  # one in the legend
    assert "DiffractionFieldNet" in result.stdout
    assert "period 1.6 um, 450 to 750 nm" in result.stdout
    shutil.copytree(repository / "diffractionnet", tmp_path / "diffractionnet")
    file = tmp_path / "diffractionnet" / "1" / "model.onnx"
    model = onnx.load(file)
    weight = next(
        tensor for tensor in model.graph.initializer if onnx.numpy_helper.to_array(tensor).dtype == np.float32
    )
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, file)
    result = command("inspect", tmp_path)
    assert result.returncode == 1
    assert f"{file}: the weights are not those that were exported: SHA-256 differs" in result.stdout


def test_an_old_checkpoint_of_merged_greens_without_provenance(
    checkpoint: Path, make_data: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["provenance"]
    torch.save(state, tmp_path / "old.ckpt")
    data = make_data(tmp_path / "merged", merged_greens=True)
    variants = ("--precision", "fp32,int8", "--no-gradient", "--name", "small")
    arguments = ("--repository", tmp_path / "repository", *variants, "--allow-dirty")
    result = command(tmp_path / "old.ckpt", *arguments)
    assert result.returncode == 2
    assert "does not record what it was trained on" in result.stderr
    result = command(tmp_path / "old.ckpt", *arguments, "--data", data)
    assert result.returncode == 0, result.stderr
    assert "does not record what it was trained on: taken from --data, merged." in result.stdout
    assert "int8 deviates from fp32 by" in result.stdout
    folder = tmp_path / "repository" / "small" / "1"
    metadata = read(onnx.load(folder / "model.onnx"))
    assert metadata.merged_greens
    assert metadata.metrics["test"]["mae_by_detector"]["G1"] == pytest.approx(
        metadata.metrics["test"]["mae_by_detector"]["G2"]
    )
    sentence = "he training data held only the mean of G1 and G2: both channels are that mean."
    assert sentence in (folder / "MODEL_CARD.md").read_text()
    assert '\\"merged_greens\\":true' in (folder.parent / "config.pbtxt").read_text()
    assert sentence in command("inspect", tmp_path / "repository").stdout
    reduced = tmp_path / "repository" / "small_int8"
    assert sorted(path.name for path in (reduced / "1").iterdir()) == ["MODEL_CARD.md", "model.onnx"]
    assert "gpu_execution_accelerator" not in (reduced / "config.pbtxt").read_text()
    assert "KIND_CPU" in (reduced / "config.pbtxt").read_text()
    before = (folder / "model.onnx").read_bytes()
    result = command(tmp_path / "old.ckpt", *arguments, "--data", data, "--version", 1)
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert (folder / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(("checkpoint_name", "name"), [("field", "diffractionnet"), ("fast", "diffractionnet_fast")])
def test_the_bundled_checkpoints_are_the_bundled_models(checkpoint_name: str, name: str) -> None:
    checkpoint = ROOT / "training" / "checkpoints" / f"{checkpoint_name}.ckpt"
    data = ROOT / "datasets" / "bayer-600nm-80"
    network = read_source(checkpoint, [data], distance_range_um=(1.0, 3.0)).network
    structures = load(data).of("test").structures[:4]
    models = ROOT / "server" / "models"
    graph = (models / name / "2" / "model.onnx").read_bytes()
    assert check_parity(network, graph, structures) <= 1e-5
    graph = (models / f"{name}_vjp" / "2" / "model.onnx").read_bytes()
    assert check_gradient_parity(network, graph, structures[:2]).autograd <= 1e-4


@pytest.mark.triton
def test_the_served_models_through_a_real_triton(repository: Path, unseen: Structure, tmp_path: Path) -> None:
    density = unseen[:5, None].astype(np.float32)
    cotangent = np.random.default_rng(0).standard_normal((len(density), 4, 31), np.float32)
    feeds = {
        "diffractionnet": {"structure": density},
        "diffractionnet_vjp": {"structure": density, "cotangent": cotangent},
    }
    source = tmp_path / "source"
    for name in feeds:
        shutil.copytree(repository / name, source / name)
    with start_triton(python_repository(source, tmp_path / "repository"), tmp_path) as triton:
        for client, address in ((tritonclient.http, triton.http), (tritonclient.grpc, triton.grpc)):
            with client.InferenceServerClient(address) as connection:
                for name, feed in feeds.items():
                    tensors = []
                    for key, value in feed.items():
                        tensor = client.InferInput(key, list(value.shape), "FP32")
                        tensor.set_data_from_numpy(value)
                        tensors.append(tensor)
                    answer = connection.infer(name, tensors)
                    session = onnxruntime.InferenceSession(max((source / name).glob("*/model.onnx")))
                    for output, expected in zip(session.get_outputs(), session.run(None, feed), strict=True):
                        np.testing.assert_allclose(answer.as_numpy(output.name), expected, rtol=1e-5, atol=1e-6)


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert re.match(r"red efficiency 0\.\d{3}; the gradient is largest at pixel \d+", capsys.readouterr().out)
