"""A real Triton Inference Server on this machine: the binary of the package nvidia-pytriton, with its Python backend.

That build has no onnxruntime backend, so the exported `config.pbtxt` is used with another backend, and a small Python model
runs the same model.onnx.
"""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from metaspec_testing.servers import free_port

PACKAGES = Path(sys.prefix) / "triton"
"""Folder in which `make` installs Triton, apart from everything else: its Python backend needs NumPy 1."""

MODEL = """
import sys

sys.path[:0] = {packages}  # the embedded interpreter ignores virtual environments

import numpy
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        path = f"{{args['model_repository']}}/{{args['model_version']}}/model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = {threads}
        # Threads that spin keep the backend's own from a core: now and then it would notice a request half a second late.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        # A dynamic batch is a list of requests; the model has to join them.
        given = [{{tensor.name(): tensor.as_numpy() for tensor in request.inputs()}} for request in requests]
        feed = {{name: numpy.concatenate([one[name] for one in given]) for name in self.inputs}}
        ends = numpy.cumsum([len(one[self.inputs[0]]) for one in given])
        values = [numpy.split(value, ends[:-1]) for value in self.session.run(self.outputs, feed)]
        return [
            triton.InferenceResponse([triton.Tensor(name, part) for name, part in zip(self.outputs, parts)])
            for parts in zip(*values)
        ]
"""


@dataclass(frozen=True)
class Triton:
    """A running server.

    Attributes:
        http: address of its HTTP port, host:port.
        grpc: address of its gRPC port, host:port.
        log: file of its log.
        process: its process.
    """

    http: str
    grpc: str
    log: Path
    process: subprocess.Popen[bytes]


def python_repository(source: Path, target: Path, threads: int = 1) -> Path:
    """A copy of an exported repository for a Triton without the onnxruntime backend; returns its folder.

    Args:
        source: folder of the exported repository.
        target: folder of the copy.
        threads: threads of each model.
    """
    model = MODEL.format(packages=[str(PACKAGES), *site.getsitepackages()], threads=threads)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        config.backend = "python"
        config.ClearField("optimization")
        shutil.copytree(folder, target / folder.name)
        (target / folder.name / "config.pbtxt").write_text(text_format.MessageToString(config))
        for version in (path for path in (target / folder.name).iterdir() if path.is_dir()):
            (version / "model.py").write_text(model)
    return target


@contextmanager
def start_triton(repository: Path, work: Path, before: Triton | None = None, *flags: str) -> Iterator[Triton]:
    """Run tritonserver until the block ends.

    Args:
        repository: folder of the models.
        work: empty folder for its backends and its log.
        before: server that ran before, whose ports are used again; free ones by default.
        *flags: further flags of the command.

    Raises:
        RuntimeError: it ended, or was not ready in time. The message holds its log.
    """
    home = PACKAGES / "pytriton" / "tritonserver"
    backends = work / "backends"
    shutil.copytree(home / "backends" / "python", backends / "python")
    stub = (
        home
        / "python_backend_stubs"
        / f"{sys.version_info.major}.{sys.version_info.minor}"
        / "triton_python_backend_stub"
    )
    shutil.copy(stub, backends / "python")
    (backends / "python" / stub.name).chmod(0o755)
    http, grpc = (
        (int(a.rpartition(":")[2]) for a in (before.http, before.grpc)) if before else (free_port(), free_port())
    )
    log = work / "triton.log"
    command = [
        str(home / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        *flags,
    ]
    environment = os.environ | {"LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        triton = Triton(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log, process)
        _wait(triton)
        yield triton
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(ProcessLookupError):  # a Triton that was killed leaves its backends running
            os.killpg(process.pid, signal.SIGKILL)


def _wait(triton: Triton, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    with tritonclient.http.InferenceServerClient(triton.http) as client:
        while time.monotonic() < deadline and triton.process.poll() is None:
            try:
                if client.is_server_ready():
                    return
            except OSError:
                pass
            time.sleep(0.2)
    raise RuntimeError(f"Triton did not start:\n{triton.log.read_text()[-20000:]}")
