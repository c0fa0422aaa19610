"""Settings of the server: flags, METASPEC_* environment variables, a .env file, then these defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings", "bundled_repository", "usable_cores"]


def bundled_repository() -> Path:
    """Path of the model repository that comes with the package."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "models"


def usable_cores() -> int:
    """Number of cores that this process may use: its affinity, within the cgroup's quota (a container's CPU limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        pass
    return cores


class Settings(BaseSettings):
    """Settings of the server, each a flag (`--max-batch 64`) and a variable (`METASPEC_MAX_BATCH=64`)."""

    model_config = SettingsConfigDict(
        env_prefix="METASPEC_",
        env_file=".env",
        extra="ignore",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="metaspec-serve",
    )

    engine: Literal["onnxruntime", "triton"] = Field(
        "onnxruntime", description="compute in this process, or on a Triton server with the same repository"
    )
    repository: Path = Field(default_factory=bundled_repository, description="folder of the models, in Triton's layout")
    models: Annotated[list[str], NoDecode] = Field(
        [], description="models to serve, separated by commas; all by default"
    )
    lazy: bool = Field(False, description="load each model on its first request, which waits for it")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="execution provider of ONNX Runtime; auto is CUDA where it is installed, else the CPU"
    )
    gpus: list[int] = Field([0], min_length=1, description="numbers of the GPUs to use")
    instances: int = Field(1, ge=1, description="engines of each model, on each GPU or on the CPU")
    threads: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="threads of all engines of a model together, on a CPU; all usable cores by default",
    )
    cuda_graphs: bool = Field(False, description="record the kernels of each batch size and replay them")
    triton_url: str = Field("127.0.0.1:8001", description="gRPC address of the Triton server, for --engine triton")
    triton_in_flight: int = Field(
        32,
        ge=1,
        description="largest number of requests in flight to Triton for each model; it forms batches from them",
    )

    max_batch: int | None = Field(
        None,
        ge=1,
        description="largest number of structures in a micro-batch, fewer in models that take several passes for each; 4 on "
        "a CPU by default, where larger ones are slower, and 32 on a GPU",
    )
    max_queue: int = Field(
        8192, ge=1, description="largest number of waiting structures of each model; beyond that 503"
    )
    max_structures: int = Field(4096, ge=1, description="largest number of structures in one request; beyond that 413")
    max_body_bytes: int = Field(512 * 2**20, ge=1, description="largest decompressed body in bytes; beyond that 413")
    memory_mb: int = Field(
        1024,
        ge=1,
        description="memory for the bodies and answers of all requests in flight in MiB; beyond that requests wait, then 503",
    )
    request_timeout: float = Field(60.0, gt=0, description="seconds after which a request gets 504")
    body_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds for the head of a request, and for its body plus one second per 10 kB; beyond that 408",
    )
    shutdown_timeout: int = Field(30, ge=0, description="seconds to finish accepted requests at shutdown")
    cache_mb: int = Field(256, ge=0, description="size of the result cache in MiB; 0 for no cache")

    keep_versions: int = Field(2, ge=1, description="number of versions of each model to serve, newest first")
    poll_interval: float = Field(
        2.0, ge=0, description="seconds between checks of the repository for new versions; 0 for none"
    )
    model_control: bool = Field(True, description="allow callers to load and unload models")

    api_keys: Path | None = Field(None, description="file of API keys, one per line; callers must send one of them")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="lowest level that is logged; info logs every request"
    )
    log_format: Literal["text", "json"] = Field("text", description="format of the log")

    @field_validator("models", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("["):  # JSON, as other lists come in variables
            value = json.loads(value)
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(names, str) for names in given):
            return value
        return [name for names in given for part in names.split(",") if (name := part.strip())]

    @field_validator("lazy")
    @classmethod
    def _not_for_triton(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("engine") == "triton":
            raise ValueError("with --engine triton, that server loads the models")
        return value
