"""Hooks of MkDocs: pages made from files outside `docs/` and from notebooks, and links between pages.

The documents name each other in code (`docs/server.md`), as they are read in a clone, too. On the site these become links, so
that a strict build finds names of pages that do not exist.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
COPIES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site by the file, outside `docs/`, that they are made from."""

UNTITLED = {"ablation/ablation.md": "The seven improvements"}
"""Titles of generated tables, which have none."""

_NAMED = re.compile(r"`((?:docs/)?[\w./-]+\.(?:md|ipynb))`")
_LINKED = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for source, target in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            text = notebook_page(json.loads(file.content_string), posixpath.basename(file.src_uri))
            files.append(File.generated(config, page_of(file.src_uri), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn names of documents into links, and links of copied files into links of the site."""
    uri = page.file.src_uri
    if uri in UNTITLED:
        markdown = f"# {UNTITLED[uri]}\n\n{markdown}"
    folder = posixpath.dirname(uri)

    def link(named: re.Match[str]) -> str:
        target = page_of(named[1].removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            if named[1].startswith("docs/"):
                raise PluginError(f"{uri} names {named[1]}, which does not exist")
            return named[0]
        return f"[{title(target)}]({posixpath.relpath(target, folder or '.')})"

    def moved(linked: re.Match[str]) -> str:
        target = linked[2].removeprefix("docs/") if uri in COPIES.values() else linked[2]
        return linked[1] + page_of(target) + linked[3]

    def prose(text: str) -> str:
        return _LINKED.sub(moved, _NAMED.sub(link, text))

    parts, start = [], 0
    for code in _CODE.finditer(markdown):
        parts += [prose(markdown[start : code.start()]), code[0]]
        start = code.end()
    return "".join([*parts, prose(markdown[start:])])


def page_of(path: str) -> str:
    """The page that a file of the repository or of `docs/` becomes."""
    return COPIES.get(path, path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path)


def title(page: str) -> str:
    """First heading of a page's file."""
    source = next((file for file, target in COPIES.items() if target == page), f"docs/{page}")
    path = ROOT / source
    if page in UNTITLED or not path.exists():
        return UNTITLED.get(page) or posixpath.basename(page).removesuffix(".md").replace("_", " ")
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def notebook_page(book: dict[str, list[dict[str, str | list[str]]]], name: str) -> str:
    """Text and code of a notebook, with a link to the file."""
    parts = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, f'<p><a href="{name}" download>{name}</a></p>')
    return "\n\n".join(parts) + "\n"
