"""Requests that Schemathesis makes up from the OpenAPI document, against the real server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from metaspec_testing.servers import RunningServer


@pytest.fixture(scope="module")
def document(server: RunningServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


# All but loading and unloading models, which would affect the other tests.
ROUTES = {
    "/predict": "POST",
    "/gradient": "POST",
    "/gdsii/read": "POST",
    "/gdsii/write": "POST",
    "/contract": "GET",
    "/metrics": "GET",
    "/v2": "GET",
    "/v2/health/live": "GET",
    "/v2/health/ready": "GET",
    "/v2/models/{model}": "GET",
    "/v2/models/{model}/config": "GET",
    "/v2/models/{model}/ready": "GET",
    "/v2/models/{model}/infer": "POST",
    "/v2/models/{model}/versions/{version}": "GET",
    "/v2/models/{model}/versions/{version}/config": "GET",
    "/v2/models/{model}/versions/{version}/ready": "GET",
    "/v2/models/{model}/versions/{version}/infer": "POST",
    "/v2/repository/index": "POST",
}
GOOD, BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [(path, GOOD) for path in ROUTES] + [
    (path, BAD) for path in ("/predict", "/gradient", "/gdsii/write", "/v2/models/{model}/infer")
]


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_every_answer_is_one_that_the_document_promises(
    document: schemathesis.BaseSchema, path: str, mode: schemathesis.GenerationMode
) -> None:
    method = ROUTES[path]
    operation = document[path][method]
    checks = [not_a_server_error, content_type_conformance, status_code_conformance]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=checks)

    ask()


def test_documentation_lists_every_route(server: RunningServer) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {
        "/predict",
        "/gradient",
        "/gdsii/read",
        "/gdsii/write",
        "/contract",
        "/metrics",
        "/v2",
        "/v2/health/ready",
        "/v2/models/{model}/infer",
    } <= paths.keys()
    assert {"/v2/repository/index", "/v2/repository/models/{model}/load"} <= paths.keys()
    for path in ("/predict", "/gradient"):
        content = paths[path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "application/x-npy", "application/octet-stream"}
