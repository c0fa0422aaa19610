"""The examples of docs/contract.md print what the document says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import metaspec_contract
from metaspec_contract.detectors import BANDS_NM, CHANNELS, DETECTORS, QUADRANTS
from metaspec_contract.schemas import DOCUMENTS

TEXT = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.DOTALL)


def test_every_example_has_its_output() -> None:
    assert len(EXAMPLES) == TEXT.count("```python") == 6


@pytest.mark.parametrize(("example", "output"), EXAMPLES)
def test_examples(example: str, output: str) -> None:
    command = [sys.executable, "-c", example]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.stdout, result.stderr) == (output, "")


def test_the_table_of_detectors() -> None:
    for channel in CHANNELS:
        (colour,) = (colour for colour, detectors in DETECTORS.items() if channel in detectors)
        low, high = BANDS_NM[colour]
        assert f"| {channel} | {QUADRANTS[channel]} | {colour} | {low:g} to {high:g} |" in TEXT


def test_modules_and_schemas_are_named() -> None:
    folder = Path(metaspec_contract.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == modules
    for name in DOCUMENTS:
        assert f"`{name}`" in TEXT
