"""Triton's configuration of a model, and ONNX Runtime's settings for TensorRT.

Fields after Triton's `model_config.proto`; the parameters of the accelerator are those of the onnxruntime backend.
"""

from __future__ import annotations

import json
from typing import Any

from metaspec_simulation import PIXELS

from metaspec_export.precision import Precision

MAX_BATCH = 256
PREFERRED_BATCHES = (8, 32, 128)

ENGINE_CACHE = "/var/cache/metaspec/tensorrt"
"""Where Triton keeps built TensorRT engines: mount a volume there, or every start builds them anew, for minutes."""

WORKSPACE_BYTES = 2**30


def tensors(wavelengths: int, gradient: bool) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Inputs and outputs of a model by name, with their shapes without the batch axis."""
    structure, spectra = (1, PIXELS, PIXELS), (4, wavelengths)
    if gradient:
        return {"structure": structure, "cotangent": spectra}, {"spectra": spectra, "gradient": structure}
    return {"structure": structure}, {"spectra": spectra}


def config_pbtxt(name: str, wavelengths: int, gradient: bool = False, precision: Precision = "fp32") -> str:
    """`config.pbtxt` of a model: tensors, batching, instances, warm-up, cache of answers, TensorRT on GPUs.

    Args:
        name: of the model and its folder.
        wavelengths: number of wavelengths.
        gradient: whether it is a gradient model.
        precision: of its graph. int8 is for CPUs and says so.
    """
    inputs, outputs = tensors(wavelengths, gradient)

    def listed(values: dict[str, tuple[int, ...]]) -> str:
        return ",\n".join(
            f'  {{ name: "{key}", data_type: TYPE_FP32, dims: [ {", ".join(map(str, dims))} ] }}'
            for key, dims in values.items()
        )

    def warm_up(batch: int) -> str:
        samples = "\n".join(
            f'  inputs {{ key: "{key}" value {{ data_type: TYPE_FP32, dims: [ {", ".join(map(str, dims))} ], '
            f"random_data: true }} }}"
            for key, dims in inputs.items()
        )
        return f'model_warmup {{\n  name: "batch {batch}"\n  batch_size: {batch}\n{samples}\n}}'

    on_gpu = "" if precision == "int8" else _accelerator(precision)
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
{listed(inputs)}
]
output [
{listed(outputs)}
]
dynamic_batching {{ preferred_batch_size: [ {", ".join(map(str, PREFERRED_BATCHES))} ] }}
instance_group [ {{ kind: {"KIND_CPU" if precision == "int8" else "KIND_AUTO"}, count: 1 }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
response_cache {{ enable: true }}
{warm_up(1)}
{warm_up(PREFERRED_BATCHES[-1])}
{on_gpu}"""


def _accelerator(precision: Precision) -> str:
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


def tensorrt_options(wavelengths: int, gradient: bool, cache: str = "tensorrt") -> dict[str, Any]:
    """Options of ONNX Runtime's TensorrtExecutionProvider for one engine that fits every batch up to `MAX_BATCH`.

    The precision is not among them: TensorRT 11 takes it from the graph. Paths are relative to the version's folder.
    """
    inputs, _ = tensors(wavelengths, gradient)
    profiles = {
        f"trt_profile_{name}_shapes": ",".join(
            f"{key}:{'x'.join(map(str, (size, *dims)))}" for key, dims in inputs.items()
        )
        for name, size in (("min", 1), ("opt", PREFERRED_BATCHES[1]), ("max", MAX_BATCH))
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
