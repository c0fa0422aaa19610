"""What the studio opens and saves, in a real Chromium: the files are those that numpy, Pillow and gdstk read and write."""

from __future__ import annotations

import base64
import csv
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaspec.layouts import read_gds, write_gds
from metaspec_contract.area import average_to_pixels
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.drawings import read_drawing
from metaspec_contract.links import structure_link
from metaspec_contract.process import Process
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected
from metaspec_testing.studio import SPY, click, drag, drawn, settled, text, texts

DESIGNS = Path(__file__).parents[2] / "docs" / "design"
DESIGN = np.load(DESIGNS / "router_78nm.npy")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")]


def open_file(page: Page, path: Path) -> None:
    """Open a file, up to the choice among its structures."""
    page.evaluate("document.getElementById('note').removeAttribute('aria-busy')")
    page.choose_files("#open", path)
    page.wait("document.getElementById('note').ariaBusy === 'false' || document.getElementById('chooser').open")


def refused(page: Page, path: Path) -> str:
    open_file(page, path)
    assert page.evaluate("document.getElementById('note').className.includes('error')")
    return text(page, "#note")


def saved(page: Page, button: str, folder: Path) -> Path:
    """The file that a button saves."""
    page.downloads(folder)
    click(page, f"#{button}")
    deadline = time.monotonic() + 30
    while not (found := [path for path in folder.glob("*") if path.suffix not in ("", ".crdownload")]):
        assert time.monotonic() < deadline, text(page, "#note")
        time.sleep(0.05)
    return found[0]


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", ">i2", "<i4", ">u4", "<i8", ">u8", "<f2", ">f2", "<f4", ">f8"]
)
def test_arrays_of_every_dtype(page: Page, tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "one.npy", DESIGN.astype(dtype))
    open_file(page, tmp_path / "one.npy")
    assert (drawn(page) == DESIGN).all()
    assert text(page, "#note") == ""


def test_orders_grids_and_densities(page: Page, tmp_path: Path) -> None:
    np.save(tmp_path / "fortran.npy", np.asfortranarray(DESIGN.astype(float)))
    open_file(page, tmp_path / "fortran.npy")
    assert (drawn(page) == DESIGN).all()
    fine = np.kron(DESIGN, np.ones((3, 3)))[:-4, :-4]  # 380 x 380
    np.save(tmp_path / "fine.npy", fine)
    open_file(page, tmp_path / "fine.npy")
    averaged = average_to_pixels(fine, (128, 128))
    assert (drawn(page) == (averaged.astype(np.float32) > 0.5)).all()
    between = ((averaged > 1e-6) & (averaged < 1 - 1e-6)).sum()
    assert text(page, "#note") == (
        f"380 x 380 pixels averaged to 128 x 128; {between} pixels were neither solid nor void: thresholded at 1/2"
    )


def test_one_of_several_is_chosen(page: Page, structures: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "designs.npy", structures)
    open_file(page, tmp_path / "designs.npy")
    assert text(page, "#chooser-title") == "designs.npy: 5 structures"
    click(page, "#choices button:nth-child(3)")
    assert (drawn(page) == structures[2]).all()
    open_file(page, tmp_path / "designs.npy")
    page.press("Escape")
    page.wait("!document.getElementById('chooser').open")
    assert (drawn(page) == structures[2]).all()


def test_files_that_are_no_structures(page: Page, tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", DESIGN * 255)
    assert refused(page, tmp_path / "bytes.npy").startswith(
        "bytes.npy: structures must lie between 0 (void) and 1 (solid), got 255 at"
    )
    assert text(page, "#note").endswith("; divide 8-bit images by 255")
    np.save(tmp_path / "flat.npy", np.zeros((128, 64)))
    assert refused(page, tmp_path / "flat.npy").endswith("got (128, 64)")
    np.save(tmp_path / "complex.npy", np.zeros((128, 128), complex))
    assert "expected numbers or booleans, got the dtype <c16" in refused(page, tmp_path / "complex.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:-8])
    assert "expected 65536 bytes of data for the shape (128, 64), got 65528" in refused(page, tmp_path / "cut.npy")
    Image.fromarray(np.stack([DESIGN * 255, DESIGN * 0, DESIGN * 0], axis=-1)).save(tmp_path / "colours.png")
    assert "must be in shades of grey" in refused(page, tmp_path / "colours.png")
    (tmp_path / "notes.txt").write_text("no structure")
    assert "the name must end in .npy, .png" in refused(page, tmp_path / "notes.txt")
    page.complaints.clear()
    (tmp_path / "broken.gds").write_bytes(b"P6")
    assert "broken.gds: body: the layout is not a GDSII file" in refused(page, tmp_path / "broken.gds")
    write_gds(tmp_path / "small.gds", DESIGN, period_um=1.6)
    assert "small.gds: body: the layout: the outline is 1.6 x 1.6 um, but the period is 2 um" in refused(
        page, tmp_path / "small.gds"
    )
    assert not drawn(page).any()
    page.complaints.clear()  # the two answers that the browser's log shows


def test_structures_are_saved_as_others_read_them(page: Page, tmp_path: Path) -> None:
    for number, button in enumerate(("save-npy", "save-png", "save-gds")):
        click(page, f"[data-edit={'random' if number else 'invert'}]")
        drag(page, (20, 20), (100, 110))
        structure = drawn(page)
        path = saved(page, button, tmp_path / button)
        assert (read_drawing(path).densities(Process()) == structure).all()
        if button == "save-npy":
            array = np.load(path)
            assert (array.dtype, array.shape) == (np.uint8, (128, 128))
        if button == "save-gds":
            assert (read_gds(path) == structure).all()
        click(page, "[data-edit=clear]")
        open_file(page, path)
        assert (drawn(page) == structure).all(), "and the page opens what it saves"


def test_layouts_open_with_their_edges_between_pixels(page: Page, tmp_path: Path) -> None:
    write_gds(tmp_path / "contours.gds", DESIGN, tolerance_nm=16)
    open_file(page, tmp_path / "contours.gds")
    assert (drawn(page) == (read_gds(tmp_path / "contours.gds") > 0.5)).all()
    assert "pixels were neither solid nor void: thresholded at 1/2" in text(page, "#note")


def test_spectra_are_saved(page: Page, expected: Expected, tmp_path: Path) -> None:
    drag(page, (20, 20), (100, 110))
    spectra = expected(drawn(page))[0]
    with saved(page, "save-csv", tmp_path / "csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["wavelength_nm", *CHANNELS]
    table = np.array(rows, float)
    np.testing.assert_allclose(table[:, 0], Process().wavelengths_nm)
    np.testing.assert_allclose(table[:, 1:].T, spectra, atol=1e-6)
    picture = np.asarray(Image.open(saved(page, "save-plot", tmp_path / "plot")).convert("RGB")).astype(int)
    assert picture.shape[1] > 800
    curve = (picture[..., 0] > picture[..., 2] + 100).sum(axis=0) > 0  # that of R
    assert curve[200:-100].mean() > 0.9


def test_the_address_holds_the_structure(page: Page, server: RunningServer) -> None:
    page.evaluate("window.before = location.hash")
    drag(page, (20, 20), (100, 110))
    structure = drawn(page)
    page.wait("location.hash !== window.before")
    click(page, "#save-link")
    page.wait("document.getElementById('note').textContent.includes('holds the structure')")
    address, fragment = str(page.evaluate("location.href")).split("#structure=")
    assert address == f"{server.url}/?model=diffractionnet"
    bits = zlib.decompress(base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4)), -15)
    assert bits == np.packbits(structure).tobytes()


def test_a_link_opens_the_studio_with_its_structure(page: Page, server: RunningServer) -> None:
    link = structure_link(server.url, DESIGN, "diffractionnet")
    assert link is not None
    page.open(link)
    settled(page)
    page.evaluate(SPY)
    click(page, "[data-edit=invert]")
    assert (drawn(page) == 1 - DESIGN).all()
    page.evaluate(f"location.hash = {link.partition('#')[2]!r}")  # as when a link is pasted into the address
    page.wait("document.getElementById('undo').disabled === false")
    page.wait("document.getElementById('fill-factor').textContent === '34.0 % solid'")
    assert (drawn(page) == DESIGN).all()
    page.evaluate("location.hash = 'structure=abc'")
    page.wait("document.getElementById('note').textContent.includes('the link may have been cut')")
    assert structure_link("grpc://127.0.0.1:8001", DESIGN, "diffractionnet") is None


def test_a_run_folder_opens_with_its_report(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "bayer"
    folder.mkdir()
    designs = np.stack([DESIGN, np.load(DESIGNS / "router_100nm.npy")])
    np.save(folder / "designs.npy", designs)
    entries = [
        {"rank": rank, "predicted": {"min_efficiency": 0.58 - rank / 10}, "solid_nm": 78.1, "void_nm": 93.8}
        for rank in (0, 1)
    ]
    report = {
        "objective": "bayer",
        "model": "diffractionnet",
        "model_version": "1",
        "simulated": False,
        "designs": entries,
    }
    (folder / "report.json").write_text(json.dumps(report | {"structures_evaluated": 3570, "server_calls": 434}))
    simulated = [{"rank": 1, "simulated": {"64": {"min_efficiency": 0.46}, "80": {"min_efficiency": 0.47}}}]
    (folder / "verify.json").write_text(json.dumps({"designs": simulated}))
    page.choose_files("#open-folder", folder)
    page.wait("document.getElementById('chooser').open")
    assert text(page, "#chooser-title") == "Run bayer: 2 designs"
    assert "predicted by diffractionnet, version 1; 3570 structures in 434 calls" in text(page, "#chooser-remarks")
    assert texts(page, "#choices span") == [
        "000: 0.580",
        "78, 94 nm",
        "001: 0.480",
        "simulated 0.470 [80]",
        "78, 94 nm",
    ]
    click(page, "#choices button:nth-child(2)")
    assert (drawn(page) == designs[1]).all()
