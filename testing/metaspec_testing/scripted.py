"""A real HTTP server on a free port that describes a model and answers inference with a given list of answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from metaspec_contract.model import METADATA_KEY, SPECTRA, STRUCTURE
from metaspec_testing.small_models import METADATA as DESCRIPTION

TENSORS: dict[str, Any] = {
    "name": DESCRIPTION["name"],
    "versions": ["1"],
    "inputs": [{"name": STRUCTURE, "datatype": "FP32", "shape": [-1, 1, 128, 128]}],
    "outputs": [{"name": SPECTRA, "datatype": "FP32", "shape": [-1, 4, 301]}],
}
"""Metadata of the model on a bare Triton, which has no room for its description."""

METADATA: dict[str, Any] = TENSORS | {"parameters": DESCRIPTION}
"""Metadata of the model on our server, complete."""

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None closes the connection."""


def good(rows: int, version: str = "1") -> Answer:
    """Spectra equal to 0.25 times the version."""
    blob = np.full((rows, 4, 301), 0.25 * int(version), "<f4").tobytes()
    tensor = {"name": SPECTRA, "datatype": "FP32", "shape": [rows, 4, 301]}
    outputs = [tensor | {"parameters": {"binary_data_size": len(blob)}}]
    header = json.dumps({"model_version": version, "outputs": outputs}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + blob


def bare_triton(description: dict[str, Any] | None = DESCRIPTION) -> Callable[[str], Any]:
    """Answers of a Triton to questions: the description is a parameter of the model's configuration.

    Args:
        description: description of the model; None for a configuration without one.
    """
    told = {} if description is None else {METADATA_KEY: {"string_value": json.dumps(description)}}

    def describe(path: str) -> Any:
        if path == "/v2":
            return {"name": "triton", "extensions": ["model_configuration"]}
        return {"parameters": told} if path.endswith("/config") else TENSORS

    return describe


class Scripted(ThreadingHTTPServer):
    """The server.

    Attributes:
        url: address of the server.
        describe: function from the path of a GET request to its answer, as JSON or as bytes.
        asked: paths of the inference requests so far.
        user_agents: User-Agent headers of all requests so far.
        together: largest number of inference requests in flight so far.
    """

    def __init__(self, answers: Iterator[Answer], hold: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.describe: Callable[[str], Any] = lambda path: METADATA
        self.asked: list[str] = []
        self.user_agents: set[str] = set()
        self.together = self._running = 0
        self._answers, self._hold = answers, hold
        self._lock, self._never = threading.Lock(), threading.Event()

    def infer(self, path: str) -> Answer:
        """The next answer, after `hold` seconds."""
        with self._lock:
            self._running += 1
            self.together = max(self.together, self._running)
            self.asked.append(path)
            answer = next(self._answers)
        self._never.wait(self._hold)
        with self._lock:
            self._running -= 1
        return answer

    def handle_error(self, *_: object) -> None:
        """Ignore callers that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        found = self.server.describe(self.path)
        self._reply((200, {}, found if isinstance(found, bytes) else json.dumps(found).encode()))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(self.server.infer(self.path))

    def _reply(self, answer: Answer) -> None:
        self.server.user_agents.add(self.headers["User-Agent"])
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def scripted(*answers: Answer, hold: float = 0) -> Iterator[Scripted]:
    """Run a server that answers inference requests with these answers in order, each after `hold` seconds."""
    with Scripted(iter(answers), hold) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
