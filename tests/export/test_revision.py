"""Which revision a model names: a clean commit, a wheel's version, or none without permission."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import metaspec_export
from metaspec_contract.model import METADATA_KEY
from metaspec_export.metadata import properties
from metaspec_export.revision import UncleanSource, revision_of

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("code", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.py").write_text("first")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_a_clean_commit_has_a_name(clone: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", revision_of([clone / "code"]))
    (clone / "docs" / "file.py").write_text("second")  # not the code
    assert "dirty" not in revision_of([clone / "code"])


@pytest.mark.parametrize("name", ["file.py", "new.py"])
def test_uncommitted_code_is_refused_unless_allowed(clone: Path, name: str) -> None:
    clean = revision_of([clone / "code"])
    (clone / "code" / name).write_text("second")
    with pytest.raises(
        UncleanSource, match=rf"uncommitted changes \(code/{name}\).*commit them, or pass --allow-dirty"
    ):
        revision_of([clone / "code"])
    assert revision_of([clone / "code"], allow_dirty=True) == f"{clean}-dirty"


def test_code_that_is_nowhere_committed_is_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(UncleanSource, match=r"is not in a git clone.*pass --allow-dirty"):
        revision_of([tmp_path])
    assert revision_of([tmp_path], allow_dirty=True) == "unknown"


def test_a_wheel_names_its_version(tmp_path: Path) -> None:
    shutil.copytree(Path(str(metaspec_export.__file__)).parent, tmp_path / "metaspec_export")
    information = tmp_path / "metaspec_lab-9.8.7.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: metaspec-lab\nVersion: 9.8.7\n")
    program = "from metaspec_export.revision import source_revision; print(source_revision())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "metaspec-lab 9.8.7\n", result.stderr


def test_bundled_models_come_from_a_named_clean_revision() -> None:
    files = sorted((ROOT / "server" / "models").glob("*/*/model.onnx"))
    assert files
    for file in files:
        revision = json.loads(properties(onnx.load(file))[METADATA_KEY])["source_revision"]
        assert revision
        assert revision != "unknown"
        for text in (revision, file.with_name("MODEL_CARD.md").read_text()):
            assert "-dirty" not in text, file
