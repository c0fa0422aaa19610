"""The distributions of this clone: their pyproject.toml files, their archives, and fresh environments that hold one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=120)
    return Archives(next(target.glob("*.whl")), next(target.glob("*.tar.gz")))


class Environment:
    """A fresh virtual environment, without the packages and settings of this one."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        self.programs = folder / "bin"

    def install(self, *requirements: str | Path, lock: str) -> None:
        """Install requirements, and from the package index what they need, in the versions of a lock.

        Raises:
            RuntimeError: The installation failed; the message is pip's output.
        """
        command = [sys.executable, "-m", "pip", "--python", str(self.programs / "python"), "install", "--quiet"]
        constraint = ["--no-compile", "--constraint", str(ROOT / "requirements" / lock)]
        result = subprocess.run(
            [*command, *constraint, *map(str, requirements)], capture_output=True, text=True, timeout=280
        )
        if result.returncode != 0:
            raise RuntimeError(
                f"pip install {' '.join(map(str, requirements))} failed:\n{result.stdout}{result.stderr}"
            )

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
