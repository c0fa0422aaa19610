"""The pyproject.toml files: one version, and every imported package declared by the distribution that imports it."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metaspec_testing.distributions import PACKAGES, ROOT, read_project

OURS = {read_project(folder)["name"]: folder for folder in [*PACKAGES, "testing"]}
MODULES = {Path(package).name: read_project(folder)["name"] for folder in PACKAGES for package in PACKAGES[folder]}
ANNOTATIONS = {
    "contract": {"matplotlib", "pandas", "xarray"}
}  # types of what `Spectra` converts to with the packages that are installed; it names a missing one


def declared(folder: str) -> list[Requirement]:
    project = read_project(folder)
    extras = project.get("optional-dependencies", {})
    return [Requirement(text) for texts in [project["dependencies"], *extras.values()] for text in texts]


def imported(package: Path) -> set[str]:
    """Top-level names that a package's modules import."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_all_distributions_have_one_version_and_ask_for_each_other_in_it() -> None:
    versions = {read_project(folder)["version"] for folder in OURS.values()}
    assert len(versions) == 1
    version = versions.pop()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text().splitlines()
    for folder in OURS.values():
        project = read_project(folder)
        for requirement in declared(folder):
            if requirement.name in OURS and requirement.name != project["name"]:
                assert str(requirement.specifier) == f"=={version}", f"{folder}/pyproject.toml: {requirement}"


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_import_is_declared(folder: str) -> None:
    providers = dict(importlib.metadata.packages_distributions()) | {module: [name] for module, name in MODULES.items()}
    names = {canonicalize_name(requirement.name) for requirement in declared(folder)} | {read_project(folder)["name"]}
    for package in PACKAGES[folder]:
        for module in imported(ROOT / package) - ANNOTATIONS.get(folder, set()):
            assert module in providers, f"{package} imports {module}, which is not installed"
            provider = {canonicalize_name(name) for name in providers[module]}
            assert provider & names, f"{package} imports {module}, but {folder}/pyproject.toml does not list {provider}"
