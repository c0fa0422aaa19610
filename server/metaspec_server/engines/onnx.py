"""The ONNX Runtime engine: runs micro-batches in this process."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from metaspec_contract.model import COTANGENT, SPECTRA, STRUCTURE
from metaspec_server.core.engine import try_out
from metaspec_server.core.tensors import Rows, gather, is_packed
from metaspec_server.engines.bound import Bound
from metaspec_server.engines.onnx_session import PROVIDERS, describe_session, first_line, open_session, refused
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["OnnxEngine"]

_NEGLIGIBLE = 2.0**-64
"""Part of the largest number of an input that counts as 0: far below the last bit of a float32 sum with it.

Smaller numbers become denormal in the network, which slows a CPU thirtyfold.
"""

_USUAL_EXPONENT = 16  # cotangents from 2^-16 to 2^16 are computed as they are


class OnnxEngine:
    """A model run by ONNX Runtime in this process.

    On a CPU a micro-batch is computed at its own size. On a GPU it is padded to the next of a few sizes, each with tensors on
    the device that are allocated and bound once (and, if `cuda_graphs` is set, a CUDA graph that is recorded once).

    Args:
        file: file of the model.
        provider: execution provider: cpu, cuda or tensorrt.
        threads: number of threads to compute with, on a CPU.
        max_batch: largest number of network passes in a micro-batch.
        device: number of the GPU.
        cuda_graphs: record the kernels of each batch size and replay them.
        load_timeout: seconds to load and try the model, after which the trial is ended.

    Attributes:
        about: description of the model.
        max_batch: largest number of rows in a micro-batch, fewer in a model that takes several passes for each.
        input_seconds: time that the last micro-batch took to be copied into the inputs, in seconds.

    Raises:
        RepositoryError: the file is damaged, the model does not fit its metadata or fails, or the provider cannot run it.
    """

    def __init__(
        self,
        file: ModelFile,
        provider: str = "cpu",
        threads: int = 1,
        max_batch: int = 32,
        device: int = 0,
        cuda_graphs: bool = False,
        load_timeout: float = 120.0,
    ) -> None:
        self._load_timeout, self._load_until = load_timeout, time.monotonic() + load_timeout
        self._session = open_session(file, provider, threads, device, cuda_graphs)
        self.about = describe_session(file, self._session, f"onnxruntime {ort.__version__} {PROVIDERS[provider]}")
        self.max_batch = max(1, max_batch // self.about.metadata.forward_passes)
        self._buffers = self._new_buffers()
        self._bound: dict[int, Bound] = {}
        self.input_seconds = 0.0
        self._options = ort.RunOptions()
        if provider != "cpu":
            self._bind("cuda", device, cuda_graphs)
            self._warm_up(file)
            return
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._warm_up(file)
        self._options = ort.RunOptions()  # in use, memory is kept for the next micro-batch

    def run(self, pieces: Sequence[Rows]) -> Rows:
        """Outputs of a micro-batch that comes in pieces, in the same order."""
        started = time.perf_counter()
        rows = gather(pieces, self.about.inputs, self._buffers)
        exponents = {
            spec.name: _normalise(self._buffers[spec.name][:rows], spec.name == COTANGENT)
            for spec in self.about.inputs
            if spec.name in (STRUCTURE, COTANGENT)  # what is negligible in a condition depends on its unit
            and not all(is_packed(piece[spec.name], spec) for piece in pieces)  # bits have no negligible numbers
        }
        self.input_seconds = time.perf_counter() - started
        results = self._compute(rows)
        if (exponent := exponents.get(COTANGENT)) is not None:
            with np.errstate(over="ignore", under="ignore"):
                for name, array in results.items():
                    if name != SPECTRA:
                        results[name] = np.ldexp(array, _by_row(exponent, array))
        return results

    def twin(self) -> OnnxEngine:
        """Another engine with the same session and weights, for another thread. Only for engines on one thread of a CPU.

        Both may run at once: with one thread, a session computes in the thread that calls it.
        """
        twin = copy.copy(self)
        twin._buffers, twin._options, twin.input_seconds = self._new_buffers(), ort.RunOptions(), 0.0
        return twin

    def stop(self) -> None:
        """Make `run` end with an exception, at the next node of the graph."""
        for options in (self._options, *(bound.options for bound in self._bound.values())):
            options.terminate = True

    def _new_buffers(self) -> Rows:
        """Array of each input for a full micro-batch."""
        return {spec.name: np.zeros((self.max_batch, *spec.shape), spec.dtype) for spec in self.about.inputs}

    def _compute(self, rows: int) -> Rows:
        """Outputs of the first rows of the buffers."""
        if self._bound:
            size = next(size for size in self._bound if size >= rows)
            results = self._bound[size].run({name: buffer[:size] for name, buffer in self._buffers.items()})
            return {name: array[:rows] for name, array in results.items()}
        names = [spec.name for spec in self.about.outputs]
        feed = {name: buffer[:rows] for name, buffer in self._buffers.items()}
        return dict(zip(names, self._session.run(names, feed, self._options), strict=True))

    def _bind(self, device_type: str, device: int, cuda_graphs: bool) -> None:
        """Allocate tensors on a device for each batch size: powers of two up to the largest."""
        sizes = sorted({min(1 << n, self.max_batch) for n in range(self.max_batch.bit_length() + 1)})
        self._bound = {size: Bound(self._session, self.about, size, device_type, device, cuda_graphs) for size in sizes}

    def _warm_up(self, file: ModelFile) -> None:
        """Try the model at every batch size, which also allocates memory and selects kernels before the first request."""

        def run(rows: Rows) -> Rows:
            watchdog = threading.Timer(max(0.0, self._load_until - time.monotonic()), self.stop)
            watchdog.daemon = True
            watchdog.start()
            try:
                return self.run([rows])
            except Exception as error:  # ONNX Runtime has no base class for what a model raises
                late = f"it has not finished within {self._load_timeout:g} s"
                reason = late if self._options.terminate else first_line(error)
                raise RepositoryError(file.path, f"ONNX Runtime fails to run it: {reason}") from error
            finally:
                watchdog.cancel()

        for size in self._bound or sorted({1, self.max_batch}):
            with refused(file):
                try_out(self.about.metadata, size, run)


def _normalise(rows: NDArray[Any], scaled: bool) -> NDArray[np.int32] | None:
    """Set negligible numbers to 0, in place; if asked, first scale rows far from 1 by powers of two, which is exact.

    The gradient is linear in the cotangent: scaled back, that of a scaled cotangent is the same, without the denormal
    numbers and overflows on the way.

    Args:
        rows: rows of an input.
        scaled: whether rows may be scaled; otherwise their largest number is near 1.

    Returns:
        Exponent of each row, to scale the results back; None if no row was scaled.
    """
    exponent = None
    if scaled:
        size = np.abs(rows).max(axis=tuple(range(1, rows.ndim)))
        _, exponent = np.frexp(size)
        exponent[np.abs(exponent) <= _USUAL_EXPONENT] = 0
        if exponent.any():
            np.ldexp(rows, -_by_row(exponent, rows), out=rows)
        else:
            exponent = None
    rows[np.abs(rows) < _NEGLIGIBLE] = 0
    return exponent


def _by_row(exponent: NDArray[np.int32], rows: NDArray[Any]) -> NDArray[np.int32]:
    """The exponent of each row, in a shape that spreads over the row."""
    return exponent.reshape(-1, *[1] * (rows.ndim - 1))
