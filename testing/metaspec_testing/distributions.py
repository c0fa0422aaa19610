"""The distributions of this clone: their pyproject.toml files, their archives, and fresh environments that hold one of them."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "contract": ["contract/metaspec_contract"],
    "client": ["client/metaspec"],
    "server": ["server/metaspec_server"],
    "lab": ["simulation/metaspec_simulation", "training/metaspec_training", "export/metaspec_export"],
}
"""The published distributions by folder, and the packages of each."""


def read_project(folder: str) -> dict[str, Any]:
    """Read the table `project` of a distribution's pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    return project


@dataclass(frozen=True)
class Archives:
    """A distribution as it would be uploaded."""

    wheel: Path
    sdist: Path

    def wheel_files(self) -> set[str]:
        """Names of the wheel's files."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {name for name in archive.namelist() if not name.endswith("/")}

    def sdist_files(self) -> set[str]:
        """Names of the source archive's files, below its folder."""
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def build(source: Path, target: Path) -> Archives:
    """Build the wheel and the source archive of a folder with a pyproject.toml, both from this folder."""
    return Archives(build_wheel(source, target, "--target", "sdist"), next(target.glob("*.tar.gz")))


def find(folder: Path, name: str) -> Archives:
    """Find the archives of a distribution in a folder that holds those of several.

    Raises:
        ValueError: there is not just one wheel and one source archive of it.
    """
    stem = name.replace("-", "_")
    try:
        (wheel,), (sdist,) = folder.glob(f"{stem}-*.whl"), folder.glob(f"{stem}-*.tar.gz")
    except ValueError:
        raise ValueError(f"{folder}: expected one wheel and one source archive of {name}") from None
    return Archives(wheel.resolve(), sdist.resolve())


def build_wheel(source: Path, target: Path, *more: str) -> Path:
    """Build the wheel of a folder with a pyproject.toml, and what further options of Hatchling ask for."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target), "--target", "wheel", *more]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=120)
    return next(target.glob("*.whl"))


def _needed(wheels: Iterable[str]) -> list[Distribution]:
    """What wheels need, and what that needs, as far as this environment has it; none of it is ours."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()

    def visit(distribution: Distribution, extras: Iterable[str]) -> None:
        for requirement in map(Requirement, distribution.requires or ()):
            marker, name = requirement.marker, canonicalize_name(requirement.name)
            if name.startswith("metaspec") or not (
                marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
            ):
                continue
            wanted = {(name, extra) for extra in ("", *requirement.extras)}
            if not wanted <= seen and (there := next(iter(distributions(name=name)), None)) is not None:
                seen.update(wanted)
                found[name] = there
                visit(there, requirement.extras)

    for wheel in wheels:
        path, _, extras = wheel.partition("[")
        visit(next(iter(distributions(path=[path]))), extras.rstrip("]").split(","))
    return list(found.values())


class Environment:
    """A fresh virtual environment, without the packages and settings of this one."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        self.programs = folder / "bin"

    def install(self, *wheels: str | Path, lock: str) -> None:
        """Install wheels of ours. What they say that they need is linked from this environment, in the versions of a lock.

        Args:
            wheels: paths of wheels, with extras in brackets behind them if any are wanted.
            lock: name of the lock.

        Raises:
            RuntimeError: something that they need is missing, or of another version; the message is pip's output.
        """
        for distribution in _needed(map(str, wheels)):
            self._link(distribution)
        self._pip_install("--constraint", str(ROOT / "requirements" / lock), *map(str, wheels))

    def _pip_install(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.programs / "python"), "install", "--no-index"]
        quietly = ["--quiet", "--no-compile"]
        result = subprocess.run([*command, *quietly, *arguments], capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            raise RuntimeError(f"pip install {' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")

    def install_over_this(self, *wheels: Path) -> None:
        """Install wheels of ours in front of all that this environment has, but for what is installed in place in it.

        Raises:
            RuntimeError: a wheel cannot be installed; the message is pip's output.
        """
        self._pip_install("--no-deps", *map(str, wheels))
        (target,) = self.programs.parent.glob("lib/python*/site-packages")
        there = [*site.getsitepackages(), str(ROOT / "testing")]  # its own .pth files, ours among them, are not read
        (target / "this.pth").write_text("".join(f"{line}\n" for line in there))

    def _link(self, distribution: Distribution) -> None:
        """Make the files of a distribution appear here, whole packages at once: they are large, and compiled there."""
        (target,) = self.programs.parent.glob("lib/python*/site-packages")
        for file in distribution.files or ():
            entry = PurePath(file.parts[0])
            if ".." in file.parts or entry.name == "__pycache__":
                continue
            source = Path(str(distribution.locate_file("")))
            while not (entry == file or (source / entry / "__init__.py").exists()):  # namespaces have several owners
                entry = PurePath(*file.parts[: len(entry.parts) + 1])
            if not (target / entry).exists():
                (target / entry).parent.mkdir(parents=True, exist_ok=True)
                (target / entry).symlink_to(source / entry)

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, outside the clone.

        Args:
            program: name of a console command, or `python`.
            arguments: arguments of the command.
            variables: environment variables, beside those of this process that are not ours.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("METASPEC_", "PYTHON"))}
        return subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.programs.parent,
            env=kept | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
