"""Connections to a Triton: whether it is live, whether it computes a model as its metadata say, and how inputs are sent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from metaspec_contract.model import TensorSpec
from metaspec_server.core.engine import Description, try_out
from metaspec_server.core.served_model import NotYet
from metaspec_server.core.tensors import Rows, count, gather
from metaspec_server.engines.fleet import PROBE_INTERVAL, Member, Probe
from metaspec_server.engines.onnx_session import refused
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["CHANNEL", "GONE", "connect_probe", "encode", "largest_batch", "try_on"]

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # otherwise a new connection shares the back-off of the broken one
]
"""Options of a gRPC channel to a Triton."""

GONE = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "StatusCode.NOT_FOUND")
"""What a call ends with when a Triton is dead or shuts down, or no longer has the model."""

_READY_TIMEOUT = 5.0  # seconds for a Triton to say whether it has a model ready


def largest_batch(member: Member, file: ModelFile) -> int:
    """Largest batch of a model on a Triton that has it ready.

    Raises:
        NotYet: the Triton does not have it ready, or does not answer.
    """
    name, version = file.name, str(file.version)
    with tritonclient.grpc.InferenceServerClient(member.address, channel_args=CHANNEL) as client:
        try:
            if not client.is_model_ready(name, version, client_timeout=_READY_TIMEOUT):
                raise NotYet(file.path, f"Triton at {member.address} does not serve version {version} (yet)")
            config = client.get_model_config(name, version, client_timeout=_READY_TIMEOUT).config
        except InferenceServerException as error:
            raise NotYet(file.path, f"Triton at {member.address}: {error.message()}") from None
    return max(1, int(config.max_batch_size))


def try_on(member: Member, file: ModelFile, about: Description, sizes: Sequence[int], timeout: float) -> None:
    """Try a model on a Triton.

    Args:
        member: the Triton.
        file: version of the model.
        about: description of the model.
        sizes: numbers of rows to try it with.
        timeout: seconds for each.

    Raises:
        NotYet: the Triton does not have it ready, or does not answer.
        RepositoryError: its answers do not fit its metadata, or it fails.
    """
    place, version = f"Triton at {member.address}", str(file.version)
    with tritonclient.grpc.InferenceServerClient(member.address, channel_args=CHANNEL) as client:

        def run(rows: Rows) -> Rows:
            answered, answer = threading.Event(), list[Any]()

            def answered_with(result: Any, error: InferenceServerException | None) -> None:
                answer[:] = [result, error]
                answered.set()

            inputs = encode(rows, about.inputs)
            call = client.async_infer(file.name, inputs, answered_with, version, client_timeout=timeout)
            while not answered.wait(PROBE_INTERVAL):
                if not member.alive:
                    call.cancel()
                    raise NotYet(file.path, f"{place} does not answer any more")
            result, error = answer
            if error is not None:
                gone = str(error.status()) in (*GONE, "StatusCode.DEADLINE_EXCEEDED")
                kind = NotYet if gone else RepositoryError
                raise kind(file.path, f"{place} fails to run it: {error.message()}")
            named = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
            return {spec.name: named[spec.name] for spec in about.outputs if spec.name in named}

        for size in sizes:
            with refused(file):
                try_out(about.metadata, size, run)


def connect_probe(address: str) -> Probe:
    """Probe that asks a Triton whether it is live, on a connection that is made again when it fails."""
    client: Any = None

    def probe(timeout: float) -> bool:
        nonlocal client
        if client is None:
            client = tritonclient.grpc.InferenceServerClient(address, channel_args=CHANNEL)
        try:
            return bool(client.is_server_live(client_timeout=timeout))
        except InferenceServerException:
            client.close()
            client = None
            return False

    return probe


def encode(rows: Rows, specs: Sequence[TensorSpec]) -> list[Any]:
    """Inputs of a request to Triton, bits unpacked."""
    size = count(rows)
    buffers: Rows = {spec.name: np.empty((size, *spec.shape), spec.dtype) for spec in specs}
    gather([rows], specs, buffers)
    inputs = []
    for name, array in buffers.items():
        tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs
