"""deploy/: systemd, nginx and Compose, and the Dockerfile: each command line is run as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme
import yaml

from metaspec_testing.deploy import DEPLOY, ROOT, listening_server, shutdown_seconds, value_of
from metaspec_testing.nginx import NGINX, running_nginx
from metaspec_testing.servers import RunningServer, free_port, running_server
from metaspec_testing.small_models import Array, Expected
from metaspec_testing.triton import PACKAGES

UNIT = DEPLOY / "systemd" / "metaspec.service"
ANALYZE = shutil.which("systemd-analyze")
TRITON = PACKAGES / "pytriton" / "tritonserver"


def unit() -> dict[str, list[str]]:
    """Values of the unit, by name."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def start_of_unit() -> list[str]:
    (command,) = unit()["ExecStart"]
    return shlex.split(command)


def test_the_unit_has_time_to_shut_down() -> None:
    assert float(unit()["TimeoutStopSec"][0]) >= shutdown_seconds(start_of_unit()) + 5
    assert start_of_unit()[0] == "/opt/metaspec/bin/metaspec-serve"
    assert Path(value_of("--uds", start_of_unit())).parent.name == unit()["RuntimeDirectory"][0]


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert ANALYZE is not None
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(start_of_unit()[0], sys.executable))
    verified = subprocess.run([ANALYZE, "verify", copy], capture_output=True, text=True, check=True, timeout=60)
    assert not [line for line in verified.stderr.splitlines() if UNIT.name in line]
    rated = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--threshold=20", copy],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert rated.returncode == 0, rated.stdout[-500:]


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_in_front_of_the_unit(
    small_repository: Path, tmp_path: Path, structures: Array, expected: Expected
) -> None:
    """The unit's command on its Unix socket, and nginx with the configuration that names this socket."""
    text = (DEPLOY / "nginx" / "metaspec.conf").read_text()
    path = value_of("--uds", start_of_unit())
    assert f"server unix:{path} " in text
    here, port = str(tmp_path / "metaspec.sock"), free_port()
    text = text.replace(path, here).replace("listen 80;", f"listen 127.0.0.1:{port};")
    arguments = [argument.replace(path, here) for argument in start_of_unit()[1:]]
    (tmp_path / "nginx").mkdir()
    with (
        running_server("--repository", str(small_repository), *arguments) as server,
        running_nginx(tmp_path / "nginx", port, text),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        assert server.url == f"unix:{here}"
        assert client.get("/v2/health/ready").status_code == 200
        answer = client.post("/predict", json={"structures": structures.tolist()}).raise_for_status()
        np.testing.assert_allclose(answer.json()["spectra"], expected(structures), atol=1e-5)
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
        body = np.zeros((64, 128, 128), np.float64).tobytes()  # 8 MiB, more than nginx takes by itself
        assert client.post("/predict", content=body, headers={"Content-Type": "application/npy"}).status_code == 415
        assert client.get("/metrics").status_code == 200, "from this machine"
    limits = dict(re.findall(r"(client_max_body_size|client_body_timeout|proxy_read_timeout) (\d+)", text))
    assert limits == {"client_max_body_size": "512", "client_body_timeout": "30", "proxy_read_timeout": "75"}


def services(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["services"]
    return found


COMPOSE = DEPLOY / "compose" / "compose.yaml"


@pytest.mark.parametrize("path", [ROOT / "compose.yaml", COMPOSE], ids=["compose.yaml", "deploy/compose"])
def test_a_container_has_no_rights_and_time_to_shut_down(path: Path) -> None:
    service = services(path)["metaspec"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert float(service["stop_grace_period"].removesuffix("s")) >= shutdown_seconds(service.get("command", [])) + 5
    assert service["build"]["target"] == "cpu"
    assert (path.parent / service["build"]["context"]).resolve() == ROOT


def test_the_front_of_compose_runs(small_repository: Path) -> None:
    arguments = services(COMPOSE)["metaspec"]["command"]
    here = {"--port=8000": "--port=0", "--host=0.0.0.0": "--host=127.0.0.1"}
    here |= {"--repository=/models": f"--repository={small_repository}", "--grpc-port=8001": "--grpc-port=0"}
    here |= {"--triton-url=triton:8001": f"--triton-url=127.0.0.1:{free_port()}"}
    assert here.keys() <= set(arguments)
    with listening_server([here.get(argument, argument) for argument in arguments]) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503, "there is no Triton"


def test_what_compose_mounts_is_there() -> None:
    for service in services(COMPOSE).values():
        for volume in service.get("volumes", []):
            source = volume.replace("${MODELS:-../../server/models}", "../../server/models").split(":")[0]
            assert not source.startswith(".") or (COMPOSE.parent / source).exists(), volume
        for name in service.get("depends_on", []):
            assert name in services(COMPOSE)


def test_prometheus_and_grafana_of_compose_fit() -> None:
    prometheus = yaml.safe_load((COMPOSE.parent / "prometheus.yaml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
    assert targets == {"metaspec": ["metaspec:8000"], "triton": ["triton:8002"]}
    alerts = (ROOT / "docs" / "alerts.yaml").read_text()
    assert set(re.findall(r'job="(\w+)"', alerts)) <= targets.keys()
    mounted = [volume.split(":")[1] for volume in services(COMPOSE)["prometheus"]["volumes"]]
    assert f"/etc/prometheus/{prometheus['rule_files'][0]}" in mounted
    dashboards = yaml.safe_load((COMPOSE.parent / "grafana" / "dashboards.yaml").read_text())["providers"]
    assert any(
        volume.split(":")[1].startswith(dashboards[0]["options"]["path"])
        for volume in services(COMPOSE)["grafana"]["volumes"]
    )


def triton_commands() -> dict[str, list[str]]:
    """Arguments of tritonserver, by where they are given."""
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes/triton/triton.yaml").read_text()))
    kserve = yaml.safe_load((DEPLOY / "kserve/triton.yaml").read_text())["spec"]["predictor"]["model"]
    compose = services(COMPOSE)["triton"]["command"]
    assert compose[0] == "tritonserver"
    return {
        "kubernetes": deployment["spec"]["template"]["spec"]["containers"][0]["args"],
        "compose": compose[1:],
        "kserve": ["--model-repository=/models", *kserve["args"]],  # the first is KServe's
    }


@pytest.mark.triton
@pytest.mark.skipif(not TRITON.exists(), reason="Triton is not installed")
def test_triton_runs_with_these_arguments(tmp_path: Path) -> None:
    commands = triton_commands()
    assert commands["kubernetes"] == commands["compose"] == commands["kserve"]
    (tmp_path / "models").mkdir()
    here = [argument.replace("=/models", f"={tmp_path}/models") for argument in commands["kubernetes"]]
    here += [f"--cache-directory={TRITON}/caches", f"--backend-directory={TRITON}/backends"]
    here += ["--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"]
    port, log = free_port(), tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(TRITON / "bin" / "tritonserver"), *here, f"--http-port={port}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs")},
        )
    try:
        deadline = time.monotonic() + 120
        while not is_ready(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait(60)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60, trust_env=False).status_code == 200
    except httpx.ConnectError:
        return False


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def health(server: RunningServer) -> subprocess.CompletedProcess[str]:
    """The health check of the image, for a server that is not process 1."""
    match = re.search(r'^HEALTHCHECK .*CMD \["python", (.*)\]$', DOCKERFILE, re.MULTILINE)
    assert match
    command = [sys.executable, *(part.strip().strip('"') for part in match[1].split(",")), str(server.process.pid)]
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # which it must not ask
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=proxy)


def test_the_health_check_of_the_image(small_repository: Path, tmp_path: Path) -> None:
    with running_server("--repository", str(small_repository), f"--port={free_port()}") as server:
        healthy = health(server)
        assert (healthy.returncode, healthy.stdout) == (0, "status 200\n"), healthy.stderr
    authority = trustme.CA().issue_cert("metaspec.example")
    authority.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    flags = ["--uds", str(tmp_path / "s"), "--tls-cert", str(tmp_path / "both.pem")]
    with running_server("--repository", str(small_repository), *flags) as other:
        assert health(other).returncode == 0
        other.process.terminate()
        other.process.wait(60)
        dead = subprocess.run(
            [sys.executable, "-m", "metaspec_server.ops.health"], capture_output=True, text=True, timeout=60, check=False,
            env={"METASPEC_PORT": str(free_port())},
        )  # fmt: skip
        assert dead.returncode == 1
        assert dead.stdout.startswith("no answer: ")


def test_the_health_check_reads_what_the_server_reads(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file .env, but not what Kubernetes says of a service that is called metaspec."""
    (tmp_path / ".env").write_text(f"METASPEC_HOST=127.0.0.2\nMETASPEC_PORT={free_port()}\nOTHER=\xe9\n", "latin-1")
    monkeypatch.chdir(tmp_path)
    program = ("bash", "-c", 'exec "$0" -m metaspec_server "${@:3}"', sys.executable)  # without --port 0
    with running_server("--repository", str(small_repository), program=program) as server:
        assert server.url.startswith("http://127.0.0.2:")
        command = [sys.executable, "-m", "metaspec_server.ops.health", str(server.process.pid)]
        link = {"METASPEC_PORT": "tcp://10.0.0.1:8000", "METASPEC_SERVICE_HOST": "10.0.0.1"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=link, cwd="/")
        assert (result.returncode, result.stdout) == (0, "status 200\n"), result.stderr


def test_the_image() -> None:
    assert re.search(r'^ENTRYPOINT \["metaspec-serve"\]$', DOCKERFILE, re.MULTILINE)
    final = DOCKERFILE.split("FROM base AS cpu")[1]
    assert "COPY" not in final, "a copy of the wheels would hold the models a second time"
    assert final.count("USER 10001:10001") == 2
    for line in re.findall(r"docker run .*", DOCKERFILE):
        assert float(value_of("--stop-timeout", line.split())) >= shutdown_seconds([]) + 5
        assert "--read-only" in line
