"""The command on a real checkpoint: what it publishes, and that it publishes nothing when anything is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from metaspec_export.onnx import forward_graph, weights_sha256
from metaspec_export.parity import ParityError, check_parity
from metaspec_export.repository import publish
from metaspec_simulation.dataset import load
from metaspec_training.field import DiffractionFieldNetConfig
from metaspec_training.model import DiffractionNet, DiffractionNetConfig
from metaspec_training.module import load_network
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[2]
DATA = ROOT / "datasets" / "bayer-600nm"


def write_checkpoint(path: Path, config: DiffractionFieldNetConfig | DiffractionNetConfig) -> Path:
    torch.manual_seed(0)
    state = {f"network.{name}": value for name, value in config.build().state_dict().items()}
    torch.save({"network": (type(config).__name__, config.to_dict()), "state_dict": state}, path)
    return path


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metaspec_export.cli", *map(str, arguments), "--data", str(DATA)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", DiffractionFieldNetConfig(width=32, blocks=1))


@pytest.fixture(scope="module")
def repository(checkpoint: Path) -> Path:
    root = checkpoint.parent / "repository"
    result = export(checkpoint, "--repository", root)
    assert result.returncode == 0, result.stderr
    assert "agrees with PyTorch" in result.stdout
    return root


def test_layout_and_config(repository: Path) -> None:
    files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
    assert files == [
        "diffractionnet/1/MODEL_CARD.md",
        "diffractionnet/1/model.onnx",
        "diffractionnet/config.pbtxt",
    ]
    text = (repository / "diffractionnet" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == "diffractionnet"
    assert [tuple(t.dims) for t in (*config.input, *config.output)] == [(1, 128, 128), (4, 301)]


def test_any_batch_size_equals_pytorch(repository: Path, checkpoint: Path) -> None:
    session = onnxruntime.InferenceSession(repository / "diffractionnet" / "1" / "model.onnx")
    network = load_network(checkpoint)
    structures = load(DATA).of("test").structures
    for count in (1, 3, 8):
        density = structures[:count, None].astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(density)).flatten(1, 2).numpy()
        np.testing.assert_allclose(session.run(["spectra"], {"structure": density})[0], expected, atol=1e-5)


def test_metadata(repository: Path) -> None:
    model = onnx.load(repository / "diffractionnet" / "1" / "model.onnx")
    metadata = json.loads({p.key: p.value for p in model.metadata_props}["metaspec"])
    assert metadata["weights_sha256"] == weights_sha256(model)
    assert metadata["channels"] == ["R", "G1", "G2", "B"]
    assert metadata["wavelengths_nm"] == list(range(400, 701))
    assert metadata["process"]["thickness_um"] == 0.6
    assert 0 < metadata["metrics"]["test"]["mae"] < 1
    assert metadata["tolerance"]["measured"] <= 1e-5
    card = (repository / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()
    assert f"| test | {metadata['metrics']['test']['count']} | {metadata['metrics']['test']['mae']:.4f} |" in card
    assert metadata["weights_sha256"] in card


def test_versions_count_up_and_never_change(repository: Path, checkpoint: Path) -> None:
    assert export(checkpoint, "--repository", repository).returncode == 0
    file = repository / "diffractionnet" / "2" / "model.onnx"
    before = file.read_bytes()
    result = export(checkpoint, "--repository", repository, "--version", 2)
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert file.read_bytes() == before


def test_both_presets_of_diffraction_net_export() -> None:
    structures = load(DATA).of("test").structures[:3]
    for config in (DiffractionNetConfig(), DiffractionNetConfig.baseline()):
        torch.manual_seed(0)
        network = DiffractionNet(config).eval()
        model = forward_graph(network)
        assert "DFT" not in {node.op_type for node in model.graph.node}
        assert check_parity(network, model.SerializeToString(), structures) <= 1e-5


def test_a_wrong_graph_is_found_out(checkpoint: Path) -> None:
    network = load_network(checkpoint)
    graph = forward_graph(network).SerializeToString()
    with torch.no_grad():
        next(network.head.parameters()).add_(0.01)
    with pytest.raises(ParityError, match="deviates from PyTorch"):
        check_parity(network, graph, load(DATA).of("test").structures[:2])


def test_what_cannot_be_exported(tmp_path: Path, checkpoint: Path) -> None:
    root = tmp_path / "repository"

    def refused(file: Path) -> str:
        result = export(file, "--repository", root)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert not root.exists()
        return result.stderr

    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"x" * 100)
    assert "is not a checkpoint" in refused(garbage)
    state = torch.load(checkpoint, weights_only=True)
    broken = dict(state["state_dict"])
    name = next(iter(broken))
    torch.save(state | {"state_dict": {k: v for k, v in broken.items() if k != name}}, garbage)
    assert "Missing key" in refused(garbage) or "is not a checkpoint" in refused(garbage)
    broken[name] = torch.full_like(broken[name], torch.nan)
    torch.save(state | {"state_dict": broken}, garbage)
    assert f"not finite, in {name.removeprefix('network.')}" in refused(garbage)
    assert "does not exist" in refused(tmp_path / "missing.ckpt")


def test_a_failed_publication_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 1, b"first", "one")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path, 2, b"second", "two")
    assert sorted(path.name for path in (tmp_path / "diffractionnet").iterdir()) == ["1", "config.pbtxt"]
    assert (tmp_path / "diffractionnet" / "config.pbtxt").read_text() == "one"
