"""Settings of the server: flags, METASPEC_* environment variables, then these defaults."""

from __future__ import annotations

import os
from pathlib import Path

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
        env_prefix="METASPEC_", env_file=".env", extra="ignore", cli_kebab_case=True, cli_prog_name="metaspec-serve"
    )

    repository: Path = Field(default_factory=bundled_repository, description="folder of models, in Triton's layout")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    threads: int = Field(
        default_factory=usable_cores, ge=1, description="threads an engine computes with; all usable cores by default"
    )
    max_batch: int = Field(32, ge=1, description="structures in a micro-batch at most")
    max_queue: int = Field(8192, ge=1, description="structures that wait at most; beyond that callers get 503")
    max_structures: int = Field(4096, ge=1, description="structures in one request at most; beyond that 413")
    max_body_bytes: int = Field(512 * 2**20, ge=1, description="size of a request body at most; beyond that 413")
    request_timeout: float = Field(60.0, gt=0, description="seconds after which a request gets 504")
    shutdown_timeout: int = Field(30, ge=0, description="seconds given to accepted requests at shutdown")
