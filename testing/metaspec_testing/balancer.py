"""A balancer in front of several servers that checks their health, as Kubernetes does; nginx does not, see `nginx`."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx

from metaspec_testing.servers import REQUEST_TIMEOUT

__all__ = ["Balancer", "running_balancer"]

_INTERVAL = 0.05  # seconds between checks


class Balancer:
    """A balancer that passes each connection on to the next server that is ready, and never tries another one.

    What a server loses, its caller loses.

    Args:
        addresses: addresses of the servers, as host:port.

    Attributes:
        address: its own address, as host:port.
        ready: addresses of the servers whose last check was good.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._turn = itertools.count()
        self.address = ""
        self.ready: list[str] = []

    async def run(self, started: threading.Event, stopped: threading.Event) -> None:
        """Balance connections until `stopped` is set; sets `started` when a server is ready."""
        async with (
            httpx.AsyncClient(timeout=REQUEST_TIMEOUT, verify=False) as client,
            await asyncio.start_server(self._pass_on, "127.0.0.1", 0) as server,
        ):
            host, port = server.sockets[0].getsockname()
            self.address = f"{host}:{port}"
            while not stopped.is_set():
                states = await asyncio.gather(*(_is_ready(client, address) for address in self._addresses))
                self.ready = [address for address, state in zip(self._addresses, states, strict=True) if state]
                if self.ready:
                    started.set()
                await asyncio.sleep(_INTERVAL)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the connection is closed, and its caller sees that
            if ready := self.ready:
                host, _, port = ready[next(self._turn) % len(ready)].rpartition(":")
                answers, requests = await asyncio.open_connection(host, int(port))
                await asyncio.gather(_copy(reader, requests), _copy(answers, writer))
        writer.close()


async def _is_ready(client: httpx.AsyncClient, address: str) -> bool:
    try:
        return (await client.get(f"http://{address}/v2/health/ready")).status_code == 200
    except httpx.HTTPError:
        return False


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()
    finally:
        target.close()


@contextmanager
def running_balancer(addresses: Sequence[str], timeout: float = 60) -> Iterator[Balancer]:
    """Run a balancer that checks health in a thread until the block ends.

    Args:
        addresses: addresses of the servers, as host:port.
        timeout: time until the first server is ready in seconds.

    Raises:
        RuntimeError: no server was ready in time.
    """
    balancer, started, stopped = Balancer(addresses), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(balancer.run(started, stopped)))
    thread.start()
    try:
        if not started.wait(timeout):
            raise RuntimeError(f"none of {', '.join(addresses)} was ready within {timeout:g} s")
        yield balancer
    finally:
        stopped.set()
        thread.join(60)
