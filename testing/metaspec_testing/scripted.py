"""A real HTTP server on a real port that speaks as a bare Triton does, and answers as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

METADATA = {
    "name": "diffractionnet",
    "versions": ["1"],
    "inputs": [{"name": "structure", "datatype": "FP32", "shape": [-1, 1, 128, 128]}],
    "outputs": [{"name": "spectra", "datatype": "FP32", "shape": [-1, 4, 301]}],
}
Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None closes the connection."""


def good(rows: int, version: str = "1") -> Answer:
    """Spectra that are 0.25 times the version."""
    blob = np.full((rows, 4, 301), 0.25 * int(version), "<f4").tobytes()
    tensor = {"name": "spectra", "datatype": "FP32", "shape": [rows, 4, 301]}
    outputs = [tensor | {"parameters": {"binary_data_size": len(blob)}}]
    header = json.dumps({"model_version": version, "outputs": outputs}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + blob


class Scripted(ThreadingHTTPServer):
    """The server.

    Attributes:
        url: its address.
        describe: from the path of a question to the answer, as JSON or as bytes.
        asked: paths of the inference requests so far.
        together: how many of them were under way at a time at most.
    """

    def __init__(self, answers: Iterator[Answer], hold: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.describe: Callable[[str], Any] = lambda path: METADATA
        self.asked: list[str] = []
        self.together = self._running = 0
        self._answers, self._hold = answers, hold
        self._lock, self._never = threading.Lock(), threading.Event()

    def infer(self, path: str) -> Answer:
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
        """A caller has hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        found = self.server.describe(self.path)
        self.reply((200, {}, found if isinstance(found, bytes) else json.dumps(found).encode()))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(self.server.infer(self.path))

    def reply(self, answer: Answer) -> None:
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
    """A server that answers inference as told, one after the other, each after `hold` seconds."""
    with Scripted(iter(answers), hold) as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.01])
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
