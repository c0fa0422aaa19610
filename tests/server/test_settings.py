"""Settings: which variables count, the file .env, and the cores that the server may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from metaspec_server.cores import usable_cores
from metaspec_server.settings import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a .env, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("METASPEC_")]:
        monkeypatch.delenv(name)
    return tmp_path


def settings(**given: Any) -> Settings:
    return Settings(**given)


SERVICE_LINKS = {  # what Kubernetes sets for the services "metaspec" and "metaspec-triton"
    "METASPEC_SERVICE_HOST": "10.0.0.1",
    "METASPEC_SERVICE_PORT": "8000",
    "METASPEC_SERVICE_PORT_HTTP": "8000",
    "METASPEC_PORT": "tcp://10.0.0.1:8000",
    "METASPEC_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "METASPEC_PORT_8000_TCP_PROTO": "tcp",
    "METASPEC_PORT_8000_TCP_PORT": "8000",
    "METASPEC_PORT_8000_TCP_ADDR": "10.0.0.1",
    "METASPEC_TRITON_SERVICE_HOST": "10.0.0.2",
    "METASPEC_TRITON_SERVICE_PORT": "8001",
    "METASPEC_TRITON_PORT": "tcp://10.0.0.2:8001",
    "METASPEC_TRITON_PORT_8001_TCP": "tcp://10.0.0.2:8001",
}


def test_service_links_of_kubernetes_set_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert settings().port == 8000
    (folder / ".env").write_text("METASPEC_PORT=9000\n")
    assert settings().port == 9000, "they do not override what is meant for the server"


def test_variables_of_the_client_set_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASPEC_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("METASPEC_API_KEY", "first-key-0123456789")
    assert settings().api_keys is None


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("METASPEC_MAX_BACTH", "did you mean METASPEC_MAX_BATCH?"),
        ("METASPEC_MEMORY", "did you mean METASPEC_MEMORY_MB?"),
        ("metaspec_hots", "did you mean METASPEC_HOST?"),
        ("METASPEC_QQQQ", "metaspec-serve --help lists them all"),
    ],
)
def test_unknown_variables_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, advice: str
) -> None:
    (folder / ".env").write_text(f"OTHER=1\n{variable}=8\n")
    with pytest.raises(SettingsError) as in_the_file:
        settings()
    assert str(in_the_file.value).startswith(f".env: {variable.upper()}: no such setting; ")
    (folder / ".env").unlink()
    monkeypatch.setenv(variable, "8")
    with pytest.raises(SettingsError) as in_the_environment:
        settings()
    assert str(in_the_environment.value) == f"{variable.upper()}: no such setting; {advice}"


def test_an_empty_host_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would listen on all addresses."""
    monkeypatch.setenv("METASPEC_HOST", "")
    with pytest.raises(ValueError, match="host"):
        settings()


def test_the_command_refuses_them_in_one_line(folder: Path) -> None:
    command = [sys.executable, "-m", "metaspec_server"]

    def refused(*flags: str, **variables: str) -> str:
        environment = os.environ | variables
        result = subprocess.run(
            [*command, *flags], capture_output=True, text=True, timeout=240, check=False, env=environment
        )
        assert result.returncode == 2
        return result.stderr

    unknown = "metaspec-serve: METASPEC_MAX_BACTH: no such setting; did you mean METASPEC_MAX_BATCH?\n"
    assert refused(METASPEC_MAX_BACTH="8") == unknown
    assert refused("--request-timeout", "inf").startswith("metaspec-serve: --request-timeout: ")
    (folder / ".env").write_text("A=1\nMETASPEC_PORT 9000\n")
    line = "metaspec-serve: .env: line 2 is not understood, expected METASPEC_PORT=VALUE, or a # before it\n"
    assert refused() == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("METASPEC_PORT 9000\n", 1),
        ("A=1\n\nMETASPEC_PORT: 9000\n", 3),
        ("METASPEC_PORT\n", 1),
        ("export METASPEC_PORT\n", 1),
        ("set METASPEC_PORT=9000\n", 1),
        ("$env:METASPEC_PORT=9000\n", 1),
        ('A=1\nMETASPEC_PORT="9000\nB=2\n', 2),
        ('METASPEC_PORT="9000" or so\n', 1),
        ("# METASPEC_HOST\n\nA='it\nMETASPEC_PORT=9000\nB=b'\n", 4),
        ("A='it\nMETASPEC_PORT=9000\nB='b'\n", 2),
    ],
)
def test_lines_of_the_file_that_would_be_ignored_are_refused(folder: Path, text: str, line: int) -> None:
    (folder / ".env").write_text(text)
    with pytest.raises(SettingsError, match=rf"^\.env: line {line} is not understood, expected METASPEC_PORT=VALUE"):
        settings()


def test_lines_of_others_and_comments_may_be_anything(folder: Path) -> None:
    (folder / ".env").write_text(
        "some text\nA\n # METASPEC_PORT 1\nB=2 # METASPEC_HOST\n export METASPEC_PORT = '9000' # x\n"
    )
    assert settings().port == 9000


TIMES = [
    "request_timeout",
    "engine_timeout",
    "load_timeout",
    "body_timeout",
    "shutdown_delay",
    "shutdown_timeout",
    "poll_interval",
]


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300", "31536001"])
def test_times_are_finite(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}\n"):
        settings(**{name: value})
    assert getattr(settings(**{name: 31_536_000}), name) == 31_536_000


def test_the_time_to_load_is_longer_where_models_are_compiled() -> None:
    assert settings().load_deadline == 120
    assert settings(provider="tensorrt").load_deadline == settings(engine="triton").load_deadline == 1200
    assert settings(provider="tensorrt", load_timeout=7).load_deadline == 7


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-with-mark"])
def test_encodings_of_the_file(folder: Path, encoding: str) -> None:
    text = "AUTHOR=André\nMETASPEC_REPOSITORY=/modèles\n"
    be = b"\xfe\xff" + text.encode("utf-16-be")
    (folder / ".env").write_bytes(be if encoding.endswith("mark") else text.encode(encoding))
    assert settings().repository == Path("/modèles")


def test_what_others_keep_in_the_file_may_be_in_any_encoding(folder: Path) -> None:
    (folder / ".env").write_bytes(b"AUTHOR=Andr\xe9\nMETASPEC_PORT=9000\n")
    assert settings().port == 9000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"METASPEC_REPOSITORY=/mod\xe8les\n", r"\.env: METASPEC_REPOSITORY is not in UTF-8; save the file"),
        ("METASPEC_PORT=9000\n".encode("utf-16-le"), r"\.env: expected text in UTF-8, got null characters"),
        (b"\xff\xfeA\0B", r"\.env: begins as UTF-16-LE, but is not: truncated data"),
    ],
)
def test_other_encodings_are_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        settings()


def test_a_folder_of_that_name_is_no_file_of_settings(folder: Path) -> None:
    (folder / ".env").mkdir()
    assert settings().port == 8000


@pytest.mark.parametrize(
    ("value", "host", "allowed"),
    [
        ("auto", "127.0.0.1", True),
        ("auto", "::1", True),
        ("auto", "localhost", True),
        ("auto", "0.0.0.0", False),
        ("auto", "server.example", False),
        ("on", "0.0.0.0", True),
        ("true", "0.0.0.0", True),
        ("off", "127.0.0.1", False),
        ("False", "127.0.0.1", False),
    ],
)
def test_who_may_control_models(monkeypatch: pytest.MonkeyPatch, value: str, host: str, allowed: bool) -> None:
    monkeypatch.setenv("METASPEC_MODEL_CONTROL", value)
    assert settings(host=host).allows_control == allowed
    with_keys = settings(host=host, api_keys=Path("keys"))
    assert with_keys.allows_control == (allowed or value == "auto")


def test_a_value_of_model_control_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASPEC_MODEL_CONTROL", "perhaps")
    with pytest.raises(ValidationError, match="expected auto, on or off, got 'perhaps'"):
        settings()


V2 = "31 24 0:27 {root} {mount} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} {mount} rw,relatime shared:10 master:4 - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = "24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n40 31 0:37 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"


@pytest.mark.parametrize(
    ("mountinfo", "root", "groups", "quotas", "expected"),
    [
        pytest.param(V2, "/", "0::/\n", {"": "150000 100000"}, 1.5, id="container"),
        pytest.param(V2, "/", "0::/\n", {"": "max 100000"}, None, id="container without a limit"),
        pytest.param(
            V2,
            "/",
            "0::/system.slice/metaspec.service\n",
            {"system.slice/metaspec.service": "100000 100000"},
            1,
            id="unit",
        ),
        pytest.param(
            V2, "/", "0::/a.slice/b\n", {"a.slice/b": "max 100000", "a.slice": "100000 100000"}, 1, id="parent"
        ),
        pytest.param(V2, "/", "0::/a/b\n", {"a/b": "20000 100000", "a": "800000 100000"}, 1, id="part of a core"),
        pytest.param(V2, "/", "0::/../../other\n", {"": "100000 100000"}, 1, id="outside of its namespace"),
        pytest.param(V2, "/pod/one", "0::/pod/one\n", {"": "100000 100000"}, 1, id="bind mount"),
        pytest.param(
            V1, "/", "4:cpu,cpuacct:/a/b\n3:pids:/x\n", {"a/b": "-1 100000", "a": "100000 100000"}, 1, id="v1"
        ),
        pytest.param(V1, "/pod/one", "4:cpu,cpuacct:/pod/one\n0::/\n", {"": "50000 50000"}, 1, id="v1 container"),
        pytest.param(V1, "/", "4:cpuset:/a\n", {"a": "100000 100000"}, None, id="another controller"),
    ],
)
def test_quotas_of_control_groups(
    tmp_path: Path, mountinfo: str, root: str, groups: str, quotas: dict[str, str], expected: float | None
) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(OTHER + mountinfo.format(root=root, mount=mount))
    for group, text in quotas.items():
        (mount / group).mkdir(parents=True, exist_ok=True)
        if mountinfo is V2:
            (mount / group / "cpu.max").write_text(text + "\n")
        else:
            for name, number in zip(("quota", "period"), text.split(), strict=True):
                (mount / group / f"cpu.cfs_{name}_us").write_text(number + "\n")
    everything = len(os.sched_getaffinity(0))
    assert usable_cores(proc) == (everything if expected is None else min(everything, int(expected)))
