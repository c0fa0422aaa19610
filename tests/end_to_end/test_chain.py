"""The chain as a user of another process goes it: simulate, train, export, serve, client, optimise, verify.

The process has another period, other wavelengths and larger pixels than the default one. Nobody types it twice: it is in the
file given to the simulation, and every later link finds it. The commands run in this process; `test_own_data` starts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaspec import InvalidStructure, Surrogate
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.run_folder import RunReport, VerifyReport
from metaspec_export import cli as export
from metaspec_simulation import cli as simulation
from metaspec_testing.commands import give
from metaspec_testing.servers import RunningServer, running_server
from metaspec_training import cli as training
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet

ROOT = Path(__file__).parents[2]
PROCESS = Process(
    period_um=1.6,
    thickness_um=0.2,  # light leaves a thin layer soon: quick to simulate
    wavelength_min_nm=450,
    wavelength_max_nm=750,
    wavelength_step_nm=2,
    pixels=64,
)
CELLS = 24  # the coarsest grid: nobody looks at the physics here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "narrow-cell"
    process = folder.with_name("process.json")
    process.write_text(PROCESS.model_dump_json())
    arguments = ["--count", "40", "--cells", str(CELLS), "--process", str(process)]
    simulation.app(["run", *arguments, "--out", str(folder)], standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    runs = data.with_name("runs")
    network = ("width=32", "blocks=1", "stem=16", "coarse_head=false", "beam=false", "wavelength_nodes=20")
    settings = [f"--model.config.init_args.{setting}" for setting in network]
    arguments = [
        f"--config={ROOT / 'training' / 'configs' / 'field.yaml'}",
        f"--data.path={data}",
        "--data.batch_size=8",
        "--data.positions=2",
        *settings,
        "--trainer.max_steps=4",
        "--trainer.precision=32",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={runs}",
    ]
    training.main(["fit", *arguments])
    (best,) = runs.rglob("best.ckpt")
    return best


@pytest.fixture(scope="module")
def repository(checkpoint: Path, data: Path) -> Path:
    folder = data.with_name("models")
    arguments = ["--repository", str(folder), "--data", str(data), "--allow-dirty"]
    export.app(["export", str(checkpoint), *arguments], standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(repository)) as running:
        yield running


@pytest.fixture(scope="module")
def designs(server: RunningServer, data: Path) -> Path:
    folder = data.with_name("designs")
    assert give(["optimise", "--steps", 4, "--starts", 2, "--url", server.url, "--out", folder]) == 0
    return folder


@pytest.fixture(scope="module")
def verified(designs: Path) -> Path:
    simulation.app(["verify", str(designs), "--cells", str(CELLS)], standalone_mode=False)
    return designs


def test_the_checkpoint_says_what_it_was_trained_on(checkpoint: Path, data: Path) -> None:
    provenance: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["provenance"]
    assert Process.model_validate(provenance["process"]) == PROCESS
    assert (provenance["preset"], provenance["merged_greens"]) == ("field", False)
    (source,) = provenance["data"]
    assert source["name"] == data.name
    assert source["solver"]["cells"] == CELLS
    assert 0 < source["structures"] < 40


def test_the_client_finds_the_process_of_the_data(server: RunningServer, data: Path) -> None:
    with Surrogate(server.url) as surrogate:
        info = surrogate.metadata()
        spectra = surrogate.predict(np.zeros((1, 64, 64)))
        with pytest.raises(InvalidStructure, match=r"structures must be \(64, 64\), .*, got \(1, 128, 128\)"):
            surrogate.predict(np.zeros((1, 128, 128)))
    assert info.process == PROCESS
    np.testing.assert_array_equal(spectra.wavelengths_nm, np.arange(450, 751, 2))
    assert spectra.channels == CHANNELS
    assert spectra.values.shape == (1, 4, 151)
    assert not info.merged_greens
    assert info.details["training"]["preset"] == "field"
    assert info.details["training"]["data"][0]["name"] == data.name


def test_the_network_propagates_light_in_the_cell_of_the_data(server: RunningServer, checkpoint: Path) -> None:
    """What is served is what the trained network computes, whose propagation layer is that of its own process."""

    network = load_network(checkpoint)
    assert isinstance(network, DiffractionFieldNet)
    assert network.config.process == PROCESS
    structures = np.random.default_rng(0).integers(0, 2, (3, 64, 64))
    with torch.inference_mode():
        expected = network(torch.tensor(structures[:, None], dtype=torch.float32)).flatten(1, 2).numpy()
    with Surrogate(server.url) as surrogate:
        np.testing.assert_allclose(surrogate.predict(structures).values, expected, atol=1e-5)


def test_designs_and_their_verification_are_of_the_same_process(verified: Path) -> None:
    report = RunReport.model_validate_json((verified / "report.json").read_text())
    truth = VerifyReport.model_validate_json((verified / "verify.json").read_text())
    assert report.process == truth.process == PROCESS
    assert (report.period_um, report.pixel_nm) == (1.6, 25.0)
    np.testing.assert_array_equal(report.wavelengths_nm, np.arange(450, 751, 2))
    assert report.channels == list(CHANNELS)
    assert truth.solver["cells"] == [CELLS]
    assert [design.rank for design in truth.designs] == [design.rank for design in report.designs] == [0, 1]
    predicted = truth.designs[0].predicted
    assert predicted is not None
    assert predicted.min_efficiency == pytest.approx(report.designs[0].predicted.min_efficiency, abs=1e-5)


def test_a_data_set_of_another_process_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Both sides are named, and nothing is written."""
    arguments = ["--repository", str(tmp_path / "m"), "--data", str(ROOT / "datasets" / "designs-600nm")]
    with pytest.raises(ValueError, match=r"designs-600nm are of different processes: period_um 1\.6 against 2\.0"):
        export.app(["export", str(checkpoint), *arguments, "--allow-dirty"], standalone_mode=False)
    assert not (tmp_path / "m").exists()


def test_the_folder_of_designs_holds_what_its_report_lists(verified: Path) -> None:
    report = json.loads((verified / "report.json").read_text())
    for design in report["designs"]:
        for name in design["files"].values():
            assert (verified / name).stat().st_size > 0
    assert np.load(verified / "designs.npy").shape == (2, 64, 64)
