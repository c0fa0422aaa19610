"""What a new user gets: the bundled model, served, agrees with the solver as well as its report says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gdstk
import numpy as np
import pytest
import tritonclient.http as triton

from metaspec import Surrogate
from metaspec.topology import feature_size
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.dataset import Samples, load
from metaspec_testing.servers import RunningServer

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "docs" / "report" / "report.json").read_text())
    return document


@pytest.fixture(scope="module")
def test_set(report: dict[str, Any]) -> Samples:
    """The test split as it was when the bundled model was measured; the data set may have grown since."""
    samples = load(ROOT / "datasets" / "bayer-600nm-80")
    kept = np.flatnonzero(samples.split == "test")[: report["counts"]["test"]]
    return samples.take(kept)


def test_the_sdk_gets_the_reported_error(bundled: RunningServer, test_set: Samples, report: dict[str, Any]) -> None:
    with Surrogate(bundled.url) as surrogate:
        predicted = surrogate.predict(test_set.structures)
        metadata = surrogate.metadata()
    mae = float(np.abs(predicted.values - test_set.spectra).mean())
    assert mae == pytest.approx(report["errors"]["network"]["mae"], abs=1e-6)
    assert mae == pytest.approx(metadata.details["metrics"]["test"]["mae"], abs=1e-6)
    by_detector = report["errors"]["network"]["mae_by_detector"]
    for i, channel in enumerate(predicted.channels):
        error = float(np.abs(predicted.values[:, i] - test_set.spectra[:, i]).mean())
        assert error == pytest.approx(by_detector[channel], abs=1e-6)


def test_the_stock_triton_client_gets_the_reported_error(
    bundled: RunningServer, test_set: Samples, report: dict[str, Any]
) -> None:
    with triton.InferenceServerClient(bundled.address) as client:
        tensor = triton.InferInput("structure", [len(test_set), 1, 128, 128], "FP32")
        tensor.set_data_from_numpy(test_set.structures[:, None].astype(np.float32))
        spectra = client.infer("diffractionnet", [tensor]).as_numpy("spectra")
    mae = float(np.abs(spectra - test_set.spectra).mean())
    assert mae == pytest.approx(report["errors"]["network"]["mae"], abs=1e-6)


def test_the_gradient_of_a_figure_of_merit_through_the_server(bundled: RunningServer, test_set: Samples) -> None:
    """Moving along the gradient raises the figure of merit as much as the gradient says."""
    with triton.InferenceServerClient(bundled.address) as client:

        def ask(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            tensors = []
            for name, value in (("structure", density), ("cotangent", cotangent)):
                tensor = triton.InferInput(name, list(value.shape), "FP32")
                tensor.set_data_from_numpy(value)
                tensors.append(tensor)
            answer = client.infer("diffractionnet_vjp", tensors)
            return (answer.as_numpy("spectra") * cotangent).sum(axis=(1, 2)), answer.as_numpy("gradient")

        density = 0.2 + 0.6 * test_set.structures[:4, None].astype(np.float32)
        cotangent = np.zeros((4, 4, 301), np.float32)
        cotangent[:, 0, 200:300] = 0.01  # red efficiency
        merit, gradient = ask(density)
        step = 0.02 * gradient / np.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
        raised, _ = ask(density + step)
    expected = (gradient * step).sum(axis=(1, 2, 3))
    assert (expected > 0).all()
    np.testing.assert_allclose(raised - merit, expected, rtol=0.25)


def test_predict_refuses_a_gradient_model(bundled: RunningServer) -> None:
    body = np.zeros(2048, np.uint8).tobytes()
    headers = {"Content-Type": "application/octet-stream"}
    answer = bundled.post("/predict?model=diffractionnet_vjp", content=body, headers=headers)
    assert answer.status_code == 422
    assert "ask for it at /gradient" in answer.json()["detail"]


def test_the_network_clearly_beats_the_trivial_predictors(report: dict[str, Any]) -> None:
    errors = report["errors"]
    for trivial in ("mean spectrum", "nearest training structure"):
        for channel, mae in errors["network"]["mae_by_detector"].items():
            assert mae < 0.5 * errors[trivial]["mae_by_detector"][channel]


def test_a_predicted_symmetry_of_the_device(bundled: RunningServer, test_set: Samples) -> None:
    """Transposing the structure swaps G1 and G2: nothing in the network forces that, it has learnt it."""
    with Surrogate(bundled.url) as surrogate:
        spectra = surrogate.predict(test_set.structures).values
        transposed = surrogate.predict(test_set.structures.swapaxes(1, 2)).values[:, [0, 2, 1, 3]]
    assert 0 < np.abs(spectra - transposed).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "predicted", "simulated"),
    [
        ("router_78nm_2", "The network predicts .{} for it", "went from .606 to .{}, simulated at 80 cells"),
        ("router_78nm", "The present network predicts .{}", "| 000 | .581 | .570 | .572 | .604 | .{} |"),
        ("router", "| predicted | .{} |", "| simulated, 80 cells | .{} |"),
    ],
)
def test_published_designs_are_as_good_as_it_says(
    bundled: RunningServer, name: str, predicted: str, simulated: str
) -> None:
    folder, text = ROOT / "docs" / "design", (ROOT / "docs" / "inverse-design.md").read_text()
    structure = np.load(folder / f"{name}.npy")
    with Surrogate(bundled.url) as surrogate:
        by_network = float(surrogate.predict(structure).min_efficiency()[0])
    spectra = Solver(Process(), 80).simulate(structure).spectra[None]
    by_solver = float(colour_efficiency(spectra, Process().wavelengths_nm).min())
    assert predicted.format(f"{by_network * 1000:.0f}") in text
    assert simulated.format(f"{by_solver * 1000:.0f}") in text
    assert min(feature_size(structure)) > 78
    assert solid_area(folder / f"{name}.gds") == pytest.approx(structure.mean() * 4.0)


def test_the_design_of_the_readme_is_that_of_the_documents() -> None:
    row = re.search(
        r"^\| then polished: `docs/design/router_78nm_2.npy` and `.gds` \| (\S+) \|",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    assert row
    assert f"went from .606 to {row[1]}, simulated at 80 cells" in (ROOT / "docs" / "inverse-design.md").read_text()


def solid_area(layout: Path) -> float:
    """Area of the solid in a layout, in um^2."""
    (cell,) = gdstk.read_gds(layout).top_level()
    assert isinstance(cell, gdstk.Cell)
    return float(sum(polygon.area() for polygon in cell.polygons if polygon.layer == 1))


def run_example(name: str, url: str, folder: Path, original: str = "", shorter: str = "") -> str:
    """Run an example as a user does, with a line that is `shorter` than the `original` one."""
    interpreter = "sh" if name.endswith(".sh") else sys.executable
    script = (ROOT / "client" / "examples" / name).read_text()
    assert original in script
    (folder / name).write_text(script.replace(original, shorter) if original else script)
    command = [interpreter, str(folder / name), url]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment).stdout


def test_the_first_prediction_example(bundled: RunningServer, tmp_path: Path) -> None:
    assert "10 structures, R/G1/G2/B, 301 wavelengths" in run_example("first_prediction.py", bundled.url, tmp_path)
    assert (tmp_path / "first_prediction.png").read_bytes().startswith(b"\x89PNG")


def test_the_curl_example_asks_for_stripes(bundled: RunningServer, tmp_path: Path) -> None:
    answer = json.loads(run_example("first_prediction.sh", bundled.url, tmp_path))
    assert answer["merged_greens"] is False
    stripes = np.broadcast_to(np.arange(128) // 16 % 2 == 0, (128, 128))
    with Surrogate(bundled.url) as surrogate:
        np.testing.assert_allclose(answer["spectra"], surrogate.predict(stripes).values, atol=1e-5)


def test_the_evolution_example_improves(bundled: RunningServer, tmp_path: Path) -> None:
    lines = run_example("cma_es.py", bundled.url, tmp_path).splitlines()
    best = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(best) == 40
    assert max(best[-5:]) > max(best[:5]) + 0.02


def test_the_router_example_ends_in_a_layout(bundled: RunningServer, tmp_path: Path) -> None:
    shorter = "STARTS, STEPS, SEED = 4, 60, 0", "STARTS, STEPS, SEED = 2, 30, 0"
    output = run_example("colour_router.py", bundled.url, tmp_path, *shorter)
    report = json.loads((tmp_path / "colour-router" / "report.json").read_text())
    design = report["designs"][0]
    assert f"min(R, G, B) {design['predicted']['min_efficiency']:.3f}" in output
    assert design["predicted"]["min_efficiency"] > 0.40
    solid = np.load(tmp_path / "colour-router" / "designs.npy")[0]
    assert solid_area(tmp_path / "colour-router" / design["files"]["layout"]) == pytest.approx(solid.mean() * 4.0)


def test_the_distance_example_finds_distances(bundled: RunningServer, tmp_path: Path) -> None:
    shorter = "STARTS, STEPS, SEED = 4, 60, 0", "STARTS, STEPS, SEED = 2, 12, 0"
    output = run_example("free_distance.py", bundled.url, tmp_path, *shorter)
    report = json.loads((tmp_path / "free-distance" / "report.json").read_text())
    found = [design["conditions"]["distance_um"] for design in report["designs"]]
    said = re.findall(r"^distance (\S+) um, (\S+) um at first: min\(R, G, B\) (\S+)$", output, re.M)
    assert [float(distance) for distance, _, _ in said] == [round(distance, 3) for distance in found]
    assert sorted(before for _, before, _ in said) == ["1.500", "2.500"]
    assert all(1 <= distance <= 3 and distance != float(said[n][1]) for n, distance in enumerate(found))
    best = re.findall(r"^the best one at (\S+) um: (\S+)$", output, re.M)
    assert len(best) == 5
    assert (f"{found[0]:.3f}", said[0][2]) in best


def test_the_torch_example_finds_a_router(bundled: RunningServer, tmp_path: Path) -> None:
    output = run_example("torch_gradient.py", bundled.url, tmp_path, "STEPS = 30", "STEPS = 12")
    found = [float(value) for value in re.findall(r"efficiencies (\S+) in the best start", output)]
    assert len(found) == 12
    assert found[-1] > found[0] + 0.05
    structure = np.load(tmp_path / "router.npy")
    with Surrogate(bundled.url) as surrogate:
        reached = float(surrogate.predict(structure).min_efficiency()[0])
    assert f"binary: {reached:.3f}" in output


def test_the_jax_example_raises_what_it_says(bundled: RunningServer, tmp_path: Path) -> None:
    lines = run_example("jax_gradient.py", bundled.url, tmp_path).splitlines()
    first, last = ([float(value) for value in line.partition("blue ")[2].split(",")] for line in (lines[0], lines[-1]))
    assert len(lines) == 15
    assert len(first) == 4
    assert all(after > before + 0.02 for before, after in zip(first, last, strict=True))


def test_the_curl_commands_of_the_readme(bundled: RunningServer, tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 2
    for command in commands:
        script = command.replace("http://127.0.0.1:8000", bundled.url).replace("python3", sys.executable)
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(result.stdout)["channels"] == ["R", "G1", "G2", "B"]


@pytest.mark.parametrize("document", ["README.md", "docs/trust.md"])
def test_the_python_of_the_documents(document: str, bundled: RunningServer, test_set: Samples) -> None:
    names: dict[str, Any] = {"structures": test_set.structures[:8]}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", bundled.url), names)
    spectra = names["spectra"]
    if document == "README.md":
        assert spectra.values.shape == (10, 4, 301)
        assert spectra.colour_efficiency().shape == (10, 3)
    else:
        assert spectra.channels == ("R", "G1", "G2", "B", "spread")
        assert spectra.channel("spread").mean(axis=1).shape == (8,)
