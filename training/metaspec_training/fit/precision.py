"""Precision by processor: bfloat16 pays off only where the processor has units for it, and torch accepts it everywhere."""

from __future__ import annotations

import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator

_CPU_UNITS = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX BF16", "bf16": "Arm BF16"}
"""Capabilities of processors as `torch.cpu.get_capabilities` names them."""


def bf16_units(device: torch.device) -> str:
    """Name of a device's bfloat16 units, "" if it has none.

    On a CPU without them, a product in bfloat16 is emulated and takes longer than in float32.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"CUDA compute capability {major}.{minor}" if major >= 8 else ""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return next((name for key, name in _CPU_UNITS.items() if capabilities.get(key)), "")
    return ""


def choose_precision(accelerator: str | Accelerator) -> tuple[str, str]:
    """Lightning's name of the precision to train in, and why.

    Args:
        accelerator: accelerator as a `Trainer` takes it.
    """
    device = _device(accelerator)
    units = bf16_units(device)
    kind = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}[device.type]
    if units:
        return "bf16-mixed", f"this {kind} has bfloat16 units ({units})"
    return "32-true", f"this {kind} has no bfloat16 units"


def _device(accelerator: str | Accelerator) -> torch.device:
    """The kind of device that Lightning picks; "cpu" for kinds that we know nothing of."""
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__.lower()
    if name in ("auto", "gpu", "cuda", "cudaaccelerator") and CUDAAccelerator.is_available():
        return torch.device("cuda", 0)
    if name in ("auto", "gpu", "mps", "mpsaccelerator") and MPSAccelerator.is_available():
        return torch.device("mps")
    return torch.device("cpu")
