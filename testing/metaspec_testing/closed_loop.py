"""A closed-loop load: callers that each send a request, wait for the answer, and send the next.

HTTP/1.1 on bare sockets, with requests encoded once and answers not decoded, so that the server is measured and not the client.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Outcome of a load.

    Attributes:
        seconds: duration in seconds.
        latencies: latency of every request in seconds.
    """

    seconds: float
    latencies: list[float]


def http_request(host: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST request, encoded.

    Args:
        host: value of the header `Host`.
        path: path of the URL.
        body: the body.
        headers: other headers.
    """
    fields = {"Host": host, "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def closed_loop(address: str, request: bytes, callers: int, seconds: float) -> Load:
    """Put a load on a server.

    Args:
        address: address of the server, host:port.
        request: encoded request.
        callers: number of concurrent callers.
        seconds: duration in seconds.

    Raises:
        RuntimeError: an answer had another status than 200.
    """
    return asyncio.run(_closed_loop(address, request, callers, seconds))


async def _closed_loop(address: str, request: bytes, callers: int, seconds: float) -> Load:
    host, _, port = address.rpartition(":")
    latencies: list[float] = []
    started = time.perf_counter()
    deadline = started + seconds

    async def call() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        try:
            while (sent := time.perf_counter()) < deadline:
                writer.write(request)
                await writer.drain()
                await _answer(reader)
                latencies.append(time.perf_counter() - sent)
        finally:
            writer.close()

    await asyncio.gather(*(call() for _ in range(callers)))
    return Load(time.perf_counter() - started, latencies)


async def _answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"the server answered {head[:200]!r}")
    at = head.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
