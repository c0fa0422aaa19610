"""Triton's configuration of a model, and ONNX Runtime's settings for TensorRT.

Fields after Triton's `model_config.proto`; the parameters of the accelerator are those of the onnxruntime backend.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from metaspec_contract.model import METADATA_KEY, ModelMetadata
from metaspec_export.precision import Precision

MAX_BATCH = 256
"""Largest batch, in passes through the network."""

PREFERRED_PASSES = (8, 32, 128)
"""Preferred batches, in passes through the network."""

ENGINE_CACHE = "/var/cache/metaspec/tensorrt"
"""Folder of Triton's TensorRT engines: without a volume there, every start builds them again, which takes minutes."""

WORKSPACE_BYTES = 2**30

_FOR_CLIENTS = {"schema_version", "process", "wavelengths_nm", "channels", "merged_greens", "units", "conditions"}


@dataclass(frozen=True)
class Signature:
    """Tensors and batches of a model.

    Attributes:
        inputs: shapes of the inputs by name, without the batch axis.
        outputs: shapes of the outputs by name, without the batch axis.
        preferred_batches: preferred batch sizes in structures, ascending.
        max_batch: largest batch size in structures.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    preferred_batches: tuple[int, ...]
    max_batch: int


def signature(metadata: ModelMetadata) -> Signature:
    """The signature of a model, from its metadata."""
    inputs, outputs = metadata.tensors
    passes = metadata.forward_passes
    preferred = tuple(max(1, size // passes) for size in PREFERRED_PASSES)
    return Signature(inputs, outputs, preferred, max(1, MAX_BATCH // passes))


def config_pbtxt(metadata: ModelMetadata, precision: Precision) -> str:
    """`config.pbtxt` of a model: tensors, batching, instances, warm-up, response cache, TensorRT on GPUs.

    Its parameter "metaspec" holds, as JSON, what clients need and Triton's own metadata have no field for. Conditions are
    inputs like others: Triton's onnxruntime backend refuses optional ones in models that batch. So clients send all of them.

    Args:
        metadata: metadata of the model.
        precision: precision of the model; one in int8 is configured for CPUs.
    """
    wanted = signature(metadata)
    parameter = metadata.model_dump_json(include=_FOR_CLIENTS)

    def listed(values: dict[str, tuple[int, ...]]) -> str:
        return ",\n".join(
            f'  {{ name: "{key}", data_type: TYPE_FP32, dims: [ {", ".join(map(str, dims))} ] }}'
            for key, dims in values.items()
        )

    def warm_up(batch: int) -> str:
        samples = "\n".join(
            f'  inputs {{ key: "{key}" value {{ data_type: TYPE_FP32, dims: [ {", ".join(map(str, dims))} ], '
            f"random_data: true }} }}"
            for key, dims in wanted.inputs.items()
        )
        return f'model_warmup {{\n  name: "batch {batch}"\n  batch_size: {batch}\n{samples}\n}}'

    on_gpu = "" if precision == "int8" else _accelerator(precision)
    batches = ", ".join(map(str, wanted.preferred_batches))
    return f"""\
name: "{metadata.name}"
backend: "onnxruntime"
max_batch_size: {wanted.max_batch}
input [
{listed(wanted.inputs)}
]
output [
{listed(wanted.outputs)}
]
dynamic_batching {{ preferred_batch_size: [ {batches} ], priority_levels: 2, default_priority_level: 2 }}
instance_group [ {{ kind: {"KIND_CPU" if precision == "int8" else "KIND_AUTO"}, count: 1 }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
response_cache {{ enable: true }}
parameters {{ key: "{METADATA_KEY}" value {{ string_value: {json.dumps(parameter)} }} }}
{warm_up(1)}
{warm_up(wanted.preferred_batches[-1])}
{on_gpu}"""


def _accelerator(precision: Precision) -> str:
    """The TensorRT accelerator, with an engine cache that outlives the server."""
    parameters = {
        "precision_mode": "FP16" if precision == "fp16" else "FP32",
        "max_workspace_size_bytes": WORKSPACE_BYTES,
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": ENGINE_CACHE,
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": ENGINE_CACHE,
    }
    lines = "\n".join(f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return f"""\
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator {{
      name: "tensorrt"
{lines}
    }}
  }}
}}
"""


def tensorrt_options(wanted: Signature, cache: str = "tensorrt") -> dict[str, Any]:
    """Options of ONNX Runtime's TensorrtExecutionProvider for one engine that fits every batch size up to the largest.

    The precision is not among them: TensorRT 11 takes it from the graph.

    Args:
        wanted: signature of the model.
        cache: folder of the engine and timing caches, relative to the version's folder.
    """
    profiles = {
        f"trt_profile_{name}_shapes": ",".join(
            f"{key}:{'x'.join(map(str, (size, *dims)))}" for key, dims in wanted.inputs.items()
        )
        for name, size in (("min", 1), ("opt", wanted.preferred_batches[1]), ("max", wanted.max_batch))
    }
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": cache,
        "trt_max_workspace_size": WORKSPACE_BYTES,
        **profiles,
    }


def to_json(options: dict[str, Any]) -> bytes:
    """Options as indented JSON."""
    return (json.dumps(options, indent=2) + "\n").encode()
