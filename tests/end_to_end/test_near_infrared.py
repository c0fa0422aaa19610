"""A device of 900 to 1000 nm, where no colour has its band, from simulated samples to verified designs.

Figures of merit that it does not have are left out of every report; what asks for one is refused before work is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metaspec import Surrogate, optimise
from metaspec.designs import write_designs
from metaspec.objectives import TargetSpectra
from metaspec.topology import Parameterisation
from metaspec_contract.process import Process
from metaspec_contract.run_folder import read_report
from metaspec_export import cli as export
from metaspec_simulation import Solver
from metaspec_simulation import cli as simulation
from metaspec_simulation.data.families import SPLITS
from metaspec_simulation.data.recipe import Recipe
from metaspec_simulation.dataset import load, open_dataset, write_samples
from metaspec_testing.commands import give
from metaspec_testing.servers import RunningServer, running_server
from metaspec_training import cli as training

PROCESS = Process(
    period_um=1.6,
    thickness_um=0.2,  # light leaves a thin layer soon: quick to simulate
    wavelength_min_nm=900,
    wavelength_max_nm=1000,
    wavelength_step_nm=5,
)
CELLS = 24  # the coarsest grid: nobody looks at the physics here
CONFIG = Path(__file__).parents[2] / "training" / "configs" / "field.yaml"
OUT_OF_RANGE = "no wavelength lies in the band of red (600 to 700 nm), got 900 to 1000 nm"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 structures to train on, 3 each to validate and to test on."""
    folder = tmp_path_factory.mktemp("infrared") / "data"
    recipe = Recipe(PROCESS, seed=0, cells=CELLS, decay=0.1, energy_bound=1.0)  # none is flagged
    group = open_dataset(folder, recipe, 18)
    write_samples(group, recipe, Solver(PROCESS, CELLS, decay=0.1), 0, 18, lambda: None)
    group["split"][:] = np.repeat([SPLITS.index(name) for name in ("train", "validation", "test")], [12, 3, 3])
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    network = ["width=16", "blocks=0", "stem=8", "spectral_basis=8", "wavelength_nodes=16"]
    network += ["beam=false", "coarse_head=false"]
    arguments = [f"--config={CONFIG}", f"--data.path={data}", "--data.batch_size=8", "--data.positions=1"]
    arguments += [f"--model.config.init_args.{setting}" for setting in network]
    arguments += ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.precision=32"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    training.main(["fit", *arguments, f"--trainer.default_root_dir={data.with_name('runs')}"])
    (run,) = data.with_name("runs").glob("lightning_logs/*")
    return run


@pytest.fixture(scope="module")
def server(trained: Path, data: Path) -> Iterator[RunningServer]:
    models = data.with_name("models")
    checkpoint = trained / "checkpoints" / "best.ckpt"
    export.app(
        ["export", str(checkpoint), "--repository", str(models), "--data", str(data), "--allow-dirty"],
        standalone_mode=False,
    )
    with running_server("--repository", str(models)) as running:
        yield running


def test_the_report_leaves_figures_of_merit_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.main(["report", str(trained), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "report.json").read_text())
    assert {errors["colour_efficiency"] for errors in found["errors"].values()} == {None}
    page = (tmp_path / "report.html").read_text()
    assert "900 to 1000 nm" in page
    assert "<h2>Figures of merit" not in page
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        training.main(["report", str(trained), "--out", str(tmp_path), "--gradients=1"])
    assert ended.value.code == 2
    assert "no wavelength from 900 to 1000 nm lies in the band" in capsys.readouterr().err


def test_the_model_card_leaves_them_out(server: RunningServer, data: Path) -> None:
    card = (data.with_name("models") / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()
    (row,) = (line for line in card.splitlines() if line.startswith("| test |"))
    assert row.split("|")[9].strip() == ""
    metrics = server.get("/v2/models/diffractionnet").json()["parameters"]["metrics"]
    assert metrics["test"]["colour_efficiency"] is None
    assert metrics["test"]["mae"] > 0


def test_the_commands_of_the_client(
    server: RunningServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "structures.npy", load(data).structures[:2])
    plot, out = tmp_path / "spectra.png", tmp_path / "designs"
    assert give(["predict", tmp_path / "structures.npy", "--url", server.url, "--plot", plot]) == 0
    assert "No colour has its band between 900 and 1000 nm." in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert give(["optimise", "--url", server.url, "--out", out]) == 2
    assert capsys.readouterr().err == f"metaspec: objective bayer: {OUT_OF_RANGE}\n"
    assert not out.exists()


def test_designs_for_an_objective_of_its_own(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = TargetSpectra(np.full((1, 21), 0.5), ("R",))
    with Surrogate(server.url) as surrogate:
        problem = optimise.Problem(surrogate, goal, Parameterisation(80.0, pixel_nm=PROCESS.pixel_nm))
        result = optimise.run(problem, optimise.by_name("adam", starts=2), steps=2, progress=False)
        document = write_designs(tmp_path / "designs", result, surrogate, objective="target")
        with pytest.raises(ValueError, match="no wavelength lies in the band of red"):
            surrogate.predict(result.structure).min_efficiency()
    design = document["designs"][0]
    assert design["predicted"] == {"colour_efficiency": {}, "crosstalk": {}}
    assert read_report(tmp_path / "designs").designs[0].predicted.min_efficiency is None
    simulation.app(["verify", str(tmp_path / "designs"), "--cells", str(CELLS)], standalone_mode=False)
    assert "Spectra, predicted against simulated: mean absolute difference" in capsys.readouterr().out
    verified = json.loads((tmp_path / "designs" / "verify.json").read_text())
    assert set(verified["summary"]) == {"mae", "rms"}
    assert verified["designs"][0]["simulated"][str(CELLS)]["colour_efficiency"] == {}
