"""Every block of docs/tutorial.md runs in order against the bundled models, and prints what the document says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metaspec_testing.servers import RunningServer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```(?:\n\n```text\n(.*?)```)?", TEXT, re.DOTALL)
PREPARED = [
    "make serve",
    "python3 -m venv env && . env/bin/activate",
    'pip install ./contract "./client[optimise]" ./lab',
]
"""What the fixture and the test environment stand for; tests/distributions installs each distribution."""

NUMBER = re.compile(r"\d*\.\d+")

pytestmark = pytest.mark.slow


def assert_printed(found: str, said: str) -> None:
    """The same text; decimals may differ by what processors and rounding change in a short optimisation."""
    assert NUMBER.sub("#", found) == NUMBER.sub("#", said)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, said)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)


def test_only_known_blocks_are_not_run() -> None:
    prepared = [line for kind, text, _ in BLOCKS if kind == "console" for line in text.splitlines()]
    assert prepared == [f"$ {command}" for command in PREPARED]
    assert {kind for kind, _, _ in BLOCKS} == {"console", "python", "sh"}


def test_the_tutorial(
    bundled: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"METASPEC_URL": bundled.url, "PATH": path}
    names: dict[str, Any] = {}
    for kind, text, said in BLOCKS:
        if kind == "python":
            exec(text.replace("http://127.0.0.1:8000", bundled.url), names)
            assert_printed(capsys.readouterr().out, said)
        elif kind == "sh":
            subprocess.run(["bash", "-ec", text], env=environment, check=True, capture_output=True)
    assert (tmp_path / "first" / "report.html").exists()
    assert names["value"][0] > 0.25
