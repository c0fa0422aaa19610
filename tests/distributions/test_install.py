"""Each distribution, installed alone into a fresh environment: its modules import, its commands run, its extras are named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metaspec import Surrogate
from metaspec_testing.distributions import PACKAGES, Archives, Environment, read_project
from metaspec_testing.servers import running_server

pytestmark = pytest.mark.slow

Build = Callable[[str], Archives]
VERSION = read_project("contract")["version"]
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(f"{module.name}: {error}")
"""
FIRST_PREDICTION = """
import numpy, metaspec, metaspec.colour, metaspec.objectives, metaspec.topology
metaspec.Surrogate("http://127.0.0.1:9").predict(numpy.zeros((1, 128, 128)))
"""


def failed_imports(environment: Environment, *packages: str) -> list[str]:
    """Import every module of some packages; list those that cannot be imported, with the reason."""
    result = environment.run("python", "-c", IMPORT_ALL, *packages)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result
    (line,) = result.stderr.splitlines()
    for part in parts:
        assert part in line


def assert_version(environment: Environment, program: str) -> None:
    result = environment.run(program, "--version")
    assert result.returncode == 0, result
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert line == f"{program} {VERSION}"


def test_contract(archives: Build, environment: Environment) -> None:
    environment.install(archives("contract").wheel, lock="test.txt")
    assert failed_imports(environment, "metaspec_contract") == []
    result = environment.run("python", "-c", "import metaspec_contract; print(metaspec_contract.__version__)")
    assert result.stdout.strip() == VERSION, result.stderr


def test_client(archives: Build, environment: Environment) -> None:
    wheels = archives("contract").wheel, archives("client").wheel
    environment.install(*wheels, lock="test.txt")
    assert_version(environment, "metaspec")
    for command in ("optimise", "predict"):
        assert environment.run("metaspec", command, "--help").returncode == 0
    np.save(environment.programs.parent / "structures.npy", np.zeros((1, 128, 128), np.uint8))
    prediction = environment.run("metaspec", "predict", "structures.npy", "--url", "http://127.0.0.1:9")
    assert_one_line(prediction, "http://127.0.0.1:9")
    simulation = environment.run("metaspec", "predict", "structures.npy", "--source", "solver")
    assert_one_line(simulation, "--source solver needs metaspec-lab: pip install metaspec-lab")
    assert_one_line(environment.run("metaspec", "optimise", "--out", "designs"), 'pip install "metaspec[optimise]"')
    for module, extra in {
        "torch": "torch",
        "jax": "jax",
        "gds": "optimise",
        "figures": "optimise",
        "widget": "notebook",
        "mcp": "mcp",
        "jobs": "studio",
    }.items():
        result = environment.run("python", "-c", f"import metaspec.{module}")
        assert result.stderr.splitlines()[-1].startswith("ImportError")
        assert f'pip install "metaspec[{extra}]"' in result.stderr
    result = environment.run("python", "-c", FIRST_PREDICTION)
    assert "ServerUnreachable" in result.stderr.splitlines()[-1]


def test_client_with_its_command_line(archives: Build, environment: Environment) -> None:
    environment.install(archives("contract").wheel, f"{archives('client').wheel}[optimise]", lock="test.txt")
    result = environment.run("metaspec", "optimise", "--out", "designs", "--url", "http://127.0.0.1:9")
    assert_one_line(result, "http://127.0.0.1:9")


def test_server(archives: Build, environment: Environment, small_repository: Path) -> None:
    environment.install(archives("contract").wheel, archives("server").wheel, lock="serve.txt")
    assert_version(environment, "metaspec-serve")
    missing = failed_imports(environment, "metaspec_server")
    needing_triton = [f"metaspec_server.engines.{name}" for name in ("triton", "triton_connection", "triton_queue")]
    modules = ("call", "inference", "messages", "methods", "request_message", "server", "status")
    needing_grpc = [f"metaspec_server.oip_grpc.{name}" for name in modules]
    assert sorted(line.partition(":")[0] for line in missing) == [*needing_triton, *needing_grpc]
    triton = environment.run("metaspec-serve", "--engine", "triton", "--triton-url", "127.0.0.1:9")
    assert_one_line(triton, "pip install 'metaspec-server[triton]'")
    small = ["--repository", str(small_repository)]
    grpc = environment.run("metaspec-serve", *small, "--grpc-port", "0")
    assert_one_line(grpc, "pip install 'metaspec-server[grpc]'")
    traces = environment.run("metaspec-serve", *small, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert_one_line(traces, "pip install 'metaspec-server[telemetry]'")

    program = [str(environment.programs / "metaspec-serve")]
    with running_server(program=program) as server, Surrogate(server.url) as surrogate:
        spectra = surrogate.predict(np.zeros((1, 128, 128), np.uint8))
        assert spectra.values.shape == (1, 4, 301)
        assert np.isfinite(spectra.values).all()


def test_laboratory(archives: Build, environment: Environment) -> None:
    environment.install(archives("contract").wheel, archives("lab").wheel, lock="test.txt")
    assert failed_imports(environment, *(package.rpartition("/")[2] for package in PACKAGES["lab"])) == []
    for program in read_project("lab")["scripts"]:
        assert_version(environment, program)
        assert environment.run(program, "--help").returncode == 0
