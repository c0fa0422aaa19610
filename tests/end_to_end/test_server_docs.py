"""The examples of docs/server.md, run as they stand against the bundled models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metaspec_testing.servers import RunningServer

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
pytestmark = pytest.mark.slow

EXAMPLES = re.findall(r"```(sh|python)\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def outputs(bundled: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("docs")
    found = []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"URL": bundled.url, "GRPC": bundled.grpc_address, "PATH": path}
    for language, text in EXAMPLES:
        command = ["bash", "-ec", text] if language == "sh" else [sys.executable, "-c", text]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{text}\n{result.stderr}"
        found.append(result.stdout)
    return found


def output_of(outputs: list[str], start: str) -> str:
    return next(out for (_, text), out in zip(EXAMPLES, outputs, strict=True) if start in text)


def test_predict(outputs: list[str]) -> None:
    assert output_of(outputs, "spectra.npy").strip() == "(8, 4, 301)"


def test_a_choice_of_channels_and_wavelengths(outputs: list[str]) -> None:
    answer = json.loads(output_of(outputs, "channels=B"))
    assert answer["model"] == "diffractionnet_int8"
    assert answer["channels"] == ["B", "R"]
    assert answer["wavelengths_nm"] == [450, 625.5]
    assert len(answer["spectra"]) == 8


def test_an_error(outputs: list[str]) -> None:
    assert json.loads(output_of(outputs, "[[0, 1], [1, 2]]"))["field"] == "structures"


def test_gradient(outputs: list[str]) -> None:
    assert output_of(outputs, "question.npy").strip() == "(8, 4, 301) (8, 128, 128)"


def test_every_setting_is_documented() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "metaspec_server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = set(re.findall(r"--(?:no-)?[a-z-]+", help_text)) - {"--help"}
    documented = set(re.findall(r"--[a-z-]+", DOCS.read_text()))
    hidden = {flag for flag in flags if flag.replace("--no-", "--") in documented or f"--no-{flag[2:]}" in documented}
    assert flags - documented - hidden == set()
