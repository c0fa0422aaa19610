"""`make version` and `make release`: one version in all files, notes from the changelog, refusals, metadata, interruption."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from metaspec_testing.distributions import ROOT, Archives, build
from metaspec_testing.release import changelog, metadata, version
from metaspec_testing.release.__main__ import refuse_unready

CHANGELOG = """# Changelog

## Unreleased

## 1.1.0 - 2030-01-02

A paragraph of
two lines.

### Added

- One entry that
  goes on.
  - A list
    in it.
- Another one.

## 1.0.0

- The first.
"""
UNRELEASED = CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n### Fixed\n\n- A mistake.\n")


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_notes_are_the_section_with_paragraphs_on_one_line() -> None:
    assert changelog.notes(CHANGELOG, "1.1.0") == (
        "A paragraph of two lines.\n\n### Added\n\n- One entry that goes on.\n  - A list in it.\n- Another one.\n"
    )


def test_notes_need_a_section_and_nothing_unreleased() -> None:
    with pytest.raises(ValueError, match=re.escape("no section for version 1.2.0")):
        changelog.notes(CHANGELOG, "1.2.0")
    with pytest.raises(ValueError, match=re.escape("unreleased entries above version 1.1.0")):
        changelog.notes(UNRELEASED, "1.1.0")
    with pytest.raises(ValueError, match="each once"):
        changelog.notes(CHANGELOG + "\n## Next\n", "1.1.0")


def test_a_cut_makes_the_unreleased_entries_a_version() -> None:
    text = changelog.cut(UNRELEASED, "1.2.0", "2030-02-03")
    assert "\n## 1.2.0 - 2030-02-03\n" in text
    assert changelog.notes(text, "1.2.0") == "### Fixed\n\n- A mistake.\n"
    assert list(changelog.sections(text)) == ["Unreleased", "1.2.0", "1.1.0", "1.0.0"]
    with pytest.raises(ValueError, match="no unreleased entries"):
        changelog.cut(CHANGELOG, "1.2.0", "2030-02-03")
    with pytest.raises(ValueError, match="already has"):
        changelog.cut(UNRELEASED, "1.1.0", "2030-02-03")


def test_the_changelog_has_a_section_for_the_present_version() -> None:
    sections = changelog.sections((ROOT / "CHANGELOG.md").read_text())
    assert sections[version.current()]
    assert next(iter(sections)) == "Unreleased"


def test_one_version_is_stated_and_in_the_known_files_only() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    stating = {}
    for name in tracked.splitlines():
        states = name.endswith((".toml", ".yaml", ".yml", ".cff", ".md", "Dockerfile")) and "requirements/" not in name
        if states and (ROOT / name).exists():
            found = version.stated((ROOT / name).read_text())
            if found:
                stating[name] = found
    assert stating == {name: {version.current()} for name in version.FILES}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that state the version, and a changelog with something to release."""
    for name in version.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(UNRELEASED)
    return tmp_path


def test_a_new_version_reaches_every_file(copy: Path) -> None:
    before = version.current()
    version.change("97.0.1", "2030-02-03", copy)
    for name in version.FILES:
        text = (copy / name).read_text()
        assert version.stated(text) == {"97.0.1"}
        assert version.restated(text, before) == (ROOT / name).read_text()
    assert changelog.notes((copy / "CHANGELOG.md").read_text(), "97.0.1") == "### Fixed\n\n- A mistake.\n"


@pytest.mark.parametrize("wanted", ["", "98", "98.0", "98.0.0rc1", "v98.0.0", "0.0.1", version.current()])
def test_other_versions_are_refused_before_anything_is_written(wanted: str, copy: Path) -> None:
    with pytest.raises(ValueError, match=f"expected X.Y.Z above {version.current()}, got {wanted!r}"):
        version.change(wanted, "2030-02-03", copy)
    assert (copy / "CHANGELOG.md").read_text() == UNRELEASED
    assert all((copy / name).read_bytes() == (ROOT / name).read_bytes() for name in version.FILES)


def test_a_file_that_was_forgotten_is_named(copy: Path) -> None:
    citation = copy / "CITATION.cff"
    citation.write_text(version.restated(citation.read_text(), "0.0.7"))
    with pytest.raises(ValueError, match=re.escape("CITATION.cff: expected version")):
        version.change("97.0.1", "2030-02-03", copy)
    assert (copy / "contract/pyproject.toml").read_bytes() == (ROOT / "contract/pyproject.toml").read_bytes()


def test_uncommitted_files_and_unfitting_tags_are_refused(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=re.escape("commit or remove a.txt first")):
        refuse_unready("1.2.0", False, tmp_path)
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-m", "a")
    refuse_unready("1.2.0", False, tmp_path)
    with pytest.raises(ValueError, match=re.escape("expected the tag v1.2.0 at this commit")):
        refuse_unready("1.2.0", True, tmp_path)
    git(tmp_path, "tag", "v1.2.0")
    refuse_unready("1.2.0", True, tmp_path)
    with pytest.raises(ValueError, match=re.escape("the tag v1.2.0 exists")):
        refuse_unready("1.2.0", False, tmp_path)
    git(tmp_path, "commit", "--allow-empty", "-m", "b")
    with pytest.raises(ValueError, match=re.escape("expected the tag v1.2.0 at this commit")):
        refuse_unready("1.2.0", True, tmp_path)


@pytest.mark.parametrize("folder", ["contract", "client", "lab"])
def test_the_metadata_are_what_an_index_takes(folder: str, archives: Callable[[str], Archives]) -> None:
    metadata.check(archives(folder), version.current())
    with pytest.raises(ValueError, match=re.escape("expected version 9.9.9")):
        metadata.check(archives(folder), "9.9.9")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('readme = "README.md"\n', "", "expected a description in text/markdown, got None"),
        ('"pydantic>', '"other @ https://example.org/other.whl", "pydantic>', "refuses requirements by address"),
    ],
)
def test_metadata_that_an_index_refuses(before: str, after: str, message: str, tmp_path: Path) -> None:
    copied = shutil.copytree(ROOT / "contract", tmp_path / "contract")
    project = (copied / "pyproject.toml").read_text()
    assert before in project
    allowed = "[tool.hatch.metadata]\nallow-direct-references = true\n"
    (copied / "pyproject.toml").write_text(project.replace(before, after) + allowed)
    with pytest.raises(ValueError, match=message):
        metadata.check(build(copied, tmp_path / "built"), version.current())


def test_wheel_and_source_archive_have_the_same_metadata(tmp_path: Path, archives: Callable[[str], Archives]) -> None:
    copied = shutil.copytree(ROOT / "contract", tmp_path / "contract")
    project = (copied / "pyproject.toml").read_text()
    (copied / "pyproject.toml").write_text(project.replace('"photonics"', '"optics"'))
    mixed = replace(archives("contract"), sdist=build(copied, tmp_path / "built").sdist)
    with pytest.raises(ValueError, match="its metadata differ"):
        metadata.check(mixed, version.current())


@pytest.mark.slow
def test_an_interrupted_release_leaves_nothing(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = os.environ | {"PYTHONPATH": str(clone / "testing")}
    command = [sys.executable, "-m", "metaspec_testing.release"]

    (clone / "notes.txt").write_text("not committed")
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (1, "make release: commit or remove notes.txt first\n")
    (clone / "notes.txt").unlink()

    release = version.current()
    text = (clone / "CHANGELOG.md").read_text()
    if changelog.sections(text)["Unreleased"]:
        release = "97.0.1"
        subprocess.run([sys.executable, "-m", "metaspec_testing.release.version", release], env=environment, check=True)
        git(clone, "commit", "--all", "-m", "Version")

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list((clone / "build" / "release").glob(".making-*/built/*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.terminate()  # Ctrl-C does the same, but what runs in the background ignores it
        assert process.stderr is not None
        assert process.stderr.read() == "make release: interrupted, nothing was written\n"
    assert process.returncode == 130
    assert list((clone / "build" / "release").iterdir()) == []
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert status.stdout == ""
