"""The server answers as soon as it listens, and its models become ready one by one."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from metaspec import Surrogate
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import (
    METADATA,
    Array,
    Expected,
    small_gradient_model,
    small_model,
    write_repository,
)

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}

SLOW = """
import sys
from pathlib import Path
from metaspec_server.engines import onnx_session

pipes, session = Path(sys.argv.pop(1)), onnx_session._session

def slow_session(file, *arguments):
    pipes.joinpath(file.name).read_bytes()
    return session(file, *arguments)

onnx_session._session = slow_session
from metaspec_server.ops.cli import main
main()
"""
"""The command, whose models are each loaded only after the other end of a pipe was opened and closed."""


@contextmanager
def slow_server(repository: Path, pipes: Path) -> Iterator[RunningServer]:
    pipes.mkdir()
    for model in repository.iterdir():
        os.mkfifo(pipes / model.name)
    program = (sys.executable, "-c", SLOW, str(pipes))
    with running_server("--repository", str(repository), program=program, until="listens") as server:
        yield server


def reached(pipe: Path, seconds: float = 120) -> int:
    """Wait until the server loads the model of a pipe; returns the open pipe, which keeps it at that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads from it yet
                raise
        time.sleep(0.01)
    raise AssertionError(f"{pipe.name} is not loaded")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_models_become_ready_one_by_one(tmp_path: Path, structures: Array, expected: Expected) -> None:
    root = write_repository(tmp_path / "repository", small_model())
    write_repository(root, small_gradient_model())
    write_repository(root, small_model(METADATA | {"name": "another"}))
    body, pipes = np.packbits(structures).tobytes(), tmp_path / "pipes"
    with slow_server(root, pipes) as server, triton.InferenceServerClient(server.address) as client:
        loading = reached(pipes / "diffractionnet")
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("diffractionnet")
        answer = server.get("/v2/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {
            "ready": False,
            "error": "0 of 3 models are loaded, not yet diffractionnet, diffractionnet_vjp, another",
            "loaded": [],
            "loading": ["diffractionnet", "diffractionnet_vjp", "another"],
        }
        answer = server.post("/predict", content=body, headers=PACKED)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert answer.json()["detail"] == (
            "model 'diffractionnet' is not loaded yet, 0 of 3 models are: try again later"
        )
        assert server.get("/v2/models/another").status_code == 503
        assert server.get("/v2/models/unknown").status_code == 404

        with ThreadPoolExecutor() as pool, Surrogate(server.url) as surrogate:
            early = pool.submit(surrogate.predict, structures)  # it tries again until the model is loaded
            os.close(loading)
            loading = reached(pipes / "diffractionnet_vjp")
            np.testing.assert_allclose(early.result(120).values, expected(structures), atol=1e-6)
        answer = server.get("/v2/health/ready")
        assert (answer.status_code, answer.json()["loaded"]) == (503, ["diffractionnet"])
        assert client.is_model_ready("diffractionnet")
        states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
        assert states == {"diffractionnet": "READY", "diffractionnet_vjp": "LOADING", "another": "LOADING"}

        os.close(loading)
        loading = reached(pipes / "another")
        assert client.is_model_ready("diffractionnet_vjp")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)  # not for the model that is being loaded
        os.close(loading)
        assert server.process.returncode == 0
    loaded = [line for line in server.log if " on onnxruntime " in line]
    assert [line.split()[0] for line in loaded] == ["diffractionnet", "diffractionnet_vjp"]
    assert len(loaded) == len(server.log)
