"""Figures in documents name the model that they were measured on, by the hash of its network.

It is that of the bundled model, or the document says of which earlier version they are.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from metaspec_contract.model import METADATA_KEY, parse_metadata
from metaspec_server.settings import bundled_repository

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/export.md",
    "docs/inverse-design.md",
    "docs/jobs.md",
    "docs/mcp.md",
    "docs/server.md",
    "docs/studio.md",
    "docs/training.md",
    "docs/trust.md",
)
MENTION = re.compile(r"`(diffractionnet\w*)` ([0-9a-f]{12})\b")
MEASURED = re.compile(r"benchmarks/(?:speedup|serving_bench|studio|design_bench|trust|gradients|invrs_check)\.py")
EARLIER = re.compile(r"network of step \d|version 1 of `diffractionnet")  # said to be another one


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    """First 12 digits of the SHA-256 of each bundled model's network, by name."""
    found = {}
    for path in bundled_repository().glob("*/*/model.onnx"):
        model = onnx.load(path)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert METADATA_KEY in properties
        metadata = parse_metadata(properties)
        found[metadata.name] = str((metadata.model_extra or {})["network_sha256"])[:12]
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_figures_are_of_the_bundled_models(document: str, hashes: dict[str, str]) -> None:
    mentions = MENTION.findall((ROOT / document).read_text())
    assert mentions or EARLIER.search((ROOT / document).read_text()), f"{document} has figures: of which model?"
    for name, digits in mentions:
        assert hashes[name] == digits, f"{document}: figures of `{name}` are of {digits}, bundled is {hashes[name]}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_section_of_measurements_names_its_model(document: str) -> None:
    for section in re.split(r"^## ", (ROOT / document).read_text(), flags=re.MULTILINE):
        if MEASURED.search(section):
            title = section.partition("\n")[0]
            assert MENTION.search(section) or EARLIER.search(section), f"{document}, {title}: measured on which model?"
