"""Messages of calls: received and decompressed, within limits of size, number, time and memory.

gRPC receives a message as a whole, and would decompress it before the server sees it. So the server receives it as it was
sent (`grpc.per_message_decompression`), and decompresses it itself, a piece at a time.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc.aio

from metaspec_server.core.memory import Lease
from metaspec_server.core.threads import off_loop
from metaspec_server.http.oip_parameters import ProtocolError
from metaspec_server.http.problems import Problem
from metaspec_server.http.request_body import PIECE

__all__ = ["SMALL_MESSAGE", "MessageTooLarge", "Receiver", "decompress"]

SMALL_MESSAGE = 64 * 1024
"""Largest number of bytes of a message without tensors."""

_SMALL_TIMEOUT = 5.0  # seconds for such a message
_PROBE_TIMEOUT = 0.05  # seconds for one of a call that needs no key, which comes with the head
_PROMPT = 8  # messages that are received at the same time, of methods with tensors, and as many of the others
_LATE = 24  # more of them, each of which has taken longer than `_LATE_AFTER`
_LATE_AFTER = 1.0  # seconds

# How compressed messages begin. Others do not: 31 is no tag of protobuf, and 120 that of a number in field 15, which no
# request has.
_GZIP, _DEFLATE = b"\x1f\x8b", b"\x78"
_CHUNK = 64 * 1024  # compressed bytes that are decompressed at a time


class MessageTooLarge(Problem):
    """A message is larger than the limit: RESOURCE_EXHAUSTED, as where gRPC itself refuses it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the message is larger than the limit of {limit} bytes")


class Receiver:
    """Receives messages of calls, a few at a time: gRPC receives each as a whole, however large it may be for its method.

    Args:
        timeout: seconds for a message.
        limit: largest number of bytes of a message, of any method.
    """

    def __init__(self, timeout: float, limit: int) -> None:
        self._limit = limit
        self._large, self._small = _Places(timeout), _Places(min(timeout, _SMALL_TIMEOUT))
        self._probe = asyncio.Lock()
        _notice_refusals()

    async def large(self, context: Any) -> bytes:
        """The message of a call with tensors, as it was sent.

        Raises:
            ProtocolError: the call has no message, or more than one.
            Problem: 408 if it comes too slowly; 503 if it is late, as are too many others.
            MessageTooLarge: it has more bytes than the limit.
        """
        return await self._large.receive(partial(self._only_message, context))

    async def small(self, context: Any) -> bytes:
        """The message of a call without tensors, of at most `SMALL_MESSAGE` bytes, as it was sent. Raises as `large`."""
        return _small(await self._small.receive(partial(self._only_message, context)))

    async def probe(self, context: Any) -> bytes:
        """The message of a call that needs no key; if it does not come at once, the empty one, whose fields have no value.

        One is received at a time, and for a moment only: callers without a key fill no memory, and keep nobody waiting.

        Raises:
            ProtocolError: the call has no message, or more than one.
            MessageTooLarge: it has more than `SMALL_MESSAGE` bytes.
        """
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT), self._probe:
                return _small(await self._only_message(context))
        except TimeoutError:
            return b""

    async def next(self, context: Any) -> Any:
        """The next message of a call, as it was sent; `grpc.aio.EOF` after the last one.

        Raises:
            MessageTooLarge: it has more bytes than the limit.
        """
        _refused.set(False)
        message = await context.read()
        if _refused.get():
            raise MessageTooLarge(self._limit)
        return message

    async def _only_message(self, context: Any) -> bytes:
        message = await self.next(context)
        if message is grpc.aio.EOF:
            raise ProtocolError("the call has no message")
        if await self.next(context) is not grpc.aio.EOF:
            raise ProtocolError("the call has more than one message, expected one: ModelStreamInfer takes several")
        received: bytes = message
        return received


class _Places:
    """Places for messages that are received at the same time.

    One that is late leaves its place to others, so that callers who send nothing do not keep the others waiting.

    Args:
        timeout: seconds for a message.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._places = asyncio.Semaphore(_PROMPT)
        self._late = 0

    async def receive(self, message: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """A message, in one of the places. Raises as `Receiver.large`."""
        async with self._places:
            receiving = asyncio.ensure_future(message())
            try:
                await asyncio.wait({receiving}, timeout=min(self._timeout, _LATE_AFTER))
                if receiving.done():
                    return receiving.result()
            except BaseException:
                if not receiving.cancel() and isinstance(error := receiving.exception(), MessageTooLarge):
                    raise error from None  # for which gRPC has cancelled the call
                raise
        if self._late >= _LATE:
            receiving.cancel()
            detail = f"the message did not come within {_LATE_AFTER:g} s, as {_LATE} others did not; try again later"
            raise Problem(503, detail, headers={"Retry-After": "2"})
        self._late += 1
        try:
            async with asyncio.timeout(max(0.0, self._timeout - _LATE_AFTER)):
                return await receiving
        except TimeoutError:
            raise _too_slow(self._timeout) from None
        finally:
            self._late -= 1


class _Refusals(logging.Filter):
    """Notices that gRPC has refused a message as too large: to its server, that is a cancelled call but for a debug line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is for the log, too."""
        if record.getMessage().startswith("Failed to receive any message"):
            _refused.set(True)
        return record.levelno > logging.DEBUG


_refused: ContextVar[bool] = ContextVar("refused", default=False)
_refusals = _Refusals()


def _notice_refusals() -> None:
    """Have gRPC write that line, on which tests/server/test_grpc.py keeps an eye."""
    log = logging.getLogger("grpc._cython.cygrpc")
    log.setLevel(logging.DEBUG)
    log.addFilter(_refusals)


async def decompress(message: bytes | bytearray, limit: int, memory: Lease) -> bytes | bytearray:
    """A message as its caller made it: itself, unless it was compressed with gzip or deflate.

    Args:
        message: the message as it was sent.
        limit: largest number of bytes.
        memory: memory of the request; what is decompressed is added to it.

    Raises:
        ProtocolError: it is damaged.
        MessageTooLarge: it is larger than the limit.
        ServiceError: there is not enough memory for it.
    """
    if not message.startswith((_GZIP, _DEFLATE)):
        return message
    inflate, data, position = zlib.decompressobj(wbits=47), bytearray(), 0
    left: bytes | bytearray = b""
    most = min(PIECE, limit + 1)
    while not inflate.eof:
        if not left:
            left = message[position : position + _CHUNK]
            position += len(left)
        try:
            piece = await off_loop(min(100 * len(message), most), inflate.decompress, left, most)
        except zlib.error as error:
            raise ProtocolError(f"the message cannot be decompressed: {error}") from None
        left = inflate.unconsumed_tail
        if not (piece or left or inflate.eof or position < len(message)):
            raise ProtocolError("the message cannot be decompressed: it is incomplete")
        if len(data) + len(piece) > limit:
            raise MessageTooLarge(limit)
        await memory.grow(len(piece))
        data += piece
    if inflate.unused_data or position < len(message):
        raise ProtocolError("the message cannot be decompressed: bytes are left over after the compressed data")
    return data


def _small(message: bytes) -> bytes:
    if len(message) > SMALL_MESSAGE:
        raise MessageTooLarge(SMALL_MESSAGE)
    return message


def _too_slow(timeout: float) -> Problem:
    return Problem(408, f"the message and the end of the call did not come within {timeout:g} s")
