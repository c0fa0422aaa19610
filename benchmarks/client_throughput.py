"""Structures per second of `Surrogate.predict`, its process on one core, against a server that computes nothing.

The server runs on the other cores. It reads each request and sends an answer that it prepared before: what is measured is the
client, with the system's loopback, once its process has had the memory of one result. The structures are binary: packed bits,
uint8 (N, 2048), and arrays, uint8 (N, 128, 128).

    python benchmarks/client_throughput.py [--rounds 5] [--structures 100000] [--beside CHECKOUT]

With --beside, the client of another checkout of this repository takes turns with this one. A client that takes no packed bits
is given unpacked ones, and the time to unpack them counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from metaspec_contract.model import METADATA_KEY, PACKED_STRUCTURES, SPECTRA, STRUCTURE
from metaspec_testing.small_models import METADATA

ROOT = Path(__file__).parents[1]
TENSORS: dict[str, Any] = {
    "name": METADATA["name"],
    "versions": ["1"],
    "inputs": [{"name": STRUCTURE, "datatype": "FP32", "shape": [-1, 1, 128, 128]}],
    "outputs": [{"name": SPECTRA, "datatype": "FP32", "shape": [-1, 4, 301]}],
}
SPECTRUM = 4 * 301 * 4  # bytes of the spectra of one structure
LARGEST = 4096  # structures in a request


def serve_http(listening: socket.socket, values: memoryview) -> None:
    """Answer requests of the Open Inference Protocol, each connection in a thread."""
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve_connection, args=(connection, values), daemon=True).start()


def _serve_connection(connection: socket.socket, values: memoryview) -> None:
    with connection, connection.makefile("rb") as stream:
        body = bytearray(2**26)
        while line := stream.readline():
            path, fields = line.split()[1].decode(), {}
            while (field := stream.readline()) != b"\r\n":
                name, _, value = field.decode().partition(":")
                fields[name.lower()] = value.strip()
            length = int(fields.get("content-length", 0))
            stream.readinto(memoryview(body)[:length])
            rows = 0
            if path.endswith("/infer"):
                request = json.loads(body[: int(fields["inference-header-content-length"])])
                rows = request["inputs"][0]["shape"][0]
                size = {"binary_data_size": rows * SPECTRUM}
                tensor = {"name": SPECTRA, "datatype": "FP32", "shape": [rows, 4, 301], "parameters": size}
                document: Any = {"id": request["id"], "model_version": "1", "outputs": [tensor]}
            elif path == "/v2":
                document = {"name": "nothing", "extensions": [PACKED_STRUCTURES]}
            else:
                document = TENSORS | {"parameters": METADATA}
            text = json.dumps(document).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text) + rows * SPECTRUM}\r\n"
            head += f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
            connection.sendall(head.encode() + text)
            connection.sendall(values[: rows * SPECTRUM])


def serve_grpc(values: memoryview) -> int:
    """Answer requests of the Open Inference Protocol over gRPC, and return the port."""
    import grpc
    from tritonclient.grpc import model_config_pb2, service_pb2

    prepared: dict[int, bytes] = {}
    config = model_config_pb2.ModelConfig()
    config.parameters[METADATA_KEY].string_value = json.dumps(METADATA)
    described = {
        "ServerMetadata": service_pb2.ServerMetadataResponse(extensions=[PACKED_STRUCTURES, "model_configuration"]),
        "ModelMetadata": service_pb2.ModelMetadataResponse(**TENSORS),
        "ModelConfig": service_pb2.ModelConfigResponse(config=config),
    }

    def infer(request: bytes, _: grpc.ServicerContext) -> bytes:
        rows = service_pb2.ModelInferRequest.FromString(request).inputs[0].shape[0]
        if rows not in prepared:
            tensor = {"name": SPECTRA, "datatype": "FP32", "shape": [rows, 4, 301]}
            answer = service_pb2.ModelInferResponse(model_version="1", outputs=[tensor])
            answer.raw_output_contents.append(bytes(values[: rows * SPECTRUM]))
            prepared[rows] = answer.SerializeToString()
        return prepared[rows]

    def describe(name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        answer: bytes = described[name].SerializeToString()
        return lambda request, context: answer

    methods = {name: grpc.unary_unary_rpc_method_handler(describe(name)) for name in described}
    methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(infer)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)])
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _SERVERS.append(server)
    return port


_SERVERS: list[Any] = []  # a server that nobody holds ends


def serve(ready: Connection, cores: set[int]) -> None:
    """The process of the servers."""
    os.sched_setaffinity(0, cores)
    values = np.random.default_rng(0).random(LARGEST * SPECTRUM // 4, np.float32).data.cast("B")
    listening = socket.create_server(("127.0.0.1", 0))
    ready.send((listening.getsockname()[1], serve_grpc(values)))
    serve_http(listening, values)


@contextmanager
def servers(cores: set[int]) -> Iterator[dict[str, str]]:
    """Run the servers on some cores, and return their addresses by scheme."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, cores), daemon=True)
    process.start()
    try:
        http, grpc = ours.recv()
        yield {"http": f"http://127.0.0.1:{http}", "grpc": f"grpc://127.0.0.1:{grpc}"}
    finally:
        process.kill()
        process.join()


def client(urls: dict[str, str], core: int, count: int) -> None:
    """The process of a client: a line of JSON for each measurement, after one that says what it imported."""
    os.sched_setaffinity(0, {core})
    from metaspec import AsyncSurrogate, InvalidStructure, Surrogate
    from metaspec_contract.structures import unpack

    packed = np.resize(np.random.default_rng(0).integers(0, 256, (1000, 2048), np.uint8), (count, 2048))
    arrays = unpack(packed)
    with Surrogate(urls["http"]) as surrogate:
        surrogate.predict(
            arrays
        )  # a virtual machine gets memory from its host when it first writes to it, which is slow
        try:
            surrogate.predict(packed[:1])
        except InvalidStructure:
            of_bits: Callable[[Any], Any] = unpack
        else:
            of_bits = np.asarray
    forms: dict[str, tuple[Any, Callable[[Any], Any]]] = {"bits": (packed, of_bits), "uint8": (arrays, np.asarray)}

    async def asynchronous(url: str, form: str) -> float:
        given, convert = forms[form]
        async with AsyncSurrogate(url, progress=False) as surrogate:
            await surrogate.predict(given[:1000] if convert is np.asarray else arrays[:1000])
            began = time.perf_counter()
            await surrogate.predict(convert(given))
            return time.perf_counter() - began

    def synchronous(url: str, form: str) -> float:
        given, convert = forms[form]
        with Surrogate(url, progress=False) as surrogate:
            surrogate.predict(convert(given[:1000]))
            began = time.perf_counter()
            surrogate.predict(convert(given))
            return time.perf_counter() - began

    for scheme, url in urls.items():
        for form in forms:
            for kind in (Surrogate, AsyncSurrogate):
                seconds = synchronous(url, form) if kind is Surrogate else asyncio.run(asynchronous(url, form))
                print(json.dumps([scheme, kind.__name__, form, count / seconds]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--structures", type=int, default=100_000)
    parser.add_argument("--beside", type=Path, help="another checkout, whose client takes turns with this one")
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)  # this program, as the client
    arguments = parser.parse_args()
    if arguments.client:
        client(json.loads(arguments.client[0]), int(arguments.client[1]), arguments.structures)
        return
    core, *others = sorted(os.sched_getaffinity(0))
    checkouts = {"this": ROOT} | ({"beside": arguments.beside.resolve()} if arguments.beside else {})
    rates: dict[tuple[str, ...], dict[str, list[float]]] = {}
    with servers(set(others) or {core}) as urls:
        for turn in range(arguments.rounds):
            for name, folder in checkouts.items():
                print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
                environment = os.environ | {"PYTHONPATH": f"{folder / 'client'}:{folder / 'contract'}"}
                command = [sys.executable, __file__, "--structures", str(arguments.structures)]
                command += ["--client", json.dumps(urls), str(core)]
                output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
                for scheme, kind, form, rate in map(json.loads, output.splitlines()):
                    rates.setdefault((scheme, kind, form), {}).setdefault(name, []).append(rate)
    print(f"{arguments.structures} structures, median of {arguments.rounds} rounds (least, most), structures/s\n")
    print(f"| protocol | client | structures | {' | '.join(checkouts)} |\n|---|---|---|{'---|' * len(checkouts)}")
    for row, measured in rates.items():
        found = (f"{statistics.median(r):,.0f} ({min(r):,.0f}, {max(r):,.0f})" for r in measured.values())
        print(f"| {' | '.join((*row, *found))} |")


if __name__ == "__main__":
    main()
