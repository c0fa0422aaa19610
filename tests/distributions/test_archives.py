"""What would be uploaded: each wheel and source archive holds what belongs to its distribution, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metaspec_testing.distributions import PACKAGES, ROOT, Archives, build_wheel, read_project

LIMITS = {"contract": 100_000, "client": 500_000, "server": 90_000_000, "lab": 500_000}  # bytes; an index takes 100 MB


def files(folder: Path, below: str) -> set[str]:
    """Files of a folder in this clone, named as in an archive where it lies at `below`."""
    return {
        f"{below}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def package_files(folder: str) -> set[str]:
    return set().union(*(files(ROOT / package, Path(package).name) for package in PACKAGES[folder]))


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_wheel_holds_the_packages_and_the_licence(folder: str, archives: Callable[[str], Archives]) -> None:
    names = archives(folder).wheel_files()
    expected = package_files(folder)
    if folder == "server":
        expected |= files(ROOT / "server/models", "metaspec_server/models")
        assert "metaspec_server/models/diffractionnet/2/model.onnx" in expected
        assert "metaspec_server/web/index.html" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{Path(package).name}/py.typed" for package in PACKAGES[folder]} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert archives(folder).wheel.stat().st_size < LIMITS[folder]


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_source_archive_holds_what_builds_the_wheel(folder: str, archives: Callable[[str], Archives]) -> None:
    own = {
        "contract": set[str](),
        "client": files(ROOT / "client/examples", "examples"),
        "server": files(ROOT / "server/models", "models"),
        "lab": {"hatch_build.py"},
    }
    about = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}  # the last: hatchling's own doing
    assert archives(folder).sdist_files() == package_files(folder) | own[folder] | about
    assert archives(folder).sdist.stat().st_size < LIMITS[folder]


@pytest.mark.parametrize(
    "folder",
    ["contract", "client", "lab", pytest.param("server", marks=pytest.mark.slow)],  # 50 MB of models
)
def test_the_source_archive_builds_the_same_wheel(
    folder: str, archives: Callable[[str], Archives], tmp_path: Path
) -> None:
    with tarfile.open(archives(folder).sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build_wheel(next(tmp_path.iterdir()), tmp_path / "again")
    assert again.name == archives(folder).wheel.name
    assert Archives(again, again).wheel_files() == archives(folder).wheel_files()


def test_an_editable_laboratory_lies_in_its_three_folders(tmp_path: Path) -> None:
    script = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT / "lab", check=True, timeout=60)
    wheel = Archives(next(tmp_path.glob("*.whl")), tmp_path)
    assert [name for name in wheel.wheel_files() if name.endswith(".py")] == []
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel.wheel), str(target)], check=True, timeout=60)
    lines = next(target.glob("*.pth")).read_text().splitlines()
    assert {Path(line).resolve() for line in lines} == {ROOT / "simulation", ROOT / "training", ROOT / "export"}


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_description_is_the_readme(folder: str) -> None:
    project = read_project(folder)
    text = (ROOT / folder / project["readme"]).read_text()
    assert text.startswith(f"# {project['name']}\n")
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
