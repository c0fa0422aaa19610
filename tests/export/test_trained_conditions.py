"""Two numbers and a vector: from `training/train.py` through export and server, or a bare Triton, to the client's designs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metaspec import Surrogate
from metaspec_contract.run_folder import read_report
from metaspec_contract.structures import Structure
from metaspec_export.build import Variants, build
from metaspec_export.publish import publish
from metaspec_export.source import read_source
from metaspec_testing.commands import give
from metaspec_testing.made_up_network import MadeUpNet, MadeUpNetConfig
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.triton import python_repository, start_triton
from metaspec_training.fit import checkpoint as checkpoints
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.report.evaluation import predict, with_merged_greens

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model": {
        "config": {"class_path": "metaspec_testing.made_up_network.MadeUpNetConfig"},
        "loss": {"class_path": "metaspec_training.fit.loss.AdaptiveSpectralLoss"},
    },
    "trainer": {
        "max_steps": 6,
        "precision": "32",
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"monitor": "validation/mae", "save_last": True, "filename": "best"},
            }
        ],
    },
}
ROWS = 4

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Array = NDArray[Any]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """The network is among those that checkpoints can be of, as CONTRIBUTING.md asks of a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checkpoints._CONFIGS, MadeUpNetConfig.__name__, MadeUpNetConfig)
        yield


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `python training/train.py`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "made_up.yaml").write_text(json.dumps(SETTINGS | {"data": {"path": str(data), "batch_size": 8}}))
    given = ["--config", str(folder / "made_up.yaml"), f"--trainer.default_root_dir={folder}"]
    command = [sys.executable, str(ROOT / "training" / "train.py"), *given]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (last,) = folder.rglob("last.ckpt")
    return last


@pytest.fixture(scope="module")
def repository(trained: Path, data: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "repository"
    result = command(trained, "--repository", folder, "--data", data, "--allow-dirty")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(repository), "--grpc-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def conditions() -> dict[str, Array]:
    """Values of each row."""
    rng = np.random.default_rng(5)
    return {
        "distance_um": rng.uniform(1, 3, ROWS).astype(np.float32),
        "thickness_um": rng.uniform(0.4, 0.8, ROWS).astype(np.float32),
        "incidence": rng.uniform(-20, 20, (ROWS, 2)).astype(np.float32),
    }


def network_of(trained: Path) -> MadeUpNet:
    network = load_network(trained)
    assert isinstance(network, MadeUpNet)
    return network


def as_columns(conditions: dict[str, Array]) -> dict[str, Array]:
    return {name: values.reshape(ROWS, -1) for name, values in conditions.items()}


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_every_condition_was_trained(trained: Path) -> None:
    """The loss reaches all weights: those of the conditions at the defaults, which is all that the data set has."""
    state = torch.load(trained, map_location="cpu", weights_only=True)
    assert state["network"][0] == "MadeUpNetConfig"
    moments = [one["exp_avg_sq"] for one in state["optimizer_states"][0]["state"].values()]
    assert len(moments) == len(list(network_of(trained).parameters())) == 8
    assert all(float(moment.abs().max()) > 0 for moment in moments)


def check_answers(
    url: str, network: MadeUpNet, structures: Structure, conditions: dict[str, Array], defaults: bool = True
) -> None:
    """Spectra, and gradients with respect to everything, are those of the network in PyTorch."""
    expected = predict(network, structures, conditions=as_columns(conditions))
    cotangent = np.random.default_rng(6).standard_normal(expected.shape, np.float32)
    leaves = {name: torch.tensor(values, requires_grad=True) for name, values in as_columns(conditions).items()}
    density = torch.tensor(structures[:, None], dtype=torch.float32, requires_grad=True)
    (network(density, **leaves).flatten(1, 2) * torch.from_numpy(cotangent)).sum().backward()
    with Surrogate(url, batch_size=3) as surrogate:
        assert surrogate.metadata().conditions == network.conditions
        close(surrogate.predict(structures, **conditions).values, expected)
        found = surrogate.gradients(structures, cotangent, **conditions)
        assert density.grad is not None
        close(found.structure, density.grad[:, 0].numpy())
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            close(found.conditions[name], leaf.grad.numpy().reshape(conditions[name].shape))
        one: dict[str, Any] = {
            "thickness_um": 0.45,
            "incidence": [3, -4.5],
        }  # for all rows; the distance at its default
        full = {"thickness_um": np.full((ROWS, 1), 0.45), "incidence": np.tile([3, -4.5], (ROWS, 1))}
        full["distance_um"] = np.full((ROWS, 1), network.conditions[0].defaults[0])
        at = {name: values.astype(np.float32) for name, values in full.items()}
        close(surrogate.predict(structures, **one).values, predict(network, structures, conditions=at))
        if defaults:
            close(surrogate.predict(structures).values, predict(network, structures))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_asks_our_server(
    server: RunningServer, trained: Path, unseen: Structure, conditions: dict[str, Array], protocol: str
) -> None:
    url = server.url if protocol == "http" else f"grpc://{server.grpc_address}"
    check_answers(url, network_of(trained), unseen[:ROWS], conditions)


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_asks_triton(
    repository: Path, trained: Path, unseen: Structure, conditions: dict[str, Array], tmp_path: Path, protocol: str
) -> None:
    with start_triton(python_repository(repository, tmp_path / "triton"), tmp_path) as triton:
        url = f"{protocol}://{triton.http if protocol == 'http' else triton.grpc}"
        check_answers(url, network_of(trained), unseen[:ROWS], conditions)


def test_rest(server: RunningServer, trained: Path, unseen: Structure, conditions: dict[str, Array]) -> None:
    body = {name: values.tolist() for name, values in conditions.items() if name != "thickness_um"}
    answer = server.post("/predict?thickness_um=0.7", json=body | {"structures": unseen[:ROWS].tolist()})
    at = as_columns(conditions | {"thickness_um": np.full(ROWS, 0.7, np.float32)})
    expected = predict(network_of(trained), unseen[:ROWS], conditions=at)
    close(np.array(answer.raise_for_status().json()["spectra"]), expected)
    wrong = server.post("/predict?thickness_um=0.9", json=body | {"structures": unseen[:ROWS].tolist()})
    assert wrong.status_code == 422
    assert wrong.json()["detail"] == "thickness_um must lie between 0.4 and 0.8 um, got 0.9"


def test_designs_with_two_free_numbers_and_a_fixed_vector(
    server: RunningServer, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    free = ["--free", "thickness_um:0.45:0.75", "--free", "distance_um:1:3", "--condition", "incidence=3,-4.5"]
    assert give(["optimise", "--out", out, *free, "--steps", 4, "--starts", 3, "--url", server.url]) == 0
    report = read_report(out)
    own = {name: [(one.conditions or {})[name] for one in report.designs] for name in ("distance_um", "thickness_um")}
    at = {name: np.array(values, np.float32)[:, None] for name, values in own.items()}
    at["incidence"] = np.tile(np.array([3, -4.5], np.float32), (3, 1))
    designs = np.load(out / "designs.npy")
    close(np.load(out / "spectra.npy"), predict(network_of(trained), designs, conditions=at))
    assert report.process_of(report.designs[0]).thickness_um == own["thickness_um"][0]
    assert "distance_um" in capsys.readouterr().out


def test_merged_greens_at_conditions(
    trained: Path, data: Path, unseen: Structure, conditions: dict[str, Array], tmp_path: Path
) -> None:
    """Where only the mean of the greens was taught, both are that mean at all values."""
    source = read_source(trained, [data])
    merged = replace(source, provenance=source.provenance.model_copy(update={"merged_greens": True}))
    publish(tmp_path / "models", 1, list(build(merged, Variants(), "test", lambda line: None)))
    own = predict(network_of(trained), unseen[:ROWS], conditions=as_columns(conditions))
    assert np.abs(own[:, 1] - own[:, 2]).max() > 1e-3
    with running_server("--repository", str(tmp_path / "models")) as server, Surrogate(server.url) as surrogate:
        spectra = surrogate.predict(unseen[:ROWS], **conditions)
        assert spectra.merged_greens
        np.testing.assert_array_equal(spectra.values[:, 1], spectra.values[:, 2])
        close(spectra.values, with_merged_greens(own))
        body = {"structures": unseen[:1].tolist(), "distance_um": 1.25}
        answer = server.post("/predict", json=body).raise_for_status().json()
        assert answer["merged_greens"] is True
        close(np.array(answer["spectra"]), surrogate.predict(unseen[:1], distance_um=1.25).values)
