"""Fields and parameters of the Open Inference Protocol: each is known, or refused by name.

See Triton's `protocol/extension_parameters.md`, `extension_schedule_policy.md`, `extension_binary_data.md`,
`extension_shared_memory.md` and `extension_model_repository.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from metaspec_server.core.priority import LOWEST_PRIORITY
from metaspec_server.core.shared_memory import Place
from metaspec_server.http.problems import Problem

__all__ = [
    "INPUT_PARAMETERS",
    "LOAD_PARAMETERS",
    "OUTPUT_PARAMETERS",
    "REQUEST_PARAMETERS",
    "UNLOAD_PARAMETERS",
    "Parameter",
    "ProtocolError",
    "check_fields",
    "is_whole",
    "read_parameters",
    "read_place",
    "shown",
]

_LONGEST = 60  # characters shown of a value


class ProtocolError(Problem):
    """A request that is not valid in the protocol, or not for the model: 400. The message names the field."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, detail)


@dataclass(frozen=True)
class Parameter:
    """A parameter that is supported.

    Attributes:
        expected: description of its values.
        accepts: whether a value is one of them.
    """

    expected: str
    accepts: Callable[[object], bool]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_TRUTH = Parameter("true or false", lambda value: isinstance(value, bool))
_BYTES = Parameter("a whole number of bytes", is_whole)
_SHARED_MEMORY: dict[str, Parameter | None] = {
    "shared_memory_region": Parameter("the name of a region", lambda value: isinstance(value, str) and value != ""),
    "shared_memory_byte_size": _BYTES,
    "shared_memory_offset": _BYTES,
}

REQUEST_PARAMETERS: dict[str, Parameter | None] = {
    "binary_data_output": _TRUTH,
    "timeout": Parameter("a whole number of microseconds, 0 for none", is_whole),
    "priority": Parameter(
        f"0 for the default, or from 1, the highest, to {LOWEST_PRIORITY}",
        lambda value: is_whole(value) and value <= LOWEST_PRIORITY,
    ),
    "triton_enable_empty_final_response": _TRUTH,  # the one answer is the final one, so nothing follows
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end")),
}
"""Parameters of an inference request; None for those that are not supported."""

INPUT_PARAMETERS: dict[str, Parameter | None] = {
    "binary_data_size": _BYTES,
    **_SHARED_MEMORY,
}
"""Parameters of an input."""

OUTPUT_PARAMETERS: dict[str, Parameter | None] = {
    "binary_data": _TRUTH,
    "datatype": Parameter("FP16 or FP32", lambda value: value in ("FP16", "FP32")),
    "classification": None,
    **_SHARED_MEMORY,
}
"""Parameters of a requested output."""

LOAD_PARAMETERS: dict[str, Parameter | None] = {"config": None}
"""Parameters of a request to load a model."""

UNLOAD_PARAMETERS: dict[str, Parameter | None] = {"unload_dependents": None}
"""Parameters of a request to unload a model."""


def read_parameters(entry: Mapping[str, Any], owner: str, known: Mapping[str, Parameter | None]) -> dict[str, Any]:
    """The parameters of a request, an input or an output.

    Args:
        entry: JSON object that they belong to.
        owner: its name, for messages.
        known: parameters by name; None for one that is not supported. A value that asks for nothing (0, false, empty text) is
            accepted for these, because clients of Triton send them.

    Raises:
        ProtocolError: an unknown or unsupported parameter, or a value of another type.
    """
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{owner}: parameters must be an object, got {type(parameters).__name__}")
    read = {}
    for name, value in parameters.items():
        if name not in known:
            names = ", ".join(name for name, parameter in known.items() if parameter) or "none"
            raise ProtocolError(f"{owner}: unknown parameter {shown(name)}; known are {names}")
        parameter = known[name]
        if parameter is None:
            if value not in (0, ""):
                raise ProtocolError(f"{owner}: the parameter {name} is not supported here, got {shown(value)}")
        elif parameter.accepts(value):
            read[name] = value
        else:
            raise ProtocolError(f"{owner}: the parameter {name} must be {parameter.expected}, got {shown(value)}")
    return read


def read_place(parameters: Mapping[str, Any], owner: str) -> Place | None:
    """The place in shared memory that the parameters of an input or output name; None if they name none.

    Args:
        parameters: parameters that have been read.
        owner: name of the tensor, for messages.

    Raises:
        ProtocolError: there is a size without a region, or a region without a size.
    """
    region, size = parameters.get("shared_memory_region"), parameters.get("shared_memory_byte_size", 0)
    offset = parameters.get("shared_memory_offset", 0)
    if region is None:
        if size or offset:
            raise ProtocolError(f"{owner}: shared_memory_byte_size and shared_memory_offset need shared_memory_region")
        return None
    if not size:
        raise ProtocolError(f"{owner}: shared_memory_region needs shared_memory_byte_size, a number of bytes above 0")
    return Place(region, offset, size)


def check_fields(entry: Mapping[str, Any], known: Sequence[str], owner: str) -> None:
    """Check the names of the fields of a JSON object.

    Raises:
        ProtocolError: one is unknown.
    """
    if unknown := sorted(entry.keys() - set(known)):
        raise ProtocolError(f"{owner}: unknown field {shown(unknown[0])}; known are {', '.join(known) or 'none'}")


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
