"""Settings of the server: flags, METASPEC_* environment variables, a .env file, then these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def bundled_repository() -> Path:
    """The model repository that comes with the package."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "models"


def usable_cores() -> int:
    """Cores that this process may really use: its affinity, cut by the cgroup's quota (a container's CPU limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        pass
    return cores


class Settings(BaseSettings):
    """How to serve. Each setting is a flag (`--max-batch 64`) and a variable (`METASPEC_MAX_BATCH=64`)."""

    model_config = SettingsConfigDict(
        env_prefix="METASPEC_",
        env_file=".env",
        extra="ignore",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="metaspec-serve",
    )

    repository: Path = Field(default_factory=bundled_repository, description="folder of models, in Triton's layout")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")

    engine: Literal["onnxruntime", "triton"] = Field(
        "onnxruntime", description="compute in this process, or let a Triton server with the same repository compute"
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="what ONNX Runtime runs on; auto takes CUDA where it is installed, else the CPU"
    )
    gpus: list[int] = Field([0], min_length=1, description="numbers of the GPUs to use")
    instances: int = Field(1, ge=1, description="engines of each model, on each GPU or on the CPU")
    threads: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="threads that all engines of a model compute with on a CPU; all usable cores by default",
    )
    cuda_graphs: bool = Field(False, description="record the kernels of each batch size and replay them")
    triton_url: str = Field("127.0.0.1:8001", description="gRPC address of the Triton server, for --engine triton")
    triton_in_flight: int = Field(
        32, ge=1, description="requests for a model that may be under way to Triton; it forms its batches from them"
    )

    max_batch: int = Field(
        32, ge=1, description="structures in a micro-batch at most; fewer where each takes several passes"
    )
    max_queue: int = Field(8192, ge=1, description="structures of a model that wait at most; beyond that 503")
    max_structures: int = Field(4096, ge=1, description="structures in one request at most; beyond that 413")
    max_body_bytes: int = Field(512 * 2**20, ge=1, description="size of a request body at most; beyond that 413")
    request_timeout: float = Field(60.0, gt=0, description="seconds after which a request gets 504")
    body_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds for the head of a request, and for its body, which gets one more for every 10 kB; beyond that 408",
    )
    shutdown_timeout: int = Field(30, ge=0, description="seconds given to accepted requests at shutdown")
    cache_mb: int = Field(256, ge=0, description="MiB for the results of structures seen last; 0 for none")

    keep_versions: int = Field(2, ge=1, description="newest versions of each model that are served")
    poll_interval: float = Field(
        2.0, ge=0, description="seconds between looks for new versions in the repository; 0 for never"
    )
    model_control: bool = Field(True, description="let callers load and unload models")

    api_keys: Path | None = Field(None, description="file of API keys, one a line; callers must send one of them")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="info writes a line for every request"
    )
    log_format: Literal["text", "json"] = Field("text", description="how to write the log")
