"""Tensors on a device that are allocated and bound to an ONNX Runtime session once."""

from __future__ import annotations

import onnxruntime as ort

from metaspec_contract.model import TensorSpec
from metaspec_server.core.engine import Description
from metaspec_server.core.tensors import Rows

__all__ = ["Bound"]


class Bound:
    """Tensors of one batch size on a device, permanently bound to a session, as CUDA graphs need them.

    Args:
        session: session of the model.
        about: description of the model.
        size: number of rows.
        device_type: ONNX Runtime's name of the kind of device, cpu or cuda.
        device: number of the device.
        cuda_graphs: whether the session records a CUDA graph for each size.

    Attributes:
        options: options of its runs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        about: Description,
        size: int,
        device_type: str,
        device: int,
        cuda_graphs: bool,
    ) -> None:
        def allocate(spec: TensorSpec) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type((size, *spec.shape), spec.dtype.type, device_type, device)

        self._session = session
        self._inputs = {spec.name: allocate(spec) for spec in about.inputs}
        self._outputs = {spec.name: allocate(spec) for spec in about.outputs}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self.options = ort.RunOptions()
        if cuda_graphs:
            self.options.add_run_config_entry("gpu_graph_id", str(size))

    def put(self, buffers: Rows) -> None:
        """Copy a full batch of inputs to the device."""
        for name, value in self._inputs.items():
            value.update_inplace(buffers[name])

    def compute(self) -> None:
        """Compute the outputs, on the device."""
        self._session.run_with_iobinding(self._binding, self.options)

    def get(self) -> Rows:
        """Copies of the outputs."""
        return {name: value.numpy() for name, value in self._outputs.items()}

    def run(self, buffers: Rows) -> Rows:
        """Outputs of a full batch."""
        self.put(buffers)
        self.compute()
        return self.get()
