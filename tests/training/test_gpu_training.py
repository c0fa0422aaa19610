"""`benchmarks/gpu_training.py` on a CPU: two steps, then the same command until it is stopped; and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaspec_contract.process import Process
from metaspec_training.fit.checkpoint import NETWORK, read_checkpoint
from metaspec_training.networks.field import DiffractionFieldNetConfig

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_training.py"
TINY = DiffractionFieldNetConfig(width=32, blocks=1, stem=8, wavelength_nodes=20, coarse_head=True, process=Process())
SMALL = ["--eager", "--batch", "4", "--ordered-rows", "2", "--positions", "2", "--rate", "1e-4"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An untrained network: it starts from a transparent layer, which is far from the phase of a solid one."""
    torch.manual_seed(0)
    network = TINY.build()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({NETWORK: (type(TINY).__name__, TINY.to_dict()), "state_dict": state}, tmp_path / "start.ckpt")
    return tmp_path / "start.ckpt"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def test_two_steps_then_the_same_command(weights: Path, fine: Path, with_orders: Path, tmp_path: Path) -> None:
    out, hidden = tmp_path / "out", os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    asked = command("--weights", weights, "--data", fine, with_orders, "--out", out, "--name", "tiny", *SMALL)
    result = subprocess.run(
        [*asked, "--steps", "2"], capture_output=True, text=True, env=hidden, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "the field is turned by" in result.stdout
    assert "resumes" not in result.stdout
    trained = read_checkpoint(out / "tiny.ckpt")
    assert trained.provenance is not None
    assert {source.name: source.structures for source in trained.provenance.data} == {"fine": 16, "with_orders": 8}
    assert trained.provenance.preset == "tiny"
    state = torch.load(out / "tiny.state", weights_only=True)
    assert state["step"] == 2
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, state["average"][name], rtol=1e-3, atol=1e-6)

    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=hidden) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "step 3: " in line:
                process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, complaint
    assert complaint == "gpu_training: stopped; the same command resumes\n"
    assert any("resumes at step 2" in line for line in lines)
    assert not any("turned" in line for line in lines)
    again = torch.load(out / "tiny.state", weights_only=True)
    assert again["step"] >= 3
    assert not torch.equal(again["network"]["head.2.weight"], state["network"]["head.2.weight"])
    read_checkpoint(out / "tiny.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch must be above 0, got 0"),
        (["--ordered-rows", "256"], "--ordered-rows must be from 1 to 255, below --batch, got 256"),
        (["--w-orders", "0.1", "0"], "--w-orders must be above 0, got 0.1 0.0"),
        (["--weights", "none.ckpt"], "none.ckpt cannot be read: No such file or directory"),
    ],
)
def test_arguments_that_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    asked = command("--weights", "w.ckpt", "--data", "none", "--out", "out", *arguments)
    result = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr == f"gpu_training: {message}\n"
    assert list(tmp_path.iterdir()) == []
