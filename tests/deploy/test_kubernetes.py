"""deploy/kubernetes and deploy/kserve: against the schemas of Kubernetes' API, against each other, and with the real server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from metaspec_server.settings import bundled_repository
from metaspec_testing.deploy import DEPLOY, listening_server, shutdown_seconds, value_of, wait_until_ready
from metaspec_testing.distributions import read_project
from metaspec_testing.servers import RunningServer, free_port

KUBERNETES = DEPLOY / "kubernetes"
KUBECTL = shutil.which("kubectl")
VERSION = "1.30"

Document = dict[str, Any]


def closed(**properties: Any) -> Document:
    """Schema of an object that has these properties alone."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
ANY: Document = {}
LABELS = {"type": "object", "additionalProperties": TEXT}

CUSTOM = {
    # The fields that we use of prometheus-operator's CRD monitoring.coreos.com_servicemonitors.yaml (v0.85).
    "ServiceMonitor": closed(
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind=TEXT,
        metadata=closed(name=TEXT, labels=LABELS),
        spec=closed(
            selector=closed(matchLabels=LABELS),
            endpoints={
                "type": "array",
                "items": closed(port=TEXT, path=TEXT, interval={"type": "string", "pattern": r"^\d+s$"}),
            },
        ),
    ),
    # The same of KServe's CRD serving.kserve.io_inferenceservices.yaml (v0.16); a predictor has the fields of a pod, too,
    # which are checked as such.
    "InferenceService": closed(
        apiVersion={"const": "serving.kserve.io/v1beta1"},
        kind=TEXT,
        metadata=closed(name=TEXT, annotations=LABELS),
        spec=closed(
            predictor=closed(
                minReplicas=WHOLE,
                maxReplicas=WHOLE,
                terminationGracePeriodSeconds=WHOLE,
                automountServiceAccountToken=TRUTH,
                enableServiceLinks=TRUTH,
                securityContext=ANY,
                tolerations=ANY,
                containers={"type": "array", "maxItems": 1},
                model=closed(
                    modelFormat=closed(name=TEXT),
                    protocolVersion={"enum": ["v1", "v2", "grpc-v2"]},
                    storageUri={"type": "string", "pattern": "^pvc://"},
                    args={"type": "array", "items": TEXT},
                    resources=ANY,
                ),
            )
        ),
    ),
}


def read(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def files() -> Iterator[Path]:
    """All manifests but Kustomize's own files, patches, and values for Helm."""
    for path in sorted([*KUBERNETES.rglob("*.yaml"), *(DEPLOY / "kserve").glob("*.yaml")]):
        if path.name not in ("kustomization.yaml", "prometheus-adapter.yaml") and not path.name.startswith("front"):
            yield path


def check(document: Document) -> None:
    """Check a document against the schema of its kind; unknown fields are refused."""
    if document["kind"] in CUSTOM:
        jsonschema_rs.validate(CUSTOM[document["kind"]], document)
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


def pod_of_predictor(document: Document) -> Document:
    """The pod of an InferenceService of our own, as a document."""
    predictor = {key: value for key, value in document["spec"]["predictor"].items() if not key.endswith("Replicas")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": predictor}


@pytest.mark.parametrize("path", list(files()), ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_a_manifest_fits_the_schema(path: Path) -> None:
    for document in read(path):
        check(document)
        if document["kind"] == "InferenceService" and "containers" in document["spec"]["predictor"]:
            check(pod_of_predictor(document))


def test_the_check_finds_mistakes() -> None:
    deployment, monitor = read(KUBERNETES / "base/deployment.yaml")[0], read(KUBERNETES / "triton/monitor.yaml")[0]
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        check(deployment)
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    with pytest.raises(jsonschema_rs.ValidationError, match="intervall"):
        check(monitor)


@pytest.fixture(scope="module", params=["base", "triton"])
def rendered(request: pytest.FixtureRequest) -> list[Document]:
    """What `kubectl apply -k` would send."""
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    command = [KUBECTL, "kustomize", str(KUBERNETES / request.param)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return list(yaml.safe_load_all(text))


def workloads(documents: list[Document]) -> dict[str, Document]:
    """Pod templates, by name."""
    return {d["metadata"]["name"]: d["spec"]["template"] for d in documents if d["kind"] in ("Deployment", "Job")}


def test_what_kustomize_makes_fits_the_schemas(rendered: list[Document]) -> None:
    for document in rendered:
        check(document)


def test_the_parts_fit_each_other(rendered: list[Document]) -> None:
    pods = workloads([d for d in rendered if d["kind"] == "Deployment"])
    named = {(d["kind"], d["metadata"]["name"]) for d in rendered}
    services = {d["metadata"]["name"]: d for d in rendered if d["kind"] == "Service"}

    def selected(selector: dict[str, str]) -> Document:
        (pod,) = [pod for pod in pods.values() if selector.items() <= pod["metadata"]["labels"].items()]
        return pod

    def ports(pod: Document) -> set[str]:
        return {port["name"] for port in pod["spec"]["containers"][0]["ports"]}

    for document in rendered:
        kind, spec = document["kind"], document["spec"]
        if kind == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports(selected(spec["selector"]))
        elif kind in ("Deployment", "PodDisruptionBudget"):
            selected(spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            rules = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            assert set(rules) <= ports(selected(spec["podSelector"]["matchLabels"]))
        elif kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            assert (target["kind"], target["name"]) in named
            (deployment,) = [
                d for d in rendered if (d["kind"], d["metadata"]["name"]) == (target["kind"], target["name"])
            ]
            assert "replicas" not in deployment["spec"], "applying it again would undo the autoscaler's number"
        elif kind == "ServiceMonitor":
            (service,) = [
                s
                for s in services.values()
                if spec["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()
            ]
            assert spec["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for pod in workloads(rendered).values():
        for volume in pod["spec"].get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in named
        mounted = {mount["name"] for mount in pod["spec"]["containers"][0].get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod["spec"].get("volumes", [])}
    if "triton" in pods:
        host, port = value_of("--triton-url", pods["metaspec"]["spec"]["containers"][0]["args"]).split(":")
        assert services[host]["spec"]["clusterIP"] == "None", "the front balances, and needs all addresses"
        assert int(port) in {one["port"] for one in services[host]["spec"]["ports"]}


def own_pods() -> dict[str, Document]:
    """Pods of the manifests, by file and name."""
    found = {}
    for path in [*files(), KUBERNETES / "triton/front.yaml"]:
        for document in read(path):
            if document["kind"] in ("Deployment", "Job"):
                found[f"{path.name} {document['metadata']['name']}"] = document["spec"]["template"]["spec"]
            elif document["kind"] == "InferenceService" and "containers" in document["spec"]["predictor"]:
                found[f"{path.parent.name}/{path.name}"] = document["spec"]["predictor"]
    return found


@pytest.mark.parametrize("name", [name for name in own_pods() if not name.startswith("front")])
def test_a_pod_has_no_rights_and_time_to_shut_down(name: str) -> None:
    pod = own_pods()[name]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    if "args" not in container:  # a job
        return
    if container["name"] == "triton":
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        needed = pause + float(value_of("--exit-timeout-secs", container["args"]))
    else:
        needed = shutdown_seconds(container["args"])
        readiness = container["readinessProbe"]
        assert float(value_of("--shutdown-delay", container["args"])) >= 2 * readiness["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] >= needed + 5
    paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert paths[1:] == ["/v2/health/ready", "/v2/health/live"]


def test_the_images_are_of_this_version() -> None:
    version = read_project("server")["version"]
    for folder in ("base", "triton"):
        (kustomization,) = read(KUBERNETES / folder / "kustomization.yaml")
        assert {image["name"]: image["newTag"] for image in kustomization["images"]} == {"metaspec": version}
    (service,) = read(DEPLOY / "kserve/metaspec.yaml")
    assert service["spec"]["predictor"]["containers"][0]["image"] == f"metaspec:{version}"
    (deployment, _) = read(KUBERNETES / "triton/triton.yaml")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"].startswith("nvcr.io/nvidia/tritonserver:")


@pytest.mark.parametrize("name", ["deployment.yaml metaspec", "kserve/metaspec.yaml", "front.yaml metaspec"])
def test_the_server_runs_with_these_arguments(name: str, small_repository: Path) -> None:
    (container,) = own_pods()[name]["containers"]
    arguments = container["args"]
    port = value_of("--port", arguments)
    assert value_of("--host", arguments) == "0.0.0.0"
    assert name.startswith("front") or int(port) == container["ports"][0]["containerPort"]
    here = {f"--port={port}": "--port=0", "--host=0.0.0.0": "--host=127.0.0.1", "--grpc-port=8001": "--grpc-port=0"}
    repository = value_of("--repository", arguments)
    assert repository in ("", "/models", "/mnt/models")
    here[f"--repository={repository}"] = f"--repository={small_repository}"
    here["--triton-url=triton:8001"] = f"--triton-url=127.0.0.1:{free_port()}"
    run = [here.get(argument, argument) for argument in arguments]
    with listening_server([*run, f"--repository={small_repository}"]) as client:
        assert client.get("/v2/health/live").status_code == 200
        if value_of("--engine", arguments) == "triton":  # there is none, which it survives
            assert client.get("/v2/health/ready").status_code == 503
        else:
            wait_until_ready(client)


def test_the_job_copies_the_models(tmp_path: Path) -> None:
    command = own_pods()["repository.yaml metaspec-repository"]["containers"][0]["command"]
    here = [sys.executable, *(part.replace('"/models"', repr(str(tmp_path / "models"))) for part in command[1:])]
    for _ in range(2):  # a volume that has them already
        subprocess.run(here, check=True, timeout=120)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        path.name for path in bundled_repository().iterdir()
    }


def test_the_metrics_of_autoscalers_exist(server: RunningServer) -> None:
    (adapter,) = read(KUBERNETES / "monitoring/prometheus-adapter.yaml")
    rules = {rule["name"]["as"]: rule for rule in adapter["rules"]["custom"]}
    for path in (KUBERNETES / "monitoring/autoscaler.yaml", KUBERNETES / "triton/autoscaler.yaml"):
        (autoscaler,) = read(path)
        for metric in autoscaler["spec"]["metrics"]:
            assert metric["pods"]["metric"]["name"] in rules
    exposed = {line.split("{")[0].split(" ")[0] for line in server.get("/metrics").text.splitlines()}
    queries = rules["metaspec_queue_seconds"]["metricsQuery"] + rules["metaspec_queue_seconds"]["seriesQuery"]
    names = set(re.findall(r"\bmetaspec_\w+", queries))
    assert names == {"metaspec_queue_seconds_sum", "metaspec_queue_seconds_count"}
    assert names <= exposed
