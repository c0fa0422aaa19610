"""The version of all distributions: read from contract/pyproject.toml, and written from there to every file that states it.

    python -m metaspec_testing.release.version 0.3.0

It is written into each file, not computed by the builds: a pyproject.toml that states its version is read by every tool, and a
source archive builds without the clone around it.
"""

from __future__ import annotations

import datetime
import re
import sys
import tomllib
from pathlib import Path

from packaging.version import Version

from metaspec_contract.files import write_text
from metaspec_testing.distributions import PACKAGES, ROOT
from metaspec_testing.release import changelog

FILES = (
    *(f"{folder}/pyproject.toml" for folder in (*PACKAGES, "testing")),
    "CITATION.cff",
    "deploy/kserve/metaspec.yaml",
    "deploy/kubernetes/base/kustomization.yaml",
    "deploy/kubernetes/triton/kustomization.yaml",
)
"""The files that state the version."""

_STATED = re.compile(
    r"""((?:^version: |^version = "|^ *newTag: |image: metaspec:|"metaspec[\w,[\]-]*==))(\d[\w.]*)""", re.M
)


def current(root: Path = ROOT) -> str:
    """Return the version of a clone, as contract/pyproject.toml states it."""
    version: str = tomllib.loads((root / "contract/pyproject.toml").read_text())["project"]["version"]
    return version


def stated(text: str) -> set[str]:
    """Return the versions of our own distributions and images that the text of a file states."""
    return {version for _, version in _STATED.findall(text)}


def restated(text: str, version: str) -> str:
    """Return the text of a file with another version of our own distributions and images."""
    return _STATED.sub(lambda match: match[1] + version, text)


def change(version: str, day: str, root: Path = ROOT) -> None:
    """Write a new version to every file that states it, and make the unreleased entries of the changelog its section.

    Args:
        version: the new version, X.Y.Z.
        day: date of the release, YYYY-MM-DD.
        root: folder of the clone.

    Raises:
        ValueError: the version is not of this form or not above the present one, a file states another than the present one,
            or the changelog does not allow it. Nothing is written.
    """
    before = current(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or Version(version) <= Version(before):
        raise ValueError(f"VERSION: expected X.Y.Z above {before}, got {version!r}")
    texts = {name: (root / name).read_text() for name in FILES}
    for name, text in texts.items():
        if stated(text) != {before}:
            raise ValueError(f"{name}: expected version {before}, got {sorted(stated(text))}")
    texts = {name: restated(text, version) for name, text in texts.items()}
    texts["CHANGELOG.md"] = changelog.cut((root / "CHANGELOG.md").read_text(), version, day)
    for name, text in texts.items():
        write_text(root / name, text)


def main() -> None:
    """Change the version to the command's argument."""
    try:
        (version,) = sys.argv[1:] or [""]
        change(version, datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    except ValueError as error:
        raise SystemExit(f"make version: {error}") from None


if __name__ == "__main__":
    main()
