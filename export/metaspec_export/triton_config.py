"""Triton's configuration of a model, and ONNX Runtime's settings for TensorRT.

Fields after Triton's `model_config.proto`; the parameters of the accelerator are those of the onnxruntime backend.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from metaspec_contract.structures import PIXELS

MAX_BATCH = 256
"""Passes through the network that one batch may take."""

PREFERRED_PASSES = (8, 32, 128)

ENGINE_CACHE = "/var/cache/metaspec/tensorrt"
"""Where Triton keeps built TensorRT engines: mount a volume there, or every start builds them anew, for minutes."""

WORKSPACE_BYTES = 2**30


@dataclass(frozen=True)
class Signature:
    """What goes into a model and comes out, and in what batches.

    Attributes:
        inputs: shapes by name, without the batch axis.
        outputs: the same.
        preferred_batches: in structures.
        max_batch: in structures.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    preferred_batches: tuple[int, ...]
    max_batch: int


def signature(metadata: dict[str, Any]) -> Signature:
    """The signature of a model, from its metadata."""
    structure, spectra = (1, PIXELS, PIXELS), (len(metadata["channels"]), len(metadata["wavelengths_nm"]))
    passes = metadata["forward_passes"]
    batches = tuple(max(1, size // passes) for size in PREFERRED_PASSES), max(1, MAX_BATCH // passes)
    if metadata["kind"] == "vjp":
        inputs, outputs = {"structure": structure, "cotangent": spectra}, {"spectra": spectra, "gradient": structure}
        return Signature(inputs, outputs, *batches)
    return Signature({"structure": structure}, {"spectra": spectra}, *batches)


def config_pbtxt(metadata: dict[str, Any]) -> str:
    """`config.pbtxt` of a model: tensors, batching, instances, warm-up, cache of answers, TensorRT on GPUs.

    Its parameter "metaspec" tells clients, as JSON, what Triton's own metadata have no room for.

    Args:
        metadata: of the model. A model in int8 is for CPUs, and its configuration says so.
    """
    wanted, precision = signature(metadata), metadata["precision"]
    told = {key: metadata[key] for key in ("schema_version", "process", "wavelengths_nm", "channels", "units")}

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
    return f"""\
name: "{metadata["name"]}"
backend: "onnxruntime"
max_batch_size: {wanted.max_batch}
input [
{listed(wanted.inputs)}
]
output [
{listed(wanted.outputs)}
]
dynamic_batching {{ preferred_batch_size: [ {", ".join(map(str, wanted.preferred_batches))} ] }}
instance_group [ {{ kind: {"KIND_CPU" if precision == "int8" else "KIND_AUTO"}, count: 1 }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
response_cache {{ enable: true }}
parameters {{ key: "metaspec" value {{ string_value: {json.dumps(json.dumps(told))} }} }}
{warm_up(1)}
{warm_up(wanted.preferred_batches[-1])}
{on_gpu}"""


def _accelerator(precision: str) -> str:
    """The TensorRT accelerator, with a cache of engines that outlives the server."""
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
    """Options of ONNX Runtime's TensorrtExecutionProvider for one engine that fits every batch up to the largest.

    The precision is not among them: TensorRT 11 takes it from the graph. Paths are relative to the version's folder.
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
    """Options as a file that people can read."""
    return (json.dumps(options, indent=2) + "\n").encode()
