"""Answers of the Open Inference Protocol v2: from outputs of a model to JSON and bytes, or into shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.shared_memory import SharedMemory
from metaspec_server.core.tensors import as_dtype
from metaspec_server.http.json_body import ANSWER_BYTES_PER_NUMBER
from metaspec_server.http.oip_codec import DATATYPES, HEADER_LENGTH, InferRequest, Output, datatype

__all__ = ["answer_bytes", "encode_response", "outputs"]


def answer_bytes(model: ServedModel, asked: InferRequest) -> int:
    """Memory of the results and of the answer that is made from them."""
    sizes = {spec.name: spec.size for spec in model.about.outputs}
    encoded = sum(
        sizes[name] * (8 if output.binary or output.place else ANSWER_BYTES_PER_NUMBER)
        for name, output in asked.outputs.items()
    )
    return asked.rows * (4 * sum(sizes.values()) + encoded)


def encode_response(
    request: InferRequest,
    results: Mapping[str, NDArray[Any]],
    shared_memory: SharedMemory,
    model: str,
    version: int,
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer to a request over HTTP.

    Args:
        request: decoded request.
        results: outputs of the model.
        shared_memory: regions that outputs may be written to.
        model: name of the model.
        version: version of the model.

    Raises:
        OutOfRange: a gradient does not fit into the dtype that was asked for.
        InvalidSharedMemory: shared memory that an output should be written to cannot be used any more.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for output, tensor, array in outputs(request, results, shared_memory):
        if output.place is None and output.binary:
            blobs.append(_bytes(array))
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        elif output.place is None:
            tensor["data"] = array.ravel()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": tensors}
    if request.id is not None:
        answer["id"] = request.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *blobs]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def outputs(
    request: InferRequest, results: Mapping[str, NDArray[Any]], shared_memory: SharedMemory
) -> Iterator[tuple[Output, dict[str, Any], NDArray[Any]]]:
    """The requested outputs, contiguous and in the byte order of the protocol. Those for shared memory are written there.

    Yields:
        How the output is encoded, its description as the answer states it, and its values. One in shared memory has no
        parameters, as in Triton: its C++ client refuses any but `binary_data_size`.

    Raises:
        OutOfRange, InvalidSharedMemory: as in `encode_response`.
    """
    for name, output in request.outputs.items():
        array = as_dtype(results[name], output.dtype or results[name].dtype, name)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)}
        array = np.ascontiguousarray(array, DATATYPES[tensor["datatype"]])
        if output.place is not None:
            shared_memory.write(output.place, _bytes(array))
        yield output, tensor, array


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
