"""The server of the Open Inference Protocol over gRPC, in the event loop of the HTTP server and with its limits.

Messages are handled as bytes, so that a caller's key is checked before its message is received, and memory is counted before
it is decompressed and parsed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from metaspec_server.core.errors import Closed
from metaspec_server.core.keys import ApiKeys, Role
from metaspec_server.core.service import Service
from metaspec_server.core.threads import off_loop
from metaspec_server.http.problems import Problem
from metaspec_server.oip_grpc.call import Call, Failed
from metaspec_server.oip_grpc.inference import infer, parse
from metaspec_server.oip_grpc.methods import METHODS, SERVICE, Method
from metaspec_server.oip_grpc.request_message import SMALL_MESSAGE, MessageTooLarge, Receiver, decompress
from metaspec_server.ops.metrics import Metrics
from metaspec_server.settings import Settings

__all__ = ["GrpcServer"]

_STREAMS = 64  # open streams, each of which receives a message
_AHEAD = 8  # requests of a stream that are computed before the first of them is answered
_LARGEST = 2**31 - 1  # bytes: gRPC's own limit of a message

_KEEP_ALIVE_MS = 30_000  # until a silent connection is pinged: its caller may be gone
_PING_TIMEOUT_MS = 20_000  # from then until it is closed
_PING_INTERVAL_MS = 10_000  # least time between pings of a caller, the shortest that clients of gRPC send them at

_FAILURES = (500, 503, 504)  # statuses that are counted from 0

_INFER, _STREAM = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"


class GrpcServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves a service over gRPC.

    Args:
        service: the service.
        metrics: metrics to count in.
        api_keys: valid keys, and the roles of their holders.
    """

    def __init__(self, service: Service, metrics: Metrics, api_keys: ApiKeys) -> None:
        self._service, self._metrics, self._keys = service, metrics, api_keys
        largest = min(service.settings.max_body_bytes, _LARGEST)
        self._receiver = Receiver(service.settings.body_timeout, largest)
        self._reading: set[asyncio.Task[None]] = set()  # of open streams
        self._closing = False
        options = [
            ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share it
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_send_message_length", -1),
            ("grpc.per_message_decompression", 0),  # `request_message` does it, within limits
            ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # the one that gRPC 1.85 goes by
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # no limit
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
        ]
        self._server = grpc.aio.server(handlers=[self], options=options)
        for path in (_INFER, _STREAM, *METHODS):
            metrics.expect(path, (200, *_FAILURES))

    async def start(self, settings: Settings) -> str:
        """Listen on the port for gRPC, and serve from now on; returns the address, host:port.

        Args:
            settings: settings of the server.

        Raises:
            OSError: the port cannot be had, or the certificate cannot be read. The message is one line for the user.
        """
        host, port = settings.host, settings.grpc_port or 0
        place = f"[{host}]" if ":" in host else host
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:  # gRPC would log it, too
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            raise OSError(f"--grpc-port: cannot listen on {place}:{port}: {error.strerror}") from None
        if settings.tls_cert is None:
            bound = self._server.add_insecure_port(f"{place}:{port}")
        else:
            certificate = settings.tls_cert.read_bytes()
            key = settings.tls_key.read_bytes() if settings.tls_key else certificate
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            bound = self._server.add_secure_port(f"{place}:{port}", credentials)
        await self._server.start()
        return f"{place}:{bound}"

    async def stop(self, timeout: float) -> None:
        """Take no more calls, finish those that were accepted within `timeout` seconds, and end idle streams."""
        self._closing = True
        for task in self._reading:
            task.cancel()
        await self._server.stop(timeout)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None if there is no such method."""
        path = str(handler_call_details.method)
        if path == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if path == _INFER:
            return grpc.stream_unary_rpc_method_handler(partial(self._unary, path, self._infer))
        if path in METHODS:
            answer = partial(self._ask, METHODS[path])
            # As a stream of one message, which is received when the handler asks for it.
            return grpc.stream_unary_rpc_method_handler(partial(self._unary, path, answer))
        return None

    async def _unary(
        self, path: str, answer: Callable[[Call, Any], Awaitable[bytes]], _: object, context: Any
    ) -> bytes:
        call = Call(path, context, self._metrics)
        identity = (("x-request-id", call.id),)
        context.set_trailing_metadata(identity)
        try:
            return await call.answer(answer(call, context))
        except Failed as failed:
            await context.abort(failed.code, failed.detail, identity + failed.metadata)
            raise

    async def _ask(self, method: Method, call: Call, context: Any) -> bytes:
        """The answer of a method without tensors."""
        call.authorise(self._keys, *method.roles)
        asked = None
        if method.request is not None:
            receive = self._receiver.small if method.roles else self._receiver.probe
            asked = await self._small_request(method.request, receive(context))
        if method.changes_settings(asked):
            call.authorise(self._keys, Role.CONTROL)
        answer: bytes = (await method.answer(self._service, asked)).SerializeToString()
        return answer

    async def _infer(self, call: Call, context: Any) -> bytes:
        call.authorise(self._keys, Role.INFER)
        answer = await self._compute(await self._receiver.large(context), context)
        encoded: bytes = await off_loop(answer.ByteSize(), answer.SerializeToString)
        return encoded

    async def _small_request(self, kind: Any, message: Awaitable[bytes]) -> Any:
        with self._service.memory.lease() as memory:
            return await parse(kind, await decompress(await message, SMALL_MESSAGE, memory))

    async def _compute(self, message: bytes, context: Any) -> Any:
        """The answer to an inference request."""
        with self._service.memory.lease() as memory:
            work = infer(self._service, message, memory, context.time_remaining())
            del message  # it holds much memory
            return await work

    async def _stream(self, _: object, context: Any) -> None:
        """Requests of a stream: computed together, a few at a time, and answered in their order."""
        call = Call(_STREAM, context, self._metrics)
        identity = (("x-request-id", call.id),)
        context.set_trailing_metadata(identity)
        try:
            await call.answer(self._converse(call, context), only_failures=True)
        except Failed as failed:
            await context.abort(failed.code, failed.detail, identity + failed.metadata)

    async def _converse(self, call: Call, context: Any) -> None:
        call.authorise(self._keys, Role.INFER)
        refused: Problem | None = None
        if len(self._reading) >= _STREAMS:
            raise Problem(503, f"at most {_STREAMS} streams can be open; try again later", headers={"Retry-After": "2"})
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:

                async def read() -> None:
                    nonlocal refused
                    try:
                        while (message := await self._receiver.next(context)) is not grpc.aio.EOF:
                            call.authorise(self._keys, Role.INFER)  # the key may have been revoked since
                            answers.put_nowait(group.create_task(self._answer_in_stream(message, context)))
                            del message
                            await room.acquire()
                    except Problem as problem:
                        refused = problem  # once what came before is answered
                    finally:
                        answers.put_nowait(None)

                reading = group.create_task(read())
                self._reading.add(reading)
                reading.add_done_callback(self._reading.discard)
                while (answer := await answers.get()) is not None:
                    await context.write(await answer)
                    room.release()
        except asyncio.CancelledError:
            if not isinstance(refused, MessageTooLarge):  # for which gRPC itself has cancelled the call
                raise
        if refused is not None:
            raise refused
        if self._closing:
            raise Closed

    async def _answer_in_stream(self, message: bytes, context: Any) -> bytes:
        """The answer to a request of a stream, or its error: the stream goes on."""
        call = Call(_STREAM, context, self._metrics)
        try:
            work = self._compute(message, context)
            del message
            answer = await call.answer(work)
            answer.parameters["triton_final_response"].bool_param = True  # as Triton marks it
            return bytes(pb.ModelStreamInferResponse(infer_response=answer).SerializeToString())
        except Failed as failed:
            return bytes(pb.ModelStreamInferResponse(error_message=failed.detail).SerializeToString())
