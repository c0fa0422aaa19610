"""SIGTERM in front of callers: nothing is lost, behind balancers of two kinds, and the process ends as it should."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from metaspec_testing.balancer import running_balancer
from metaspec_testing.nginx import NGINX, running_nginx
from metaspec_testing.servers import REQUEST_TIMEOUT, RunningServer, free_port, running_server
from metaspec_testing.small_models import Array, Expected

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
FOREVER = ("--shutdown-delay", "600")

CONFIGURATION = re.search(
    r"```nginx\n(.*?)```", (Path(__file__).parents[2] / "docs" / "server.md").read_text(), re.DOTALL
)
"""The configuration of nginx in the documentation."""


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_ready(server: RunningServer) -> bool:
    return server.get("/v2/health/ready").status_code == 200


def test_after_sigterm_it_is_not_ready_and_serves_until_the_delay_is_over(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    body = np.packbits(structures).tobytes()
    with (
        running_server("--repository", str(small_repository), *FOREVER) as server,
        server.client() as kept,
        server.client() as new,
    ):
        answer = kept.post("/predict", content=body, headers=PACKED)
        assert "Connection" not in answer.headers
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not is_ready(server), "it is ready still")
        assert server.get("/v2/health/ready").json()["error"] == "the server is shutting down"
        assert server.get("/v2/health/live").json() == {"live": True}
        for http in (kept, new):
            answer = http.post("/predict", content=body, headers=PACKED).raise_for_status()
            assert answer.headers["Connection"] == "close"
            np.testing.assert_allclose(np.frombuffer(answer.content, "<f4"), expected(structures).ravel(), atol=1e-6)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert server.process.returncode == 128 + signal.SIGTERM
    assert server.log == ["metaspec-serve: ended by a second signal, before the shutdown was complete\n"]


def test_ctrl_c_does_not_wait_but_for_requests_that_have_begun(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    body = np.packbits(structures).tobytes()
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    head += f"Accept: application/octet-stream\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    with running_server("--repository", str(small_repository), *FOREVER) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=REQUEST_TIMEOUT) as caller:
            caller.sendall(head.encode())
            assert caller.recv(100).startswith(b"HTTP/1.1 100 ")  # the body is being read
            server.process.send_signal(signal.SIGINT)
            until(lambda: not listens(host, int(port)), "it listens still")
            caller.sendall(body)
            with caller.makefile("rb") as file:
                status, _, rest = file.read().partition(b"\r\n")
        assert status == b"HTTP/1.1 200 OK"
        headers, _, content = rest.partition(b"\r\n\r\n")
        assert b"connection: close" in headers.lower()
        np.testing.assert_allclose(np.frombuffer(content, "<f4"), expected(structures).ravel(), atol=1e-6)
        server.process.wait(60)
        assert server.process.returncode == 130
    assert not server.log


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=REQUEST_TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    return True


class Callers:
    """Callers who call in a loop through a balancer, with a pause after each call unless they are `busy`.

    Args:
        url: address of the balancer.
        structures: structures to ask for, one in each call.
        expected: spectra by the model itself.
        busy: set while they make no pauses.
    """

    def __init__(self, url: str, structures: Array, expected: Expected, busy: threading.Event) -> None:
        self.outcomes: list[str] = []
        self._url, self._busy, self._stop = url, busy, threading.Event()
        self._bodies = [np.packbits(structure).tobytes() for structure in structures]
        self._spectra = expected(structures).reshape(len(structures), -1)

    @contextmanager
    def calling(self, count: int) -> Iterator[None]:
        """Have this many callers call until the block ends."""
        threads = [threading.Thread(target=self._call, args=[number]) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(120)

    def _call(self, first: int) -> None:
        with httpx.Client(base_url=self._url, timeout=REQUEST_TIMEOUT, verify=False) as http:
            for n in itertools.count(first):
                if self._stop.is_set():
                    return
                self.outcomes.append(self._ask(http, n % len(self._bodies)))
                if not self._busy.is_set():
                    self._busy.wait(0.1)

    def _ask(self, http: httpx.Client, n: int) -> str:
        try:
            answer = http.post("/predict", content=self._bodies[n], headers=PACKED)
        except httpx.HTTPError as error:
            return repr(error)
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text}"
        right = np.allclose(np.frombuffer(answer.content, "<f4"), self._spectra[n], atol=1e-6)
        return "right" if right else "wrong spectra"


def computed(server: RunningServer) -> float:
    """Number of structures that a server has answered."""
    text = server.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("metaspec_structures_total"))


@pytest.fixture(scope="module")
def outcomes(
    small_repository: Path, expected: Expected, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, set[str]]:
    """Outcomes of all calls by balancer, while two servers are stopped one after the other, and the first one is replaced."""
    structures = np.random.default_rng(11).integers(0, 2, (16, 128, 128), np.uint8)
    flags = ("--repository", str(small_repository), "--cache-mb", "0", "--shutdown-delay", "1.5")
    busy = threading.Event()
    with ExitStack() as running, ExitStack() as calling:
        servers = [running.enter_context(running_server(*flags)) for _ in range(2)]
        addresses = [server.address for server in servers]

        def call(url: str) -> list[str]:
            callers = Callers(url, structures, expected, busy)
            calling.enter_context(callers.calling(3))
            return callers.outcomes

        balancer = running.enter_context(running_balancer(addresses))
        seen = {"health": call(f"http://{balancer.address}")}
        if NGINX is not None:
            port = free_port()
            assert CONFIGURATION is not None
            http = CONFIGURATION[1].replace("listen 80;", f"listen 127.0.0.1:{port};")
            for number, address in enumerate(addresses, 1):
                http = http.replace(f"10.0.0.{number}:8000", address)
            running.enter_context(running_nginx(tmp_path_factory.mktemp("nginx"), port, http))
            seen["nginx"] = call(f"http://127.0.0.1:{port}")

        def stop(server: RunningServer) -> None:
            until(lambda: len(balancer.ready) == 2, "a server is not ready")
            busy.set()
            before = computed(server)
            until(lambda: computed(server) > before + 20, "it has no callers")
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(120)
            busy.clear()
            assert server.process.returncode == 0
            assert not server.log

        stop(servers[0])
        running.enter_context(running_server(*flags, "--port", addresses[0].rpartition(":")[2]))
        stop(servers[1])
        calling.close()
    return {name: set(some) for name, some in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "balancer",
    ["health", pytest.param("nginx", marks=pytest.mark.skipif(NGINX is None, reason="nginx is not installed"))],
)
def test_a_rolling_update_loses_no_call(outcomes: dict[str, set[str]], balancer: str) -> None:
    assert outcomes[balancer] == {"right"}
