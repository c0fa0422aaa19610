"""The notebooks of docs/notebooks, as they stand, each in a kernel of its own against a real server of tiny models."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from metaspec_contract.model import METADATA_KEY
from metaspec_testing.five_channels import five_channel_model
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import small_gradient_model, small_model, write_repository

nbclient = pytest.importorskip("nbclient", reason="needs the extra notebook and a kernel")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("anywidget")

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
ADDRESS = "http://127.0.0.1:8000"
QUICK = {"STARTS, STEPS = 4, 40": "STARTS, STEPS = 2, 8", "random_latents(60": "random_latents(40"}
"""What makes a notebook quick."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # kernels that import PyTorch and JAX


def symmetric(kind: str) -> onnx.ModelProto:
    """A model of five channels by the name that the symmetric one has."""
    model = five_channel_model(kind)
    (entry,) = model.metadata_props
    about = json.loads(entry.value)
    about["name"] = about["name"].replace("diffractionnet", "diffractionnet_symmetric")
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(about)})
    return model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("models")
    for model in (small_model(), small_gradient_model(), symmetric("forward"), symmetric("vjp")):
        write_repository(root, model)
    with running_server("--repository", str(root)) as running:
        yield running


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a kernel runs; it keeps nothing elsewhere."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def execute(book: Any, folder: Path) -> None:
    """Run all cells; an error in one is raised."""
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        book, timeout=300, startup_timeout=300, kernel_name="python3", resources=resources
    ).execute()


def kinds(cell: Any) -> list[str]:
    """Kinds of a cell's outputs: the richest type of each display, or the name of a stream."""
    order = ("application/vnd.jupyter.widget-view+json", "image/png", "text/html", "text/plain")
    return [
        next(kind for kind in order if kind in output["data"]) if "data" in output else output["name"]
        for output in cell["outputs"]
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tiny: RunningServer, kernel_folder: Path) -> None:
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert ADDRESS in str(book)
    for cell in book.cells:
        for text, other in {ADDRESS: tiny.url, **QUICK}.items():
            cell.source = cell.source.replace(text, other)
    execute(book, kernel_folder)
    shown = {cell.source: kinds(cell) for cell in book.cells if cell.cell_type == "code"}
    if name != "own_data":  # Lightning says there what it does
        assert not any("stderr" in found for found in shown.values()), shown
    last = {source: found for source, found in shown.items() if source.splitlines()[-1].startswith("draw_")}
    assert all(found == ["image/png"] for found in last.values()), "a figure shows itself, once"
    if name == "first_prediction":
        assert len(last) == 2
        rich = [found for source, found in shown.items() if source.endswith(("metadata()", "\nspectra", "\nwidget"))]
        assert rich == [["text/html"], ["text/html"], ["application/vnd.jupyter.widget-view+json"]]
    if name == "inverse_design":
        assert (kernel_folder / "designs" / "report.html").exists()
    if name == "own_data":
        assert (kernel_folder / "mine.ckpt").exists()


def test_figures_show_themselves_once_beside_pyplot(kernel_folder: Path) -> None:
    """Where pyplot has been imported, as in most notebooks, IPython shows its figures at the end of a cell by itself."""
    sources = [
        "import numpy as np; from metaspec.figures import draw_structure",
        "draw_structure(np.eye(128))",
        "from matplotlib import pyplot; pyplot.plot([1, 2]); pyplot.close()",
        "draw_structure(np.eye(128))",
        "figure = draw_structure(np.eye(128))",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    execute(book, kernel_folder)
    assert [kinds(cell) for cell in book.cells] == [[], ["image/png"], [], ["image/png"], []]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_small_and_hold_no_output(name: str) -> None:
    file = FOLDER / f"{name}.ipynb"
    assert file.stat().st_size < 20_000
    book = json.loads(file.read_text(encoding="utf-8"))
    nbformat.validate(book)
    assert book["metadata"].keys() == {"kernelspec", "language_info"}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_there_are_five() -> None:
    assert NOTEBOOKS == ["first_prediction", "inverse_design", "own_data", "own_objective", "trust"]
