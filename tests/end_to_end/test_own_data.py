"""From raw files to verified designs, by the commands of docs/own-data.md as they stand, at small size."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from metaspec_contract.process import Process
from metaspec_contract.run_folder import RunReport, VerifyReport
from metaspec_simulation.data.families import random_structure
from metaspec_testing.servers import running_server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
SMALL = {
    "configs/full.yaml": "--model.config.init_args.channels 32 --model.config.init_args.width 32 "
    "--model.config.init_args.blocks 1 --model.config.init_args.heads 2 --data.batch_size 4 --trainer.max_epochs 1 "
    "--trainer.accelerator cpu --trainer.precision 32",
    "configs/adapt.yaml": "--data.batch_size 4 --trainer.max_epochs 1 --trainer.accelerator cpu --trainer.precision 32",
    "metaspec-train": "--limit 4",
    "metaspec-export": "--limit 4 --allow-dirty",
    "metaspec optimise": "--starts 2 --steps 4",
    "metaspec-simulate verify": "--best 1 --cells 24",
}
"""What makes a command quick; of an option that is given twice, the last counts."""

pytestmark = pytest.mark.slow


def commands(section: str) -> list[list[str]]:
    """Commands of a section, in order."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE)]


def run(command: list[str], more: list[str]) -> None:
    """Run a command as a user does, with more options."""
    program, *arguments = command
    first = (
        [sys.executable, str(ROOT / arguments.pop(0))]
        if program == "python"
        else [str(Path(sys.executable).parent / program)]
    )
    arguments = [str(ROOT / one) if one.startswith("training/") else one for one in arguments]
    result = subprocess.run([*first, *arguments, *more], capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, (command, result.stderr[-3000:])


def test_the_commands_from_raw_files_to_designs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    rng, wavelengths = np.random.default_rng(0), Process().wavelengths_nm
    structures = np.stack([random_structure(rng, "random_field") for _ in range(40)])
    phase = rng.uniform(0, 2 * np.pi, (40, 4, 1))
    np.save("raw/binary_dataset_128_1.npy", structures[:, None])
    np.save("raw/spectra_latest_1.npy", (0.2 + 0.04 * np.sin(wavelengths / 30 + phase)).astype(np.float32))
    Path("process.json").write_text("{}")
    steps = [commands("Import")[0], *commands("Train"), *commands("Serve, and design")]
    assert [step[0] for step in steps] == [
        "metaspec-simulate", "python", "python", "metaspec-train", "metaspec-export", "metaspec-serve", "metaspec",
        "metaspec-simulate",
    ]  # fmt: skip
    *before, serve, optimise, verify = steps
    for step in before:
        run(step, next((more.split() for start, more in SMALL.items() if start in " ".join(step)), []))
    assert Path("runs/full/lightning_logs/version_0/report/report.html").exists()
    gradient = onnx.load("models/diffractionnet_vjp/1/model.onnx")  # the export has compared it with autograd
    assert sum(node.op_type == "Shape" for node in gradient.graph.node) <= 1, "it stays on the GPU"
    with running_server(*serve[1:3]) as server:  # on a free port
        run(optimise, [*SMALL["metaspec optimise"].split(), "--url", server.url])
    run(verify, SMALL["metaspec-simulate verify"].split())
    report = RunReport.model_validate_json(Path("designs/report.json").read_text())
    truth = VerifyReport.model_validate_json(Path("designs/verify.json").read_text())
    assert (report.process, len(truth.designs)) == (Process(), 1)
