"""A working folder of a service: names that callers give lead nowhere else."""

from __future__ import annotations

from pathlib import Path

SHOWN = 60
"""Characters of a value in a message."""


class WorkingFolder:
    """A working folder. Names are relative to it, or absolute and inside it, after symbolic links have been followed.

    Args:
        path: an existing folder.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ValueError(f"--folder must be an existing folder, got {path}")
        self.path = path.resolve()

    def inside(self, name: str, field: str) -> Path:
        """The path of a name, which need not exist.

        Raises:
            ValueError: it is empty, or leads out of the folder, itself or by a symbolic link.
        """
        if not name.strip() or "\0" in name:
            raise ValueError(f"{field} must name a file or folder in the working folder, got {name!r:.{SHOWN}}")
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path):
            raise ValueError(f"{field} must lie in the working folder {self.path}, got {name!r:.{SHOWN}}")
        return path

    def run_folder(self, name: str, field: str) -> Path:
        """The path of a run folder, which need not exist, without links out of the working folder in it.

        Raises:
            ValueError: it leads out of the folder, is the folder itself, or holds a symbolic link that leads out.
        """
        path = self.inside(name, field)
        if path == self.path:
            raise ValueError(f"{field} must be a folder inside the working folder, got {name!r:.{SHOWN}}")
        for entry in path.rglob("*") if path.is_dir() else ():
            if entry.is_symlink() and not entry.resolve().is_relative_to(self.path):
                raise ValueError(f"{field}: {entry.relative_to(self.path)} is a link out of the working folder")
        return path

    def relative(self, path: Path) -> str:
        """A path as it is given to the caller."""
        return path.relative_to(self.path).as_posix()
