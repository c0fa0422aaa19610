"""Settings of the server: flags, METASPEC_* environment variables, a .env file, then these defaults."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from metaspec_server.cores import usable_cores
from metaspec_server.environment import PREFIX, own_variables, read_dotenv

__all__ = ["Settings", "bundled_repository"]

_DOTENV = Path(".env")
_ON, _OFF = ("on", "true", "yes", "1", "t", "y"), ("off", "false", "no", "0", "f", "n")  # as for other truth values
_YEAR = 31_536_000  # seconds: the longest time that can be set, within what every timer takes
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[\w.~-]+)+", re.ASCII)  # no /. or /.. in it, which callers would resolve
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5}")  # an IPv6 address stands in brackets
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")  # as browsers write it: in lower case


def bundled_repository() -> Path:
    """Path of the model repository that comes with the package."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "models"


class Settings(BaseSettings):
    """Settings of the server, each a flag (`--max-batch 64`) and a variable (`METASPEC_MAX_BATCH=64`)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,  # so that a truth value that may be left open has flags, too
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
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port to serve gRPC on, beside HTTP; clients of Triton expect 8001; 0 picks a free one; none by default",
    )
    uds: Path | None = Field(None, description="path of a Unix domain socket to listen on, instead of a host and port")
    tls_cert: Path | None = Field(
        None,
        description="file of a TLS certificate, and the chain below its authority, in PEM format; HTTPS from then on",
    )
    tls_key: Path | None = Field(None, description="file of its private key, if that is not in the same file")
    root_path: str = Field(
        "", description="prefix, such as /metaspec, that a proxy puts before the paths of the server"
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        [], description="origins whose pages may call the server, separated by commas, or * for all; none by default"
    )

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="execution provider of ONNX Runtime; auto is CUDA where it is installed, else the CPU"
    )
    gpus: Annotated[list[int], NoDecode] = Field([0], min_length=1, description="numbers of the GPUs to use")
    instances: int | None = Field(
        None,
        ge=1,
        description="engines of each model, on each GPU or on the CPU; by default one on each GPU, and on a CPU those that "
        "follow the load: one with all threads while little waits, one for each thread when more does",
    )
    threads: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="threads of all engines of a model together, on a CPU; all usable cores by default",
    )
    cuda_graphs: bool = Field(False, description="record the kernels of each batch size and replay them")
    triton_url: str = Field(
        "127.0.0.1:8001",
        description="gRPC address of the Triton server, for --engine triton; or of several, separated by commas, or a name "
        "that has several addresses",
    )
    triton_in_flight: int = Field(
        32,
        ge=1,
        description="largest number of requests in flight to Triton for each model; it forms batches from them",
    )

    max_batch: int | None = Field(
        None,
        ge=1,
        description="largest number of structures in a micro-batch, fewer in models that take several passes for each; by "
        "default 4 on a CPU, where larger ones are slower, 2 on one core of it beside others, and 32 on a GPU",
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
    request_timeout: float = Field(60.0, gt=0, le=_YEAR, description="seconds after which a request gets 504")
    engine_timeout: float | None = Field(
        None,
        gt=0,
        le=_YEAR,
        description="seconds after which an engine that computes one micro-batch, or a Triton that computes one request, is "
        "ended or given up and replaced; those of --request-timeout by default",
    )
    load_timeout: float | None = Field(
        None,
        gt=0,
        le=_YEAR,
        description="seconds to load and try a version of a model, beyond which it is not served; 120 by default, and 1200 "
        "with TensorRT and Triton, which may compile it first",
    )
    body_timeout: float = Field(
        30.0,
        gt=0,
        le=_YEAR,
        description="seconds for the head of a request, and for its body plus one second per 10 kB; beyond that 408",
    )
    shutdown_delay: float = Field(
        0.0,
        ge=0,
        le=_YEAR,
        description="seconds after SIGTERM for which the server is not ready but still takes requests, until balancers have "
        "noticed",
    )
    shutdown_timeout: int = Field(
        30, ge=0, le=_YEAR, description="seconds to finish accepted requests at shutdown, after --shutdown-delay"
    )
    cache_mb: int = Field(256, ge=0, description="size of the result cache in MiB; 0 for no cache")

    keep_versions: int = Field(2, ge=1, description="number of versions of each model to serve, newest first")
    poll_interval: float = Field(
        2.0, ge=0, le=_YEAR, description="seconds between checks of the repository for new versions; 0 for none"
    )
    model_control: bool | None = Field(
        None,
        description="allow callers to load and unload models; by default if there are API keys, whose roles then decide, or "
        "the address is a loopback address",
    )

    api_keys: Path | None = Field(
        None, description="file of API keys, one per line, and of their roles; callers must send one of them"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="lowest level that is logged; info logs every request"
    )
    log_format: Literal["text", "json"] = Field("text", description="format of the log")

    @field_validator("models", "gpus", "cors_origins", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("["):  # JSON, as other lists come in variables
            value = json.loads(value)
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(names, str) for names in given):
            return value
        return [name for names in given for part in names.split(",") if (name := part.strip())]

    @field_validator("model_control", mode="before")
    @classmethod
    def _on_off_auto(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if (word := value.lower()) in ("auto", *_ON, *_OFF):
            return None if word == "auto" else word in _ON
        raise ValueError(f"expected auto, on or off, got {value!r}")

    @field_validator("tls_key")
    @classmethod
    def _of_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_cert") is None:
            raise ValueError("expected --tls-cert, too: the certificate that the key belongs to")
        return value

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        path = value.removesuffix("/")
        if path and not _ROOT_PATH.fullmatch(path):
            raise ValueError(
                "expected a path such as /metaspec or /lab/metaspec: letters, digits and -._~ between single slashes, and no "
                f". or .. alone; got {value!r}"
            )
        return path

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        if wrong := [origin for origin in value if origin != "*" and not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"expected origins such as https://example.org:8443, without a path, got {wrong[0]!r}")
        if "*" in value and len(value) > 1:
            raise ValueError("expected origins, or * alone")
        return value

    @field_validator("lazy")
    @classmethod
    def _not_for_triton(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("engine") == "triton":
            raise ValueError("with --engine triton, that server loads the models")
        return value

    @field_validator("triton_url")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        addresses = [part.strip() for part in value.split(",")]
        if wrong := [address for address in addresses if not _ADDRESS.fullmatch(address)]:
            raise ValueError(f"expected host:port, or several separated by commas, got {wrong[0]!r}")
        return ",".join(addresses)

    @property
    def engine_deadline(self) -> float:
        """Seconds after which an engine that computes one micro-batch is overdue."""
        return self.engine_timeout or self.request_timeout

    @property
    def load_deadline(self) -> float:
        """Seconds to load and try a version of a model."""
        compiles = self.provider == "tensorrt" or self.engine == "triton"
        return self.load_timeout or (1200.0 if compiles else 120.0)

    @property
    def allows_control(self) -> bool:
        """Whether callers, those with the role for it where there are API keys, may load and unload models."""
        if self.model_control is not None:
            return self.model_control
        only_uds = self.uds is not None and self.grpc_port is None  # gRPC listens on the host all the same
        return self.api_keys is not None or only_uds or _is_loopback(self.host)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources of settings, the first overriding the others. Unknown variables are refused."""

        def source(settings: PydanticBaseSettingsSource, variables: Mapping[str, str | None], place: str) -> None:
            assert isinstance(settings, EnvSettingsSource)
            settings.env_vars = own_variables(variables, settings_cls.model_fields, place)

        source(env_settings, os.environ, "")
        source(dotenv_settings, read_dotenv(_DOTENV), f"{_DOTENV}: ")
        return init_settings, env_settings, dotenv_settings


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
