"""The contenders of the soak, and how each of their faults is caused: new versions, killed and hung engines.

An engine of ours is a thread: it is killed by an exception that nothing catches, raised in it from outside. An engine of Triton
is a process, which is killed. Both are hung in the same way, by a structure for which the model never ends: `ONE_PIXEL`. Triton
has no deadline of its own: its process is killed after `TRITON_PATIENCE`, as an operator would.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.structures import PIXELS
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import hanging_model, small_gradient_model
from metaspec_testing.triton import python_repository, start_triton

DEADLINE = 5.0  # seconds that our server gives a request
TRITON_PATIENCE = 10.0
KEPT = 2  # versions on disk
STUB = "triton_python_b"  # how the name of its process begins: the kernel keeps 15 characters
ONE_PIXEL = np.zeros((1, 1, PIXELS, PIXELS), np.float32)
ONE_PIXEL[0, 0, 40, 50] = 1

KILLABLE = """
import ctypes, random, signal, sys, threading, time
from metaspec_server.__main__ import main

def busy(engine):
    frame = sys._current_frames().get(engine.ident)
    return frame is not None and frame.f_code.co_name != "wait"

def kill():
    while True:
        engines = [thread for thread in threading.enumerate() if thread.name.startswith("NAME ") and busy(thread)]
        if engines:
            ident = ctypes.c_ulong(random.choice(engines).ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            return
        time.sleep(0.001)

signal.signal(signal.SIGUSR1, lambda signum, frame: threading.Thread(target=kill, daemon=True).start())
sys.exit(main())
""".replace("NAME", DEFAULT_MODEL)
"""The server, with a signal that kills one of its engines, in the midst of a micro-batch."""


def write_version(repository: Path, version: int, seed: int) -> None:
    """Put a version of both models into a repository, in one step each, with the weights of a seed."""
    for name, make in ((DEFAULT_MODEL, hanging_model), (gradient_model(DEFAULT_MODEL), small_gradient_model)):
        hidden = repository / name / f".{version}"
        hidden.mkdir(parents=True)
        (hidden / "model.onnx").write_bytes(make(seed=seed).SerializeToString())
        old = repository / name / str(version - 1) / "model.py"  # of Triton's Python backend
        if old.exists():
            shutil.copy(old, hidden)
        hidden.rename(repository / name / str(version))
        shutil.rmtree(repository / name / str(version - KEPT), ignore_errors=True)


@dataclass
class Contender:
    """A running server and its repository.

    Attributes:
        name: its name.
        address: address of its HTTP port, host:port.
        repository: folder of its models.
        process: its process.
        log: lines that it has written, where its engines are threads.
    """

    name: str
    address: str
    repository: Path
    process: psutil.Process
    log: list[str] = field(default_factory=list)
    version: int = 1

    def swap(self, seeds: int) -> None:
        """Write a new version of both models and load it, by the protocol's own call.

        Raises:
            RuntimeError: the server refused it.
        """
        self.version += 1
        write_version(self.repository, self.version, self.version % seeds)
        for name in (DEFAULT_MODEL, gradient_model(DEFAULT_MODEL)):
            if refusal := self.load(name):
                raise RuntimeError(f"version {self.version} of {name}: {refusal}")

    def load(self, name: str) -> str:
        """Ask the server to load a model's newest version; empty, or why it did not."""
        try:
            status, text = self._post(f"/v2/repository/models/{name}/load", b"{}")
        except TimeoutError:
            return "no answer in a minute"
        return "" if status == 200 else f"{status} {text}"

    def kill_engine(self) -> None:
        """Kill one engine, and wait until it has died.

        Raises:
            RuntimeError: none has.
        """
        if self.name != "MetaSpec":
            if not self._kill_stubs(slice(-1, None)):
                raise RuntimeError("there is no process to kill")
            return
        before, deadline = self._deaths(), time.monotonic() + 2 * DEADLINE
        while self._deaths() == before:  # one that has just become idle dies when it is woken, which may be never
            if time.monotonic() > deadline:
                raise RuntimeError("no engine has died")
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)

    def hang_engine(self) -> None:
        """Send the structure for which the model never ends, and wait for what becomes of it."""
        shape, data = list(ONE_PIXEL.shape), ONE_PIXEL.astype(int).ravel().tolist()
        tensor = {"name": "structure", "shape": shape, "datatype": "FP32", "data": data}
        body = json.dumps({"inputs": [tensor]}).encode()
        patience, version = 4 * DEADLINE if self.name == "MetaSpec" else TRITON_PATIENCE, self.version
        with suppress(OSError):
            self._post(f"/v2/models/{DEFAULT_MODEL}/infer", body, patience)
        if self.name != "MetaSpec":  # it goes on computing, also when the request has been answered with an error
            self._kill_stubs(version=version)

    def memory_mib(self) -> float:
        """Resident memory of the server and its children in MiB."""
        total = 0
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def handles(self) -> int:
        """Open files and sockets of the server."""
        return int(self.process.num_fds())

    def _deaths(self) -> int:
        return sum("the thread of an engine has ended" in line for line in list(self.log))

    def _kill_stubs(self, which: slice = slice(None), version: int | None = None) -> int:
        """Kill processes of the forward model, of one version or of all, the oldest first; returns how many there were."""
        found, killed, place = [], 0, os.path.join("", DEFAULT_MODEL, "" if version is None else str(version), "")
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.name().startswith(STUB) and os.sep + place in " ".join(child.cmdline()):
                    found.append(child)
        for stub in sorted(found, key=psutil.Process.create_time)[which]:
            with suppress(psutil.NoSuchProcess):
                stub.kill()
                killed += 1
        return killed

    def _post(self, path: str, body: bytes, timeout: float = 60.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")[:200]
        finally:
            connection.close()


@contextmanager
def metaspec(work: Path, *flags: str) -> Iterator[Contender]:
    """Our server on two small models, until the block ends."""
    repository = work / "metaspec"
    write_version(repository, 1, 1)
    settings = ("--repository", str(repository), "--poll-interval", "0", "--keep-versions", "1")
    limits = ("--request-timeout", str(DEADLINE), "--max-queue", "256", "--cache-mb", "0")
    with running_server(*settings, *limits, *flags, program=(sys.executable, "-c", KILLABLE)) as server:
        yield Contender("MetaSpec", server.address, repository, psutil.Process(server.process.pid), server.log)


@contextmanager
def triton(work: Path) -> Iterator[Contender]:
    """Triton on the same two models, in processes of its Python backend, until the block ends."""
    source, repository = work / "exported", work / "triton"
    write_version(source, 1, 1)
    for name in (DEFAULT_MODEL, gradient_model(DEFAULT_MODEL)):
        (source / name / "config.pbtxt").write_text(triton_config(name))
    python_repository(source, repository)
    logs = work / "triton-work"
    logs.mkdir()
    with start_triton(repository, logs, None, "--model-control-mode=explicit", "--load-model=*") as server:
        yield Contender("Triton", server.http, repository, psutil.Process(server.process.pid))


def triton_config(name: str) -> str:
    """Configuration of a model with dynamic batching, as our exporter writes it."""
    gradient = name == gradient_model(DEFAULT_MODEL)
    inputs = '{ name: "structure", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }'
    inputs += ', { name: "cotangent", data_type: TYPE_FP32, dims: [ 4, 301 ] }' if gradient else ""
    outputs = '{ name: "spectra", data_type: TYPE_FP32, dims: [ 4, 301 ] }'
    outputs += ', { name: "gradient", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }' if gradient else ""
    queue = "default_queue_policy { max_queue_size: 256 timeout_action: REJECT default_timeout_microseconds: 5000000 }"
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 32\ninput [ {inputs} ]\noutput [ {outputs} ]\n'
        f"dynamic_batching {{ {queue} }}\nversion_policy: {{ latest {{ num_versions: 1 }} }}\n"
    )
