"""Request bodies: read to the limit and no further."""

from __future__ import annotations

import zlib

from fastapi import Request

from metaspec_server.problems import Problem


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, decompressed if it says gzip or deflate.

    Raises:
        Problem: 413 as soon as more than `limit` bytes have come, packed or unpacked; 415 for another encoding; 400 for a
            damaged one.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise Problem(415, f"Content-Encoding must be gzip, deflate or none, got {encoding!r}")
    inflate = None if encoding == "identity" else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        if inflate is not None:
            try:
                chunk = inflate.decompress(chunk, limit - size + 1)
            except zlib.error as error:
                raise Problem(400, f"the body is not valid {encoding}: {error}") from None
        size += len(chunk)
        if size > limit:
            raise Problem(413, f"the body is larger than the limit of {limit} bytes")
        parts.append(chunk)
    if inflate is not None and not inflate.eof:
        raise Problem(400, f"the {encoding} body is incomplete")
    return b"".join(parts)
