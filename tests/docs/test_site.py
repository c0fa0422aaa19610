"""The documentation site is built as `make docs` does, and is complete."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?([^"'\s>]+)|<link\b[^>]*\bhref=["']?([^"'\s>]+)""")
MODULES = re.findall(
    r"^::: ([\w.]+)$",
    "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md"))),
    re.MULTILINE,
)
"""What the reference documents."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_document_and_notebook_has_a_page(site: Path) -> None:
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]:
        assert (site / path.relative_to(DOCS).with_suffix(".html")).exists()
    for page in ("index", "changelog", "contributing"):
        assert (site / f"{page}.html").exists()


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = [first or second for first, second in LOADED.findall(path.read_text(encoding="utf-8"))]
        assert loaded
        assert [address for address in loaded if re.match(r"(?:\w+:)?//", address)] == [], path
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")) == [], path


def test_names_of_documents_are_links(site: Path) -> None:
    page = (site / "inverse-design.html").read_text(encoding="utf-8")
    assert '<a href="objectives.html">Objectives and parameterisation</a>' in page
    assert not re.search(r"<code>docs/[\w/-]+\.md</code>", page)


def public(name: str) -> set[str]:
    """Names of a module's public classes and functions: those that it lists, or else those that it defines."""
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    return {
        found
        for found, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("metaspec")
        and (found in listed if listed is not None else not found.startswith("_") and value.__module__ == name)
    }


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_in_the_reference(site: Path, module: str) -> None:
    """Under their own module, or under the one that they come from."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    documented = {name.rpartition(".")[2] for name in re.findall(r'id="(metaspec[\w.]*)"', pages)}
    assert public(module) != set()
    assert public(module) - documented == set()


def test_the_search_knows_every_page(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert pages - found == {"404.html", "report/report.html"}


def test_the_command_line_is_that_of_the_commands() -> None:
    script = runpy.run_path(str(DOCS / "_site" / "commands.py"))
    written = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert written == script["page"](), "run python docs/_site/commands.py"
