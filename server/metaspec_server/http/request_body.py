"""Request bodies: read and decompressed, within limits of size and time."""

from __future__ import annotations

import asyncio
import zlib

from fastapi import Request

from metaspec_server.core.threads import off_loop
from metaspec_server.http.problems import Problem
from metaspec_server.settings import Settings

__all__ = ["read_body"]

_BYTES_PER_SECOND = 10_000  # slowest accepted rate


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body, decompressed if its encoding is gzip or deflate.

    Raises:
        Problem: 413 as soon as the body exceeds the limit, compressed or not; 408 when it arrives too slowly; 415 for
            another encoding; 400 for a damaged body.
    """
    limit, received = settings.max_body_bytes, 0
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise Problem(415, f"Content-Encoding must be gzip, deflate or none, got {encoding!r}")
    if int(request.headers.get("content-length", 0)) > limit:
        raise _too_large(limit)
    inflate = None if encoding == "identity" else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    parts: list[bytes] = []
    size = 0
    chunks = request.stream()
    started = asyncio.get_running_loop().time()
    try:
        while True:
            async with asyncio.timeout_at(started + settings.body_timeout + received / _BYTES_PER_SECOND):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            received += len(chunk)
            if inflate is not None:  # a few bytes may decompress to many
                chunk = await off_loop(100 * len(chunk), inflate.decompress, chunk, limit - size + 1)
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            parts.append(chunk)
    except zlib.error as error:
        raise Problem(400, f"the body is not valid {encoding}: {error}") from None
    except TimeoutError:
        detail = (
            f"only {received} bytes of the body came in {settings.body_timeout + received / _BYTES_PER_SECOND:.0f} s"
        )
        raise Problem(408, detail, headers={"Connection": "close"}) from None
    if inflate is not None and not inflate.eof:
        raise Problem(400, f"the {encoding} body is incomplete")
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than the limit of {limit} bytes", headers={"Connection": "close"})
