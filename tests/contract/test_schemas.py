from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from metaspec_contract.model import gradient_model
from metaspec_contract.process import Process
from metaspec_contract.schemas import DOCUMENTS, json_schema
from metaspec_testing.small_models import METADATA

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"

Document = dict[str, Any]


def validator(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def test_the_committed_schemas_are_those_of_the_classes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaspec_contract.schemas", str(tmp_path / "new")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    written = sorted((tmp_path / "new").iterdir())
    assert printed.split() == [str(tmp_path / "new" / f"{name}.schema.json") for name in DOCUMENTS]
    assert [path.name for path in written] == sorted(path.name for path in SCHEMAS.iterdir())
    for path in written:
        assert path.read_text() == (SCHEMAS / path.name).read_text(), f"run: {' '.join(command[:3])} docs/schemas"


def test_usage() -> None:
    command = [sys.executable, "-m", "metaspec_contract.schemas"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode != 0
    assert result.stderr == "usage: python -m metaspec_contract.schemas FOLDER\n"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_schemas(name: str) -> None:
    schema = json_schema(name)
    jsonschema_rs.Draft202012Validator(schema)
    assert jsonschema_rs.meta.is_valid(schema)
    assert schema["$id"] == f"urn:metaspec:{name}"
    assert schema["title"] == DOCUMENTS[name].__name__
    for part in (schema, *schema["$defs"].values()):
        assert "Attributes:" not in part["description"]
    process = schema["$defs"]["Process"]
    assert [*process["required"], "pixels"] == list(Process.model_fields)
    assert process["properties"]["pixels"]["default"] == 128


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"schema_version": 1},
        {
            "schema_version": 3,
            "conditions": [
                {"name": "distance_um", "unit": "um", "low": 1, "high": 3, "default": 2.5},
                {"name": "incidence", "unit": "degrees", "low": -20, "high": 20, "default": [0, 0], "size": 2},
            ],
        },
        {"name": gradient_model(METADATA["name"]), "kind": "vjp"},
        {"channels": [*METADATA["channels"], "spread"], "forward_passes": 4, "merged_greens": True},
        {"training": {"network": "Net", "parameters": 7, "preset": "field", "data": [{"name": "old"}]}},
        {"metrics": {"mae": 0.006}},
    ],
)
def test_metadata(change: Document) -> None:
    document = METADATA | change
    assert DOCUMENTS["model-metadata-3"].model_validate_json(json.dumps(document))
    validator("model-metadata-3").validate(document)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 4},
        {"conditions": [{"name": "distance_um", "unit": "um", "low": 1, "high": 3, "default": "2.5"}]},
        {"kind": "inverse"},
        {"channels": []},
        {"wavelengths_nm": ["400", "500"]},
        {"process": {name: value for name, value in METADATA["process"].items() if name != "distance_um"}},
        {"process": METADATA["process"] | {"tilt": 3}},
        {"process": METADATA["process"] | {"period_um": 0}},
        {"input": {"name": "structure", "solid": 1}},
    ],
)
def test_metadata_that_are_refused(change: Document) -> None:
    assert not validator("model-metadata-3").is_valid(METADATA | change)


def test_reports(report: Document, verified: Document) -> None:
    for name, document in (("report-1", report), ("verify-1", verified)):
        parsed = DOCUMENTS[name].model_validate(document)
        validator(name).validate(document)
        validator(name).validate(parsed.model_dump(mode="json"))
        assert not validator(name).is_valid(document | {"author": "me"})
        assert not validator(name).is_valid({key: value for key, value in document.items() if key != "process"})
