"""Building TensorRT engines ahead of time, so that a server does not build them for minutes when it starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from metaspec_export.errors import ExportRefused
from metaspec_export.triton_config import Signature, tensorrt_options

PROVIDER = "TensorrtExecutionProvider"


class TensorRTUnavailable(ExportRefused):
    """This machine cannot build TensorRT engines. The message says what is missing."""


def require_tensorrt() -> None:
    """Refuse early if no engine can be built on this machine.

    Raises:
        TensorRTUnavailable: ONNX Runtime has no TensorRT here.
    """
    available = ort.get_available_providers()
    if PROVIDER not in available:
        raise TensorRTUnavailable(
            f"--tensorrt: ONNX Runtime {ort.__version__} here has no {PROVIDER}, only {', '.join(available)}; it takes a "
            "machine with an NVIDIA GPU, onnxruntime-gpu instead of onnxruntime, and TensorRT"
        )


def build_engines(graph: bytes, wanted: Signature) -> dict[str, bytes]:
    """Engine and timing caches of a graph for this GPU, warmed up for every preferred batch size.

    Args:
        graph: serialised ONNX graph.
        wanted: signature of the graph.

    Returns:
        Files by path relative to the version's folder.

    Raises:
        TensorRTUnavailable: TensorRT could not be loaded, or left work to another provider.
    """
    require_tensorrt()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "tensorrt"
        options = tensorrt_options(wanted, str(cache))
        settings = ort.SessionOptions()
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(graph, settings, providers=[(PROVIDER, options)])
        except Exception as error:  # ONNX Runtime has no base class for what a provider raises
            raise TensorRTUnavailable(f"--tensorrt: {str(error).splitlines()[0]}") from error
        if PROVIDER not in session.get_providers():
            raise TensorRTUnavailable(
                "--tensorrt: ONNX Runtime could not load TensorRT's libraries; is tensorrt installed?"
            )
        for size in (1, *wanted.preferred_batches):
            session.run(None, {name: np.zeros((size, *shape), np.float32) for name, shape in wanted.inputs.items()})
        return {str(path.relative_to(folder)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
