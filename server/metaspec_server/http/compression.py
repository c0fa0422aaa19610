"""Compressed answers, for those who accept them (RFC 9110, 12.5.3)."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaspec_server.core.threads import off_loop
from metaspec_server.http.accept import weights
from metaspec_server.http.problems import Problem

__all__ = ["Coding", "Compression", "choose_coding"]

_LEVEL = 4  # 60 % off JSON at 62 MB/s; 6 takes 61 % off at a third of the speed: benchmarks/compression.py
_SMALLEST = 1024  # bytes; a smaller answer fits into one packet anyway
_PIECE = 256 * 1024  # bytes compressed at a time: a thread is held for 5 ms
_SLOWNESS = 16  # of compression, compared with the work that `off_loop` expects for a byte

_TEXT = re.compile(r"text/|application/(.*\+)?(json|javascript|xml)|image/svg")
_WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's `wbits`; the first is preferred


@dataclass(frozen=True)
class Coding:
    """What a request says of the coding of its answer.

    Attributes:
        name: coding of text, `gzip` or `deflate`; None for none.
        numbers: whether the caller prefers it for answers of binary numbers, too, which it makes little smaller.
        identity: whether the caller accepts an answer that is not compressed.
    """

    name: str | None
    numbers: bool = False
    identity: bool = True


class Compression:
    """Middleware that compresses answers.

    JSON, text and scripts are compressed for everyone who accepts it. Binary numbers lose too little by it: they are
    compressed only for callers who like the answer less without it (`gzip, identity;q=0`). Answers that are longer than a
    piece are sent in chunks, so that no second copy of them is in memory.

    Args:
        app: application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and compress its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        coding = choose_coding(", ".join(Headers(scope=scope).getlist("accept-encoding")))
        if coding.name is None and not coding.identity:
            problem = Problem(406, "Accept-Encoding allows none of gzip, deflate, identity")
            await problem.response_for(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, _Answer(coding, send, chunks=scope["http_version"] != "1.0"))


class _Answer:
    """The `send` of one request.

    Args:
        coding: what the caller accepts.
        send: where the answer goes.
        chunks: whether it may be sent without a Content-Length.
    """

    def __init__(self, coding: Coding, send: Send, chunks: bool) -> None:
        self._coding, self._send, self._chunks = coding, send, chunks
        self._start: Message | None = None  # held back until the first bytes of the body are known
        self._compressor: zlib._Compress | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None:
            start, self._start = self._start, None
            headers = MutableHeaders(scope=start)
            if self._is_compressed(start["status"], headers, len(body), more):
                self._compressor = zlib.compressobj(_LEVEL, wbits=_WINDOWS[self._coding.name or ""])
                if etag := headers.get("etag"):  # a strong one stands for the same bytes
                    headers["ETag"] = f"W/{etag.removeprefix('W/')}"
                headers["Content-Encoding"] = self._coding.name or ""
                if not more and len(body) <= _PIECE:
                    body = await self._compress(body, is_last=True)
                    self._compressor = None
                    headers["Content-Length"] = str(len(body))
                else:
                    del headers["Content-Length"]
            await self._send(start)
        if self._compressor is None:
            await self._send({**message, "body": body})
            return
        view = memoryview(body)
        for at in range(0, max(1, len(view)), _PIECE):
            is_last = not more and at + _PIECE >= len(view)
            piece = await self._compress(view[at : at + _PIECE], is_last)
            if piece or is_last:
                await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})

    def _is_compressed(self, status: int, headers: MutableHeaders, size: int, more: bool) -> bool:
        """Whether an answer is compressed. If that depends on the caller, `Vary` says so."""
        is_text = _TEXT.match(headers.get("content-type", "")) is not None
        if status == 304 or (is_text and (more or size >= _SMALLEST)):
            headers.add_vary_header("Accept-Encoding")
        if (
            self._coding.name is None
            or status in (204, 206, 304)
            or "content-encoding" in headers
            or not (size or more)
        ):
            return False
        if not self._chunks and (more or size > _PIECE):
            return False
        if not self._coding.identity:
            return True
        return (is_text or self._coding.numbers) and (more or size >= _SMALLEST)

    async def _compress(self, data: bytes | memoryview, is_last: bool) -> bytes:
        compressor = self._compressor
        assert compressor is not None

        def work() -> bytes:
            piece = compressor.compress(data)
            return piece + compressor.flush() if is_last else piece

        return await off_loop(_SLOWNESS * len(data), work)


@lru_cache(64)  # clients send few different ones
def choose_coding(accept: str) -> Coding:
    """The coding that an Accept-Encoding header prefers.

    Args:
        accept: value of the header; empty if there is none.
    """
    given = {name.removeprefix("x-"): weight for name, weight in weights(accept).items()}
    others = given.get("*")
    identity = given.get("identity", others)
    name = max(_WINDOWS, key=lambda coding: given.get(coding, others or 0.0))
    quality = given.get(name, others or 0.0)
    if quality == 0 or (identity is not None and identity > quality):
        return Coding(None, identity=identity != 0)
    return Coding(name, numbers=identity is not None and identity < quality, identity=identity != 0)
