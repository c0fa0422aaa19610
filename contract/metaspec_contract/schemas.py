"""JSON Schemas of the documents that MetaSpec writes: a model's metadata, `report.json` and `verify.json`.

    python -m metaspec_contract.schemas docs/schemas

regenerates them. They state fields and types; consistency between fields is checked only by the classes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from metaspec_contract.files import write_json
from metaspec_contract.model import ModelMetadata
from metaspec_contract.process import LATER
from metaspec_contract.run_folder import RunReport, VerifyReport

DOCUMENTS: dict[str, type[BaseModel]] = {
    "model-metadata-3": ModelMetadata,
    "report-1": RunReport,
    "verify-1": VerifyReport,
}
"""Classes of the documents, by name and version of the schema."""


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of one of `DOCUMENTS`."""
    schema = DOCUMENTS[name].model_json_schema()
    definitions = schema.get("$defs", {})
    for described in (schema, *definitions.values()):
        _describe(described)
    process = definitions["Process"]  # as `complete_process`: no defaults for missing fields
    process["required"] = [name for name in process["properties"] if name not in LATER]
    for field in process["required"]:
        process["properties"][field].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:metaspec:{name}", **schema}


def write_schemas(folder: Path) -> list[Path]:
    """Write all schemas as `NAME.schema.json`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.schema.json" for name in DOCUMENTS]
    for name, path in zip(DOCUMENTS, paths, strict=True):
        write_json(path, json_schema(name))
    return paths


def _describe(schema: dict[str, Any]) -> None:
    """Split a class's docstring into descriptions of the class and its fields."""
    text, _, attributes = schema.get("description", "").partition("\n\nAttributes:\n")
    schema["description"] = " ".join(text.split())
    for field in schema.get("properties", {}).values():
        field.pop("title", None)  # the field's name, once more
    name = ""
    for line in attributes.splitlines():
        if not line.startswith(" " * 8):  # a new field, not the continuation of the last one
            name, _, line = line.strip().partition(": ")
        field = schema["properties"][name]
        field["description"] = f"{field.get('description', '')} {line.strip()}".strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m metaspec_contract.schemas FOLDER")
    for written in write_schemas(Path(sys.argv[1])):
        print(written)
