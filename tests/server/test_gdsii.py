"""Layouts over the wire: the same as the client's files, with the contract's checks, and hostile ones ended in time."""

from __future__ import annotations

import io
from pathlib import Path

import gdstk
import numpy as np
import pytest

from metaspec.layouts import read_gds, write_gds
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

RAW = {"Content-Type": "application/octet-stream"}
DESIGNS = Path(__file__).parents[2] / "docs" / "design"


def read(server: RunningServer, content: bytes, query: str = "") -> Array:
    answer = server.post(f"/gdsii/read{query}", content=content, headers=RAW).raise_for_status()
    assert answer.headers["Content-Type"] == "application/x-npy"
    return np.asarray(np.load(io.BytesIO(answer.content)))


def refusal(server: RunningServer, content: bytes, query: str = "", status: int = 422) -> str:
    answer = server.post(f"/gdsii/read{query}", content=content, headers=RAW)
    assert answer.status_code == status
    return str(answer.json()["detail"])


def test_a_structure_goes_there_and_back(server: RunningServer, structures: Array, tmp_path: Path) -> None:
    for structure in [np.load(DESIGNS / "router_78nm.npy"), structures[0]]:
        body = np.packbits(structure).tobytes()
        answer = server.post("/gdsii/write", content=body, headers=RAW).raise_for_status()
        write_gds(tmp_path / "ours.gds", structure)
        assert answer.content == (tmp_path / "ours.gds").read_bytes(), "the file that the client writes"
        density = read(server, answer.content)
        assert density.dtype == np.float32
        assert (density == structure).all()


def test_cells_layers_and_edges_between_pixels(server: RunningServer, tmp_path: Path) -> None:
    library = gdstk.Library(unit=1e-6, precision=1e-9)
    for name, size in (("SMALL", 0.5), ("LARGE", 1.01)):
        outline = gdstk.rectangle((0, 0), (2, 2), layer=100)
        library.new_cell(name).add(gdstk.rectangle((0, 0), (size, size), layer=7, datatype=2), outline)
    library.write_gds(tmp_path / "two.gds")
    content = (tmp_path / "two.gds").read_bytes()
    density = read(server, content, "?cell=LARGE&layer=7/2")
    np.testing.assert_allclose(density, read_gds(tmp_path / "two.gds", cell="LARGE", layer=(7, 2)))
    assert 0 < density[64, 64] < 1 or 0 < density[63, 64] < 1
    assert "must have one top cell, got LARGE, SMALL" in refusal(server, content, "?layer=7/2")
    assert "the layout has no cell 'OTHER'" in refusal(server, content, "?cell=OTHER")
    assert "has nothing in layer 1/0; layers with polygons: 7/2" in refusal(server, content, "?cell=LARGE")
    assert refusal(server, content, "?layer=1").startswith("layer must be two integers, LAYER/DATATYPE, got '1'")


def test_what_is_no_layout_of_this_device(server: RunningServer, tmp_path: Path) -> None:
    assert refusal(server, b"P6 nothing").startswith("body: the layout is not a GDSII file")
    write_gds(tmp_path / "other.gds", np.eye(128, dtype=np.uint8), period_um=1.6)
    content = (tmp_path / "other.gds").read_bytes()
    assert "the outline is 1.6 x 1.6 um, but the period is 2 um" in refusal(server, content)
    assert "is a damaged GDSII file" in refusal(server, content[:300])
    assert "larger than 4194304 bytes" in refusal(server, bytes(2**22 + 1), status=413)
    assert refusal(server, content, "?model=other", status=404)


def test_what_is_not_one_binary_structure(server: RunningServer) -> None:
    answer = server.post("/gdsii/write", content=bytes(4096), headers=RAW)
    assert answer.status_code == 413
    assert "at most 1 structures in one request, got 2" in answer.json()["detail"]
    answer = server.post("/gdsii/write", json={"structures": np.full((128, 128), 0.5).tolist()})
    assert answer.status_code == 422
    assert "threshold densities first" in answer.json()["detail"]
    answer = server.post("/gdsii/write?layer=100/0", content=bytes(2048), headers=RAW)
    assert answer.status_code == 422
    assert "layer and boundary_layer must differ" in answer.json()["detail"]


@pytest.mark.slow
def test_a_layout_that_takes_minutes_is_refused_while_others_are_answered(
    server: RunningServer, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    library = gdstk.Library(unit=1e-6, precision=1e-9)
    cell = library.new_cell("STARS")
    for _ in range(500):  # whose union takes minutes
        cell.add(gdstk.Polygon(list(map(tuple, rng.uniform(0, 2, (60, 2)))), layer=1))
    library.write_gds(tmp_path / "stars.gds")
    message = refusal(server, (tmp_path / "stars.gds").read_bytes())
    assert message == "body: the layout takes longer than 20 s to read: merge its polygons"
    assert server.get("/v2/health/ready").status_code == 200
