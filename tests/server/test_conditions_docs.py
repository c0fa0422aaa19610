"""The commands of docs/server.md on conditions, run as they stand against a small model that takes a distance."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from metaspec_testing.servers import RunningServer

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
COMMANDS = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_commands_of_the_documentation(conditioned: RunningServer, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"URL": conditioned.url, "PATH": path}
    found = []
    for text in COMMANDS:
        command = ["bash", "-ec", text]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{text}\n{result.stderr}"
        found.append(result.stdout)
    listed, answered, refused, over_triton = found
    assert listed.splitlines()[0] == "distance_um 1.0 3.0 um 2.5 1"
    head, shape = answered.rsplit("}", 1)
    assert len(json.loads(head + "}")["spectra"]) == 8
    assert shape.strip() == over_triton.strip() == "(8, 4, 301)"
    problem = json.loads(refused)
    assert (problem["field"], problem["status"]) == ("distance_um", 422)
    assert problem["detail"] == "distance_um must lie between 1 and 3 um, got 3.5"
