"""The workflow files: valid and safe as zizmor sees them, and in agreement with the Makefile and the pyproject.toml files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaspec_testing.distributions import PACKAGES, ROOT, read_project

WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return found


def zizmor(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-progress", "--strict-collection"]
    configured = [*command, "--config", str(ROOT / ".github/zizmor.yml"), *map(str, paths)]
    return subprocess.run(configured, capture_output=True, text=True, timeout=120, check=False)


def test_the_workflows_are_valid_and_safe() -> None:
    assert set(WORKFLOWS) == {"release", "tests"}
    result = zizmor(*WORKFLOWS.values())
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("runs-on: ubuntu-latest", "run-on: ubuntu-latest"),
        ("- run: make site", "- runs: make site"),
        ("- run: make site", '- run: echo "${{ github.head_ref }}"'),
        ("permissions:\n  contents: read", "permissions: write-all"),
        ("jobs:\n", "jobs:\n  - "),
    ],
    ids=["unknown key of a job", "unknown key of a step", "text from outside in a command", "permissions", "a list"],
)
def test_a_broken_workflow_is_found(before: str, after: str, tmp_path: Path) -> None:
    text = WORKFLOWS["tests"].read_text()
    assert before in text
    broken = tmp_path / ".github" / "workflows" / "tests.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text(text.replace(before, after, 1))
    assert zizmor(broken).returncode != 0


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_wait_for_jobs_that_exist_and_call_targets_that_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set()
    for job in jobs(name).values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= jobs(name).keys()
        for step in job["steps"]:
            called |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert called != set()
    assert called <= targets


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_supported_versions_of_python_are_tested(folder: str) -> None:
    tested = jobs("tests")["quick"]["strategy"]["matrix"]["python"]
    project = read_project(folder)
    prefix = "Programming Language :: Python :: "
    stated = [line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)]
    assert stated == tested
    assert project["requires-python"] == f">={tested[0]}"
    (python,) = (step["with"]["python-version"] for step in jobs("tests")["oldest"]["steps"] if "python" in str(step))
    assert python == tested[0]
