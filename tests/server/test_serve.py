"""The command itself: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest

import metaspec_server
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Expected, small_model, write_repository


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metaspec_server", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | environment
    )


def test_it_says_what_it_serves_and_where(server: RunningServer) -> None:
    assert "diffractionnet version 1 on onnxruntime" in server.banner
    assert f"MetaSpec serves at {server.url}" in server.banner
    assert f"{server.url}/docs" in server.banner


def test_help_names_every_setting() -> None:
    text = serve("--help").stdout
    for flag in ("--repository", "--host", "--port", "--threads", "--max-batch", "--max-queue", "--request-timeout"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "99999"), "--port: Input should be less than or equal to 65535, got '99999'"),
        (("--max-batch", "0"), "--max-batch: Input should be greater than or equal to 1, got '0'"),
        (("--engine", "torch"), "--engine"),
        (("--repository", "no/such/folder"), "no/such/folder: no such folder"),
        (("--prot", "8000"), "unrecognized arguments: --prot 8000"),
    ],
)
def test_bad_settings_end_with_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = serve(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("METASPEC_MAX_BATCH", "abc", "--max-batch: Input should be a valid integer, .*, got 'abc'"),
        ("METASPEC_GPUS", '[0, "x"]', "--gpus: Input should be a valid integer, .*, got 'x'"),
    ],
)
def test_bad_variables_end_with_one_line(variable: str, value: str, message: str) -> None:
    result = serve(**{variable: value})
    assert result.returncode == 2
    assert re.fullmatch(f"metaspec-serve: {message}\n", result.stderr)


def test_a_port_in_use(small_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve("--repository", str(small_repository), "--port", str(port))
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_damaged_repositories(tmp_path: Path) -> None:
    def refused(root: Path) -> str:
        result = serve("--repository", str(root), "--port", "0")
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    (tmp_path / "empty").mkdir()
    assert "no models in it" in refused(tmp_path / "empty")
    (tmp_path / "bare" / "diffractionnet").mkdir(parents=True)
    assert "has no version" in refused(tmp_path / "bare")
    (tmp_path / "hollow" / "diffractionnet" / "1").mkdir(parents=True)
    assert "model.onnx: missing" in refused(tmp_path / "hollow")

    root = write_repository(tmp_path / "cut", small_model())
    file = root / "diffractionnet" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "ONNX Runtime cannot load it" in refused(root)


def test_the_newest_version_is_served(tmp_path: Path) -> None:
    root = write_repository(tmp_path, small_model(seed=1), version=2)
    write_repository(root, small_model(seed=2), version=10)
    with running_server("--repository", str(root)) as server:
        assert server.get("/v2/models/diffractionnet").json()["versions"] == ["2", "10"]
        assert "diffractionnet version 10 on" in server.banner
        answers = {}
        for query in ("", "?version=2", "?version=10"):
            answer = server.post("/predict" + query, json={"structures": np.eye(128).tolist()}).json()
            answers[query] = (answer["version"], answer["spectra"])
        assert [version for version, _ in answers.values()] == ["10", "2", "10"]
        assert answers[""] == answers["?version=10"]
        assert answers[""][1] != answers["?version=2"][1]
        assert server.get("/v2/models/diffractionnet/versions/3").status_code == 404


def test_it_ends_cleanly_when_told_to(small_repository: Path) -> None:
    with running_server("--repository", str(small_repository)) as server:
        server.get("/v2/health/ready").raise_for_status()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        assert server.process.returncode == 0
        assert not server.log


def test_its_version() -> None:
    assert serve("--version").stdout == f"metaspec-serve {metaspec_server.__version__}\n"
    assert metaspec_server.__version__ == version("metaspec-server")


def test_its_version_travels(server: RunningServer) -> None:
    assert server.get("/openapi.json").json()["info"]["version"] == metaspec_server.__version__
    assert server.get("/v2").json()["version"] == metaspec_server.__version__


@pytest.mark.parametrize(
    ("module", "arguments", "environment", "extra"),
    [
        ("tritonclient", ["--engine", "triton"], {}, "metaspec-server[triton]"),
        ("opentelemetry.sdk", [], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "metaspec-server[telemetry]"),
    ],
)
def test_a_missing_extra_is_named_before_models_are_loaded(
    tmp_path: Path, module: str, arguments: list[str], environment: dict[str, str], extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"  # an import of it fails as if it were not installed
        "from metaspec_server.ops.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "--repository", str(tmp_path / "none"), "--port", "0", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | environment
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert f"{module.split('.')[0]}" in result.stderr
    assert f"pip install '{extra}'" in result.stderr


def test_the_small_model_is_what_the_tests_think(small_repository: Path, expected: Expected) -> None:
    model = onnx.load(small_repository / "diffractionnet" / "1" / "model.onnx")
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "weight"))
    density = np.random.default_rng(3).random((2, 128, 128))
    pooled = density.reshape(2, 8, 16, 8, 16).mean(axis=(2, 4)).reshape(2, 64)
    np.testing.assert_allclose(expected(density).reshape(2, -1), 1 / (1 + np.exp(-pooled @ weight)), atol=1e-5)
