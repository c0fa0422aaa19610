"""The commands that the documents name are those that there are: each command, script, target and option of them exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs")
    for path in folder.glob("*.md")
    if path.name != "CHANGELOG.md"  # which names what there was
)
OPTION = re.compile(r"--[a-z][\w-]*")
SECTIONS = re.split(r"^## (.+)$", (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
OPTIONS = {name: set(OPTION.findall(text)) for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)}
"""Options by command; `test_site.py` compares the file with the commands."""

ALWAYS = {"--help", "--version"}
UNLISTED = ("metaspec-train fit", "metaspec-train convert")
"""Commands whose options that file does not list."""

DEFAULT = {"metaspec-simulate": "run", "metaspec-export": "export"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks and code in the text that begin like a command of ours, without comments."""
    text = re.sub(r" *\\\n *", " ", text)
    blocks = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    found = [*blocks.splitlines(), *re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE), *re.findall(r"`([^`\n]+)`", text)]
    for line in found:
        for part in re.split(r" (?:&&|\|) |; ", line.removeprefix("$ ").split("  #")[0]):
            if re.match(r"(?:metaspec(?:-(?:simulate|train|export|serve))?|make|python3? \S+\.py) \S", part):
                yield part


def unknown(command: str) -> str | None:
    """What a command names that does not exist."""
    words = command.split()
    used = set(OPTION.findall(command))
    if words[0] == "metaspec-train":
        used = {option.replace("-", "_").replace("__", "--", 1) for option in used}  # it takes both
    if words[0] == "make":
        named = [word for word in words[1:2] if re.fullmatch(r"[a-z-]+", word)]
        return next((word for word in named if word not in TARGETS), None)
    if words[0].startswith("python"):
        script = ROOT / words[1]
        if not script.exists():
            return words[1]
        known = used if script.name == "train.py" else set(OPTION.findall(script.read_text(encoding="utf-8")))
        return next(iter(sorted(used - known)), None)
    name = " ".join(words[:2])
    if "--from-designs" in used:
        name, used = "metaspec-simulate from-designs", used - {"--from-designs"}
    if name in UNLISTED:
        return None
    if name not in OPTIONS:
        name = f"{words[0]} {DEFAULT[words[0]]}" if words[0] in DEFAULT else words[0]
    if name not in OPTIONS:
        return words[0]
    return next(iter(sorted(used - OPTIONS[name] - ALWAYS)), None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist(document: str) -> None:
    found = list(commands((ROOT / document).read_text(encoding="utf-8")))
    assert {command: unknown(command) for command in found if unknown(command) is not None} == {}


def test_documents_name_commands() -> None:
    assert len({command for path in DOCUMENTS for command in commands((ROOT / path).read_text(encoding="utf-8"))}) > 100
