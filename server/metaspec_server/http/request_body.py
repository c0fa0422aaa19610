"""Request bodies: read piece by piece and decompressed, within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from metaspec_server.core.memory import Lease
from metaspec_server.core.threads import off_loop
from metaspec_server.http.problems import Problem
from metaspec_server.settings import Settings

__all__ = ["PIECE", "RequestBody"]

PIECE = 2**20
"""Largest number of bytes that are decompressed at a time."""

_BYTES_PER_SECOND = 10_000  # slowest accepted rate
_SHOWN = 1000  # largest number of left-over bytes that are counted


class RequestBody:
    """The body of a request, decompressed if its encoding is gzip or deflate. Nothing is read before it is asked for.

    Args:
        request: the request.
        settings: settings of the server.
        lease: memory of the request; what has been read is added to it.

    Attributes:
        size: number of bytes that have been received and decompressed.
        declared: size of the body that the caller has stated in bytes, unless it is compressed or sent in chunks.

    Raises:
        Problem: 415 for an unknown encoding; 413 if the stated size exceeds the limit. Reading raises 413 as soon as the body
            exceeds it, compressed or not; 408 when it arrives too slowly; 400 for a damaged one.
        MemoryFull: the other requests in flight leave no memory for it.
    """

    def __init__(self, request: Request, settings: Settings, lease: Lease) -> None:
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise Problem(415, f"Content-Encoding must be gzip, deflate or none, got {encoding!r}")
        length = request.headers.get("content-length")
        self._limit, self._patience = settings.max_body_bytes, settings.body_timeout
        if length is not None and int(length) > self._limit:  # the HTTP parser has checked that it is a number
            raise self._too_large()
        self.lease, self.encoding = lease, encoding
        self.declared = int(length) if length is not None and encoding == "identity" else None
        self._next_message, self._complete = request.receive, False
        self._inflate = None if encoding == "identity" else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        self._compressed = b""  # received, but not decompressed
        self._pending = memoryview(b"")  # decompressed, but not read
        self.size = self._received = 0
        self._started = asyncio.get_running_loop().time()

    async def read(self, size: int) -> bytearray:
        """The next `size` bytes, fewer where the body ends."""
        data = bytearray()
        while len(data) < size:
            if not self._pending:
                self._pending = memoryview(await self._next())
                if not self._pending:
                    break
            part = self._pending[: size - len(data)]
            await self._hold(len(part))
            data += part
            self._pending = self._pending[len(part) :]
        return data

    async def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer where the body ends; they can be read again."""
        while len(self._pending) < size and (piece := await self._next()):
            self._pending = memoryview(bytes(self._pending) + piece)
        return bytes(self._pending[:size])

    async def left_over(self) -> str | None:
        """How many bytes are left, in words; None at the end of the body."""
        left = len(await self.read(_SHOWN))
        return f"{left} bytes are left over" if 0 < left < _SHOWN else "many bytes are left over" if left else None

    async def _hold(self, nbytes: int) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await self.lease.grow(nbytes)
        self._started += loop.time() - before  # nobody's fault but ours

    async def _next(self) -> bytes:
        """The next piece, decompressed; empty at the end of the body."""
        while True:
            if self._inflate is None:
                piece = await self._receive()
                ended = not piece
            else:
                self._compressed = self._compressed or await self._receive()
                ended = not self._compressed
                if self._inflate.eof:
                    if ended:
                        return b""
                    raise Problem(400, f"bytes are left over after the {self.encoding} data: expected one stream of it")
                piece = await self._decompress()
                if ended and not piece and not self._inflate.eof:
                    raise Problem(400, f"the {self.encoding} body is incomplete")
            self.size += len(piece)
            if self.size > self._limit:
                raise self._too_large()
            if piece or (ended and self._inflate is None):
                return piece

    async def _decompress(self) -> bytes:
        assert self._inflate is not None
        nbytes = min(100 * len(self._compressed), PIECE)
        try:  # a few bytes may decompress to many: a piece at a time
            piece = await off_loop(nbytes, self._inflate.decompress, self._compressed, PIECE)
        except zlib.error as error:
            raise Problem(400, f"the body is not valid {self.encoding}: {error}") from None
        self._compressed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return piece

    async def _receive(self) -> bytes:
        """The next bytes as they were sent; empty at the end of the body."""
        chunk = b""
        while not (chunk or self._complete):
            patience = self._patience + self._received / _BYTES_PER_SECOND
            try:
                async with asyncio.timeout_at(self._started + patience):
                    message = await self._next_message()
            except TimeoutError:
                detail = f"only {self._received} bytes of the body came in {patience:.0f} s"
                raise Problem(408, detail, headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, self._complete = message.get("body", b""), not message.get("more_body", False)
        self._received += len(chunk)
        if self._received > self._limit:
            raise self._too_large()
        return chunk

    def _too_large(self) -> Problem:
        detail = f"the body is larger than the limit of {self._limit} bytes"
        return Problem(413, detail, headers={"Connection": "close"})
