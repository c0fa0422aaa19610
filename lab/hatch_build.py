"""Build hook: collects the three packages of the laboratory from the clone, where each has a folder of its own."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = {"metaspec_simulation": "simulation", "metaspec_training": "training", "metaspec_export": "export"}


class LaboratoryHook(BuildHookInterface[Any]):
    """Adds the packages of the clone; in a source archive they lie beside this file, where hatchling finds them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the packages' folders to hatchling, unless they are already here or are installed in place."""
        for package, folder in FOLDERS.items():
            source = Path(self.root).parent / folder / package
            if version != "editable" and source.is_dir() and not (Path(self.root) / package).exists():
                build_data["force_include"][str(source)] = package
