"""Sections of CHANGELOG.md: the notes of a version, and the cut that makes the unreleased entries a version."""

from __future__ import annotations

import re

_HEADING = re.compile(r"^## (Unreleased|\d+\.\d+\.\d+)(?: - \d{4}-\d{2}-\d{2})?\n", re.MULTILINE)
_WRAPPED = re.compile(r"(?<=\S)\n *(?![\s#|]|[-*] )")


def sections(text: str) -> dict[str, str]:
    """Return the text of each section by its version or `Unreleased`, newest first, without the headings.

    Raises:
        ValueError: a heading of the second level is neither `Unreleased` nor a version, or stands there twice.
    """
    parts = _HEADING.split(text)
    names = parts[1::2]
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    if len(headings) != len(names) or len(set(names)) != len(names):
        raise ValueError(
            f"CHANGELOG.md: expected headings `## Unreleased` and `## X.Y.Z - YYYY-MM-DD`, each once, got {headings}"
        )
    return {name: body.strip() for name, body in zip(names, parts[2::2], strict=True)}


def notes(text: str, version: str) -> str:
    """Return the release notes of a version: its section, with each paragraph on one line, since code hosts keep line breaks.

    Raises:
        ValueError: the version has no section or an empty one, or there are unreleased entries, which the notes of what is
            released would lack.
    """
    found = sections(text)
    if not found.get(version):
        raise ValueError(f"CHANGELOG.md has no section for version {version}")
    if found.get("Unreleased"):
        raise ValueError(
            f"CHANGELOG.md has unreleased entries above version {version}: `make version VERSION=X.Y.Z` makes them one"
        )
    return _WRAPPED.sub(" ", found[version]) + "\n"


def cut(text: str, version: str, day: str) -> str:
    """Return the text with its unreleased entries as the section of a version, and an empty section above.

    Args:
        text: text of CHANGELOG.md.
        version: the new version.
        day: date of the release, YYYY-MM-DD.

    Raises:
        ValueError: the version has a section, or there are no unreleased entries.
    """
    found = sections(text)
    if version in found:
        raise ValueError(f"CHANGELOG.md already has a section for version {version}")
    if not found.get("Unreleased"):
        raise ValueError("CHANGELOG.md has no unreleased entries")
    return text.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {day}\n", 1)
