"""What is exposed to Prometheus, and the dashboard and alerts that are made of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model, write_repository

DOCS = Path(__file__).parents[2] / "docs"
ALERTS, DASHBOARD = DOCS / "alerts.yaml", DOCS / "grafana.json"
WEIGHTS = "0123456789ab" * 5 + "cdef"

TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""

WORDS = {"sum", "max", "min", "count", "rate", "increase", "changes", "histogram_quantile", "by", "on", "group_left"}
"""Functions and keywords of PromQL."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that nobody has asked for anything, with a version that cannot be loaded."""
    root = write_repository(tmp_path_factory.mktemp("repository"), small_model(METADATA | {"weights_sha256": WEIGHTS}))
    write_repository(root, small_gradient_model())
    (root / "diffractionnet" / "7").mkdir()
    with running_server("--repository", str(root)) as server:
        yield server


@pytest.fixture(scope="module")
def samples(untouched: RunningServer) -> list[Sample]:
    """The samples of its second scrape: the first one is a request, which is counted."""
    untouched.get("/metrics")
    text = untouched.get("/metrics").text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


@pytest.fixture(scope="module")
def labels(samples: list[Sample]) -> dict[str, set[str]]:
    """Labels of each metric."""
    found: dict[str, set[str]] = {"up": set()}
    for sample in samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def values(samples: list[Sample], name: str, **wanted: str) -> list[float]:
    return [s.value for s in samples if s.name == name and wanted.items() <= s.labels.items()]


@pytest.mark.parametrize("model", ["diffractionnet", "diffractionnet_vjp"])
def test_counters_exist_before_anything_happens(samples: list[Sample], model: str) -> None:
    for name in ("engine_errors", "engine_restarts", "structures", "cache_hits", "cache_misses"):
        assert values(samples, f"metaspec_{name}_total", model=model) == [0], name
    for name in ("queue_seconds", "compute_seconds", "batch_size"):
        assert values(samples, f"metaspec_{name}_count", model=model) == [0], name
    assert values(samples, "metaspec_load_failures_total", model=model) == [1 if model == "diffractionnet" else 0]


def test_requests_are_counted_from_zero(samples: list[Sample]) -> None:
    for route in ("/predict", "/gradient", "/v2/models/{model}/infer"):
        for status in ("200", "500", "503", "504"):
            assert values(samples, "metaspec_requests_total", route=route, status=status) == [0]
    assert values(samples, "metaspec_requests_total", route="/metrics", status="200") == [1]


UNDOCUMENTED = {"/", "/docs", "/openapi.json", "/static/{path:path}"}
"""Routes that the OpenAPI document does not have."""


def test_every_route_is_counted_from_zero(samples: list[Sample], untouched: RunningServer) -> None:
    documented = untouched.get("/openapi.json").json()["paths"]
    assert {
        "/v2/logging",
        "/v2/models/{model}/trace/setting",
        "/v2/repository/models/{model}/load",
    } <= documented.keys()
    for route in UNDOCUMENTED | documented.keys():
        assert values(samples, "metaspec_requests_total", route=route, status="200") == [route == "/metrics"], route
        assert values(samples, "metaspec_requests_total", route=route, status="500") == [0], route
        for operation in documented.get(route, {}).values():
            for status in operation["responses"]:
                assert status < "500" or values(samples, "metaspec_requests_total", route=route, status=status) == [0]
    counted = {sample.labels["route"] for sample in samples if sample.name == "metaspec_requests_total"}
    assert {route for route in counted if not route.startswith("/inference.") and not route.startswith("/grpc.")} == {
        *UNDOCUMENTED,
        *documented,
        "unknown",
    }


def test_each_request_is_counted_under_the_template_of_its_path(
    samples: list[Sample], untouched: RunningServer
) -> None:
    """The fixture with what was counted before anything was asked comes first."""
    asked = [
        ("GET", "/", "/", 200),
        ("GET", "/docs", "/docs", 200),
        ("GET", "/openapi.json", "/openapi.json", 200),
        ("GET", "/static/page.js", "/static/{path:path}", 200),
        ("GET", "/static/no/such.js", "/static/{path:path}", 404),
        ("PUT", "/static/page.js", "/static/{path:path}", 405),
        ("HEAD", "/contract", "/contract", 200),
        ("GET", "/v2/logging/", "/v2/logging", 200),
        ("POST", "/v2/logging", "/v2/logging", 200),
        ("DELETE", "/v2/logging", "/v2/logging", 405),
        ("GET", "/v2/trace/setting", "/v2/trace/setting", 200),
        ("GET", "/v2/models/diffractionnet/trace/setting", "/v2/models/{model}/trace/setting", 200),
        ("GET", "/v2/models/stats", "/v2/models/stats", 200),
        ("GET", "/v2/models/diffractionnet/stats", "/v2/models/{model}/stats", 200),
        ("GET", "/v2/models/none", "/v2/models/{model}", 404),
        ("POST", "/v2/models/none/infer", "/v2/models/{model}/infer", 404),
        ("POST", "/v2/models/m/versions/9/infer", "/v2/models/{model}/versions/{version}/infer", 404),
        ("POST", "/v2/repository/index", "/v2/repository/index", 200),
        ("POST", "/v2/repository/models/none/load", "/v2/repository/models/{model}/load", 404),
        ("GET", "/v2/systemsharedmemory/region/r/status", "/v2/systemsharedmemory/region/{name}/status", 404),
        ("POST", "/v2/cudasharedmemory/unregister", "/v2/cudasharedmemory/unregister", 200),
        ("POST", "/predict", "/predict", 415),
        ("GET", "/no/such/path", "unknown", 404),
    ]

    def counts() -> Counter[tuple[str, str]]:
        text = untouched.get("/metrics").text
        return Counter(
            {
                (sample.labels["route"], sample.labels["status"]): int(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "metaspec_requests_total" and sample.labels["route"] != "/metrics"
            }
        )

    before = counts()
    with untouched.client() as client:
        for method, path, _, status in asked:
            assert client.request(method, path).status_code == status, path
    assert counts() - before == Counter((route, str(status)) for _, _, route, status in asked)


def test_the_process_and_its_build(samples: list[Sample], untouched: RunningServer) -> None:
    (memory,) = values(samples, "process_resident_memory_bytes")
    assert memory == pytest.approx(untouched.resident_bytes, rel=0.2)
    assert values(samples, "process_cpu_seconds_total") > [0]
    assert values(samples, "process_open_fds") > [0]
    (build,) = [sample for sample in samples if sample.name == "metaspec_build_info"]
    assert build.labels == {"version": version("metaspec-server"), "onnxruntime": version("onnxruntime")}
    assert values(samples, "metaspec_model_info", model="diffractionnet", version="1", weights=WEIGHTS[:12]) == [1]
    assert values(samples, "metaspec_model_info", model="diffractionnet_vjp", version="1") == [1]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


EXPRESSIONS = [rule["expr"] for rule in alerts()] + [
    target["expr"] for panel in panels() for target in panel["targets"]
]


def matchers(selector: str) -> set[str]:
    """Labels that a selector names between its braces."""
    return set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector))


def grouped(expression: str) -> set[str]:
    """Labels that an expression groups or matches by."""
    return {
        name for clause in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for name in re.findall(r"\w+", clause)
    }


def metrics_in(expression: str) -> list[tuple[str, str]]:
    """Metrics that an expression selects, each with its matchers."""
    plain = re.sub(r"\[[^\]]*\]", "", expression)
    plain = re.sub(r"\b(by|on)\s*\([^)]*\)", "", plain)
    return [(name, braces) for name, braces in re.findall(r"([a-zA-Z_]\w*)(\{[^}]*\})?", plain) if name not in WORDS]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_name_metrics_and_labels_that_the_server_has(labels: dict[str, set[str]], expression: str) -> None:
    known = set(TARGET)
    found = metrics_in(expression)
    assert found
    for metric, selector in found:
        assert metric in labels, expression
        assert matchers(selector) <= labels[metric] | TARGET, expression
        known |= labels[metric]
    assert grouped(expression) <= known, expression


def test_an_expression_of_something_else_would_be_noticed(labels: dict[str, set[str]]) -> None:
    for wrong in ('rate(metaspec_requests{status="5"}[5m])', 'sum by (le) (metaspec_typo_total{model=~"$model"})'):
        assert any(metric not in labels for metric, _ in metrics_in(wrong))
    assert matchers('{status=~"5..", status!="503", rout="x"}') == {"status", "rout"}


def test_alerts_are_complete(labels: dict[str, set[str]]) -> None:
    assert len(alerts()) > 10
    assert max(Counter(rule["alert"] for rule in alerts()).values()) == 1
    for rule in alerts():
        name = rule["alert"]
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}, name
        assert re.fullmatch(r"Metaspec([A-Z][a-z]+)+", name)
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0m")), name
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"].keys() == {"summary", "description"}, name
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        kept = grouped(rule["expr"]) or labels[metrics_in(rule["expr"])[0][0]] | TARGET
        assert used <= kept, f"{name}: {used - kept} are not in what it finds"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_alerts_fire_when_they_should() -> None:
    for check in (("check", "rules", ALERTS), ("test", "rules", Path(__file__).with_name("alerts_test.yaml"))):
        result = subprocess.run(
            ["promtool", *map(str, check)], capture_output=True, text=True, timeout=240, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_panels_of_the_dashboard_fit_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert max(Counter(panel["id"] for panel in panels()).values()) == 1
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) <= variables
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, f"{panel['title']} lies on another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] in ("timeseries", "table")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        names = {
            name for target in panel["targets"] for name in re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))
        }
        aggregated = set().union(*(grouped(target["expr"]) for target in panel["targets"]))
        assert names <= (aggregated or TARGET), panel["title"]
