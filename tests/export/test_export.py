"""The command on a real checkpoint: what it publishes, and that it publishes nothing when anything is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from metaspec_export import cli
from metaspec_export.graph.forward import forward_graph, weights_sha256
from metaspec_export.parity import ParityError, check_gradient_parity, check_parity
from metaspec_export.publish import Publication, publish
from metaspec_simulation.dataset import load
from metaspec_testing.triton import python_repository, start_triton
from metaspec_training.fit.module import load_network
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.query import DiffractionNetConfig

ROOT = Path(__file__).parents[2]
DATA = ROOT / "datasets" / "bayer-600nm"


def write_checkpoint(path: Path, config: DiffractionFieldNetConfig | DiffractionNetConfig) -> Path:
    torch.manual_seed(0)
    state = {f"network.{name}": value for name, value in config.build().state_dict().items()}
    torch.save({"network": (type(config).__name__, config.to_dict()), "state_dict": state}, path)
    return path


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has PyTorch loaded; one test below runs it in a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["metaspec-export", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command(*arguments, "--data", DATA)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("run") / "last.ckpt", DiffractionFieldNetConfig(width=32, blocks=1, beam=True)
    )


@pytest.fixture(scope="module")
def repository(checkpoint: Path) -> Path:
    root = checkpoint.parent / "repository"
    result = export(checkpoint, "--repository", root, "--precision", "fp32,fp16")
    assert result.returncode == 0, result.stderr
    assert "agrees with PyTorch" in result.stdout
    assert "The gradient agrees with torch.autograd" in result.stdout
    assert "fp16 deviates from fp32" in result.stdout
    assert not result.stderr
    result = export(checkpoint, "--repository", root, "--precision", "int8", "--no-gradient", "--name", "small")
    assert result.returncode == 0, result.stderr
    assert "int8 deviates from fp32" in result.stdout
    return root


def test_layout_and_config(repository: Path) -> None:
    names = [f"diffractionnet{precision}{kind}" for precision in ("", "_fp16") for kind in ("", "_vjp")]
    names.append("small_int8")
    assert sorted(path.name for path in repository.iterdir()) == sorted(names)
    for name in names:
        files = {str(path.relative_to(repository / name)) for path in (repository / name).rglob("*") if path.is_file()}
        options = set() if "int8" in name else {"1/tensorrt.json"}
        assert files == {"config.pbtxt", "1/model.onnx", "1/MODEL_CARD.md"} | options
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
        assert [sample.batch_size for sample in config.model_warmup] == [1, 128]
        accelerators = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
        assert accelerators == ([] if "int8" in name else ["tensorrt"])


def test_tensorrt_options_cover_every_batch(repository: Path) -> None:
    options = json.loads((repository / "diffractionnet_vjp" / "1" / "tensorrt.json").read_text())
    assert options["trt_profile_min_shapes"] == "structure:1x1x128x128,cotangent:1x4x301"
    assert options["trt_profile_max_shapes"] == "structure:256x1x128x128,cotangent:256x4x301"
    assert not any("fp16" in key for key in options)  # TensorRT 11 takes the precision from the graph


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
    card = (repository / "diffractionnet_fp16_vjp" / "1" / "MODEL_CARD.md").read_text()
    assert "million parameters, fp16." in card
    assert "from those of fp32, its gradient by" in card


@pytest.mark.parametrize(("checkpoint", "name"), [("field", "diffractionnet"), ("fast", "diffractionnet_fast")])
def test_the_bundled_checkpoints_are_the_bundled_models(checkpoint: str, name: str) -> None:
    network = load_network(ROOT / "training" / "checkpoints" / f"{checkpoint}.ckpt")
    structures = load(DATA).of("test").structures[:4]
    models = ROOT / "server" / "models"
    graph = (models / name / "1" / "model.onnx").read_bytes()
    assert check_parity(network, graph, structures) <= 1e-5
    graph = (models / f"{name}_vjp" / "1" / "model.onnx").read_bytes()
    assert check_gradient_parity(network, graph, structures[:2]).autograd <= 1e-4


def test_versions_count_up_and_never_change(repository: Path, checkpoint: Path) -> None:
    assert export(checkpoint, "--repository", repository, "--no-gradient").returncode == 0
    file = repository / "diffractionnet" / "2" / "model.onnx"
    before = file.read_bytes()
    result = export(checkpoint, "--repository", repository, "--version", 2)
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert file.read_bytes() == before


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp8"), "expected one or more of fp32, fp16, int8, got 'fp8'"),
        (("--precision", "bf16"), "no bfloat16 convolution on CPUs"),
        (("--tensorrt",), "has no TensorrtExecutionProvider"),
        (("--data", "no/such/data"), "no/such/data"),
        (("--name", "../models"), "name must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got '../models'"),
        (("--name", "fast_vjp"), "must not end with _vjp, as the names of its variants do"),
    ],
)
def test_bad_options_end_with_one_line(
    tmp_path: Path, checkpoint: Path, arguments: tuple[str, ...], message: str
) -> None:
    if arguments == ("--tensorrt",) and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has TensorRT")
    result = export(checkpoint, "--repository", tmp_path / "repository", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "repository").exists()


def publication(name: str, content: str) -> Publication:
    return Publication(name, f"config {content}", {"model.onnx": content.encode(), "tensorrt/engine": b"engine"})


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 1, [publication("forward", "first"), publication("vjp", "first")])
    before = snapshot(tmp_path)
    fsync = os.fsync

    def fails_after(calls: int) -> None:
        remaining = iter(range(calls))

        def full_disk(descriptor: int) -> None:
            if next(remaining, None) is None:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr("os.fsync", full_disk)

    second = [publication("forward", "second"), publication("vjp", "second")]
    total = 2 * 3 + 2 + 1  # files of two models, their folders, the repository
    for calls in range(total):
        fails_after(calls)
        with pytest.raises(OSError, match="No space left"):
            publish(tmp_path, 2, second)
        assert snapshot(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["forward", "vjp"]
    fails_after(total)
    publish(tmp_path, 2, second)
    assert (tmp_path / "vjp" / "2" / "model.onnx").read_bytes() == b"second"
    assert (tmp_path / "vjp" / "config.pbtxt").read_text() == "config second"


def test_a_first_publication_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "new" / "repository", 1, [publication("forward", "first")])
    assert not (tmp_path / "new").exists()


def test_an_interrupted_export_leaves_nothing_behind(tmp_path: Path, checkpoint: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "metaspec_export.cli",
        str(checkpoint),
        "--repository",
        str(tmp_path / "repository"),
    ]
    process = subprocess.Popen([*command, "--data", str(DATA)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "Tracing" in process.stdout.readline()
    process.terminate()
    assert process.wait(timeout=60) != 0
    assert not (tmp_path / "repository").exists()


def inspect(repository: Path) -> subprocess.CompletedProcess[str]:
    return command("inspect", repository)


def test_inspect(repository: Path, tmp_path: Path) -> None:
    result = inspect(repository)
    assert result.returncode == 0
    assert "diffractionnet_fp16_vjp" in result.stdout
    assert "intact" in result.stdout
    assert "CPU" in result.stdout
    assert "DiffractionFieldNet" in result.stdout
    damaged = tmp_path / "damaged"
    shutil.copytree(repository / "diffractionnet", damaged / "diffractionnet")
    file = damaged / "diffractionnet" / "1" / "model.onnx"
    model = onnx.load(file)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, file)
    result = inspect(damaged)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout
    assert "SHA-256 differs" in " ".join(result.stdout.split())
    file.write_bytes(b"no onnx")
    assert "cannot be read" in inspect(damaged).stdout
    (tmp_path / "empty").mkdir()
    result = inspect(tmp_path / "empty")
    assert result.returncode == 2
    assert "no model here" in result.stderr


def test_the_served_models_through_a_real_triton(repository: Path, tmp_path: Path) -> None:
    structures = load(DATA).of("test").structures[:5]
    density = structures[:, None].astype(np.float32)
    cotangent = np.random.default_rng(0).standard_normal((5, 4, 301), np.float32)
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
