"""Where only the mean of G1 and G2 was taught, both are that mean: from the exported graphs to REST and the client."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from metaspec import Surrogate
from metaspec.objectives import TargetSpectra
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation.dataset import load, provenance
from metaspec_testing.servers import RunningServer, running_server
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.report.evaluation import predict, with_merged_greens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # tracing takes minutes on a busy machine

MODELS = ("diffractionnet", "diffractionnet_int8")
G1, G2 = 1, 2


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path_factory.mktemp("merged") / "three-channels", merged_greens=True)


@pytest.fixture(scope="module")
def taught(merged: Path, process: Process, make_checkpoint: Callable[..., Path]) -> Path:
    config = DiffractionFieldNetConfig(
        stem=8, width=16, blocks=0, spectral_basis=8, wavelength_nodes=16, process=process
    )
    return make_checkpoint(merged.with_name("taught.ckpt"), config, provenance({merged.name: load(merged)}))


@pytest.fixture(scope="module")
def server(
    taught: Path, merged: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> Iterator[RunningServer]:
    repository = merged.with_name("models")
    result = command(
        taught, "--repository", repository, "--data", merged, "--precision", "fp32,int8", "--limit", 2, "--allow-dirty"
    )
    assert result.returncode == 0, result.stderr
    with running_server("--repository", str(repository)) as running:
        yield running


@pytest.fixture(scope="module")
def unseen(merged: Path) -> Structure:
    return load(merged).of("test").structures[:3]


@pytest.mark.parametrize("model", MODELS)
def test_the_served_greens_are_one(server: RunningServer, unseen: Structure, taught: Path, model: str) -> None:
    """And what the network predicts for them, averaged. Its own ones differ."""
    own = predict(load_network(taught), unseen)
    assert np.abs(own[:, G1] - own[:, G2]).max() > 1e-3
    body = {"structures": unseen.tolist()}
    answer = server.post(f"/predict?model={model}", json=body).raise_for_status().json()
    assert answer["merged_greens"] is True
    raw = server.post(f"/predict?model={model}", json=body, headers={"Accept": "application/octet-stream"})
    assert raw.headers["MetaSpec-Merged-Greens"] == "true"
    by_rest = np.array(answer["spectra"], np.float32)
    with Surrogate(server.url, model=model) as surrogate:
        assert surrogate.metadata().merged_greens
        by_client = surrogate.predict(unseen)
    assert by_client.merged_greens
    for spectra in (by_rest, by_client.values):
        np.testing.assert_array_equal(spectra[:, G1], spectra[:, G2])
        np.testing.assert_allclose(spectra, with_merged_greens(own), atol=1e-5 if model == MODELS[0] else 2e-2)


@pytest.mark.parametrize("model", MODELS)
def test_so_are_their_gradients(server: RunningServer, unseen: Structure, model: str) -> None:
    cotangent = np.zeros((2, 4, 31), np.float32)
    cotangent[0, G1] = cotangent[1, G2] = np.random.default_rng(0).standard_normal(31)
    twice = np.repeat(unseen[:1], 2, axis=0)
    body = {"structures": twice.tolist(), "cotangent": cotangent.tolist()}
    answer = server.post(f"/gradient?model={model}", json=body).raise_for_status().json()
    spectra, by_rest = (np.array(answer[name], np.float32) for name in ("spectra", "gradient"))
    np.testing.assert_array_equal(spectra[:, G1], spectra[:, G2])
    with Surrogate(server.url, model=model) as surrogate:
        by_client = surrogate.gradient(twice, cotangent)
        # Whatever is wanted of one green alone, the gradient moves both.
        wanted = [TargetSpectra(np.full((1, 31), 0.5), (name,)) for name in ("G1", "G2")]
        moves = [surrogate.predict_and_gradient(unseen[:1], objective)[1] for objective in wanted]
    for first, second in (by_rest, by_client, moves):
        assert np.abs(first).max() > 0
        np.testing.assert_array_equal(first, second)


def test_errors_are_measured_on_a_part_of_the_data_where_that_is_asked_for(server: RunningServer, merged: Path) -> None:
    total = len(load(merged).of("test"))
    assert total > 2
    metrics = server.get("/v2/models/diffractionnet").json()["parameters"]["metrics"]
    assert (metrics["test"]["count"], metrics["test"]["of"]) == (2, total)
    card = (merged.with_name("models") / "diffractionnet" / "1" / "MODEL_CARD.md").read_text()
    assert f"| test | 2 of {total} | {metrics['test']['mae']:.4f} |" in card
    assert "The training data held only the mean of G1 and G2: both channels are that mean." in card
