"""A small data set of another process, a small network trained on it, and everything that the command publishes of it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from metaspec_contract.process import Process
from metaspec_contract.provenance import Provenance
from metaspec_contract.structures import Structure
from metaspec_export import cli
from metaspec_simulation.data.families import FAMILIES, random_structure
from metaspec_simulation.data.importer import find_pairs, import_pairs
from metaspec_simulation.dataset import load, provenance
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig

PROCESS = Process(period_um=1.6, distance_um=2.0, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=10)
"""Differs from the default in whatever a careless default would hide."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]
MakeData = Callable[..., Path]
MakeCheckpoint = Callable[..., Path]


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["metaspec-export", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    return subprocess.CompletedProcess([str(one) for one in arguments], code, out.getvalue(), err.getvalue())


def _make_data(path: Path, process: Process = PROCESS, merged_greens: bool = False, seed: int = 0) -> Path:
    """A data set of 96 structures with invented spectra, by way of the importer."""
    source = path.with_name(f"{path.name}-files")
    source.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    structures = np.stack([random_structure(rng, FAMILIES[n % len(FAMILIES)]) for n in range(96)])
    spectra = rng.uniform(0.1, 0.25, (96, 3 if merged_greens else 4, len(process.wavelengths_nm)))
    np.save(source / "binary_dataset_128_0.npy", structures[:, None])
    np.save(source / "spectra_latest_0.npy", spectra.astype(np.float32))
    import_pairs(find_pairs(source, process), path, process, report=lambda rows: None)
    return path


def _make_checkpoint(path: Path, config: NetworkConfig, trained_on: Provenance | None) -> Path:
    """A checkpoint as training writes it, of random weights."""
    torch.manual_seed(0)
    weights = {f"network.{name}": value for name, value in config.build().state_dict().items()}
    state = {"network": (type(config).__name__, config.to_dict()), "state_dict": weights}
    if trained_on is not None:
        state["provenance"] = trained_on.model_dump(mode="json")
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """The command in this process, which has PyTorch loaded."""
    return _command


@pytest.fixture(scope="session")
def make_data() -> MakeData:
    return _make_data


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    return _make_checkpoint


@pytest.fixture(scope="session")
def process() -> Process:
    return PROCESS


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_data(tmp_path_factory.mktemp("datasets") / "narrow-450nm")


@pytest.fixture(scope="session")
def trained_on(data: Path) -> Provenance:
    return provenance({data.name: load(data)}, preset="field")


@pytest.fixture(scope="session")
def checkpoint(trained_on: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DiffractionFieldNetConfig(width=32, blocks=1, spectral_basis=8, wavelength_nodes=16, process=PROCESS)
    return _make_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", config, trained_on)


@pytest.fixture(scope="session")
def network(checkpoint: Path) -> nn.Module:
    return load_network(checkpoint)


@pytest.fixture(scope="session")
def published(checkpoint: Path, data: Path) -> tuple[Path, str]:
    """A repository of all models of one network, and what the command printed."""
    repository = checkpoint.parent / "repository"
    precisions = ("--precision", "fp32,fp16")
    hub = ("--huggingface", checkpoint.parent / "hub", "--license", "apache-2.0") if find_spec("safetensors") else ()
    result = _command(
        checkpoint,
        "--repository",
        repository,
        "--data",
        data,
        *precisions,
        "--symmetric",
        "--images",
        4,
        "--allow-dirty",
        *hub,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return repository, result.stdout


@pytest.fixture(scope="session")
def repository(published: tuple[Path, str]) -> Path:
    return published[0]


@pytest.fixture(scope="session")
def graph(repository: Path) -> Callable[[str], onnx.ModelProto]:
    """A published model, by name."""
    return lambda name: onnx.load(repository / name / "1" / "model.onnx")


@pytest.fixture(scope="session")
def unseen(data: Path) -> Structure:
    """Structures of the test split."""
    return load(data).of("test").structures
