"""Gradients of a network beside the solver's: measures on known gradients, the solver's files, the report."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from metaspec.topology import conic_filter, tanh_projection
from metaspec_contract.process import Process
from metaspec_simulation import Simulation, Solver
from metaspec_simulation.data.families import FAMILIES, random_structure
from metaspec_training.cli import main
from metaspec_training.report import gradients
from metaspec_training.report.gradients import (
    GREY_BETA,
    GREY_RADIUS_NM,
    PARTS,
    Comparison,
    Truth,
    agreement,
    by_family,
    compare,
    document,
    efficiencies,
    grey,
    solver_truth,
    table,
)

Array = NDArray[np.floating]

ORDERS = [PARTS.index(part) for part in PARTS if part.startswith("orders")]
REGIONS = [PARTS.index(part) for part in ("edges", "inside solid", "inside void")]
SPECTRA = np.zeros((2, 4, 301), np.float32)


@pytest.fixture(scope="module")
def densities() -> Array:
    """Two structures, float32 (2, 128, 128)."""
    rng = np.random.default_rng(0)
    return np.stack([random_structure(rng, family) for family in FAMILIES[:2]]).astype(np.float32)


@pytest.fixture(scope="module")
def noise() -> Array:
    """Gradients of which nothing is special, (2, 3, 128, 128)."""
    return np.random.default_rng(1).standard_normal((2, 3, 128, 128)).astype(np.float32)


def compared(gradients: Array, exact: Array, densities: Array) -> Comparison:
    return agreement(gradients, Truth(densities, SPECTRA, exact), np.zeros(len(densities)))


@pytest.mark.parametrize("factor", [1.0, 0.3, -2.0])
def test_a_multiple_has_the_same_direction_in_every_part(factor: float, noise: Array, densities: Array) -> None:
    found = compared(factor * noise, noise, densities)
    np.testing.assert_allclose(found.cosine, np.sign(factor), atol=1e-6)
    np.testing.assert_allclose(found.ratio, abs(factor), rtol=1e-6)
    np.testing.assert_allclose(found.slope, factor, rtol=1e-6)


def test_bands_and_regions_share_the_power_among_them(noise: Array, densities: Array) -> None:
    share = compared(noise, noise, densities).share
    np.testing.assert_allclose(share[0], 1)
    np.testing.assert_allclose(share[ORDERS].sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(share[REGIONS].sum(axis=0), 1, rtol=1e-6)
    solid = densities > 0.5
    inside = share[PARTS.index("inside solid")] + share[PARTS.index("edges")]
    assert (inside.mean(axis=1) > solid.mean(axis=(1, 2))).all()  # half of the edge is outside


def test_independent_gradients_do_not_agree(noise: Array, densities: Array) -> None:
    found = compared(np.roll(noise, 1, axis=1), noise, densities)
    assert np.abs(found.cosine[0]).max() < 0.03  # the standard deviation is 1 / 128
    np.testing.assert_allclose(found.ratio[0], 1, atol=0.03)


@pytest.mark.parametrize(("order", "band"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (23, 2), (24, 3), (64, 3)])
def test_a_wave_lies_in_the_band_of_its_order(order: int, band: int, noise: Array, densities: Array) -> None:
    wave = np.broadcast_to(np.cos(2 * np.pi * order * np.arange(128) / 128), (2, 3, 128, 128))
    share = compared(noise, wave, densities).share[ORDERS]
    np.testing.assert_allclose(share, np.eye(4)[band][:, None, None] * np.ones((1, 2, 3)), atol=1e-9)
    found = compared(noise + 100 * wave, noise, densities)  # and what is wrong with it is wrong in that band only
    others = [part for place, part in enumerate(ORDERS) if place != band]
    np.testing.assert_allclose(found.cosine[others], 1, atol=1e-3)
    assert (found.ratio[ORDERS[band]] > 2).all()


def test_regions(noise: Array, densities: Array) -> None:
    """A gradient that is a third inside solid, and right elsewhere."""
    square = np.zeros((1, 128, 128), np.float32)
    square[:, 100:, :] = square[:, :20, :] = 1  # across the border of the cell: it is periodic
    gradients = noise[:1].copy()
    gradients[:, :, 101:] /= 3
    gradients[:, :, :19] /= 3
    found = agreement(gradients, Truth(square, SPECTRA[:1], noise[:1]), np.zeros(1))
    ratio = dict(zip(PARTS, found.ratio, strict=True))
    np.testing.assert_allclose(ratio["inside solid"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(ratio["inside void"], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio["edges"], 1, rtol=1e-6)
    edges = found.share[PARTS.index("edges")]
    np.testing.assert_allclose(edges, 4 * 128 / 128**2, rtol=0.2)  # two edges, a pixel on either side


def test_what_a_structure_lacks_is_left_out(noise: Array, densities: Array) -> None:
    film = np.stack([np.ones((128, 128), np.float32), densities[1]])
    found = compared(noise / 2, noise, film)
    assert np.isnan(found.cosine[PARTS.index("inside void"), 0]).all()
    parts = document(found)["parts"]
    assert parts["inside void"]["ratio"] == pytest.approx({"R": 0.5, "G": 0.5, "B": 0.5})
    alone = document(agreement(noise[:1], Truth(film[:1], SPECTRA[:1], noise[:1]), np.zeros(1)))
    assert alone["parts"]["inside void"]["cosine"] == {"R": None, "G": None, "B": None}
    json.dumps(alone, allow_nan=False)
    nothing = compared(np.zeros_like(noise), noise, densities)  # a network that says nothing
    assert np.isnan(nothing.cosine).all()
    assert (nothing.ratio == 0).all()
    head, first, *_ = table({"one": found, "none": nothing})
    assert head == [
        "part of the gradient",
        *(c for n in ("one", "none") for c in (f"{n}: share", "cosine", "norm ratio")),
    ]
    assert first == ["all pixels", "1.00", "1.00", "0.50", "1.00", "", "0.00"]


class Linear(nn.Module):
    """Spectra (N, 2, 2, 301) that are linear in the density, with the gradients that follow."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pixels, self.spectra = (torch.randn(3, *size, generator=generator) for size in ((128, 128), (2, 2, 301)))

    def forward(self, density: Tensor) -> Tensor:
        return torch.einsum("nyx,kyx,kijw->nijw", density[:, 0], self.pixels, self.spectra)

    def gradients(self) -> Array:
        weights = efficiencies(Process()).astype(np.float32)
        by_mode = np.einsum("mcw,kcw->mk", weights, self.spectra.flatten(1, 2).numpy())
        found: Array = np.einsum("mk,kyx->myx", by_mode, self.pixels.numpy()) * 128**2
        return found


def test_the_gradients_of_a_network(densities: Array) -> None:
    network = Linear()
    spectra = network(torch.from_numpy(densities[:, None])).flatten(1, 2).numpy()
    truth = Truth(densities, spectra + 0.5, np.stack([network.gradients()] * 2))
    found = compare(network, truth, Process(), batch_size=1)
    np.testing.assert_allclose(found.gradients, truth.gradients, rtol=1e-3, atol=1e-4 * truth.gradients.std())
    np.testing.assert_allclose([found.cosine, found.ratio], 1, atol=1e-4)
    np.testing.assert_allclose(found.spectra_error, 0.5, rtol=1e-3)
    opposite = truth.spectra.copy()
    opposite[:, 1:3] += np.array([7, -7], np.float32)[:, None]  # in the difference of G1 and G2
    merged = compare(network, Truth(densities, opposite, truth.gradients), Process(), merged_greens=True)
    np.testing.assert_allclose(merged.spectra_error, 0.5, rtol=1e-3)


def test_grey_densities_are_those_of_the_optimisers(densities: Array) -> None:
    process = Process(period_um=1.6)
    density = grey(densities.astype(np.uint8), process)
    filtered = conic_filter(densities.astype(np.float64), GREY_RADIUS_NM, process.pixel_nm)
    np.testing.assert_allclose(density, tanh_projection(filtered, GREY_BETA), atol=1e-6)
    assert ((density > 0.05) & (density < 0.95)).mean() > 0.1
    assert density.dtype == np.float32


def test_families_take_turns() -> None:
    family = np.array(["a", "a", "a", "b", "c", "b"])
    assert by_family(family, 4).tolist() == [0, 3, 4, 1]
    assert by_family(family, 99).tolist() == [0, 3, 4, 1, 5, 2]


def test_the_solver_is_asked_once(densities: Array, tmp_path: Path) -> None:
    solver = Solver(Process(), cells=24, longest=20)
    folder = tmp_path / "new" / "gradients"
    first = solver_truth(solver, densities[:1].astype(np.uint8), folder)
    simulation, exact = solver.gradient(densities[0], efficiencies(Process()))
    np.testing.assert_array_equal(first.spectra[0], simulation.spectra)
    np.testing.assert_allclose(first.gradients[0], exact * 128**2, rtol=1e-3, atol=1e-4 * np.abs(first.gradients).max())
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert sum(file.stat().st_size for file in written) < 105_000

    again = solver_truth(solver, densities[[0, 0]], folder)  # the same one twice
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    np.testing.assert_array_equal(again.gradients[1], first.gradients[0])

    gradients_file = next(file for file in written if "gradients" in file.name)
    gradients_file.write_bytes(gradients_file.read_bytes()[:1000])  # halved by a power cut
    np.testing.assert_array_equal(solver_truth(solver, densities[:1], folder).gradients, first.gradients)
    assert gradients_file.stat().st_size > 90_000
    solver_truth(Solver(Process(), cells=24, longest=15), densities[:1], folder)
    assert len(list(folder.iterdir())) == 4  # what another solver says is another truth


def test_the_report_compares_gradients_on_request(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "report", tmp_path / "cache"
    asked = ["report", str(trained), "--out", str(out), "--gradient_cells=24", f"--gradient_cache={cache}"]
    main([*asked, "--gradients=1"])
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())["gradients"]
    assert report["cells"] == 24
    assert report["binary"]["structures"] == report["grey"]["structures"] == 1
    assert set(report["grey"]["parts"]) == set(PARTS)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    for text in (printed, (out / "report.md").read_text()):
        assert (
            "| part of the gradient | binary: share | cosine | norm ratio | grey: share | cosine | norm ratio |" in text
        )
        assert "compared with the solver's at 24 cells for 1 structures of the split" in text
    assert "<th>part of the gradient</th>" in page
    assert len(list(cache.iterdir())) == 4

    main(asked)
    assert "gradients" not in json.loads((out / "report.json").read_text())
    assert "--gradients 8" in (out / "report.html").read_text()
    with pytest.raises(SystemExit):
        main([*asked, "--gradients=-1"])
    assert capsys.readouterr().err == "metaspec-train: gradients must not be negative, got -1\n"


class Interrupted(Solver):
    """A coarse solver during whose second gradient Ctrl-C is pressed."""

    def __init__(self, process: Process, cells: int, decay: float, threads: int) -> None:
        super().__init__(process, cells, decay, longest=15, threads=threads)
        self.calls = 0

    def gradient(
        self, structure: ArrayLike, cotangent: Any, distance_um: float | None = None
    ) -> tuple[Simulation, NDArray[np.float32]]:
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().gradient(structure, cotangent, distance_um)


def test_an_interrupted_report_keeps_its_gradients(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gradients, "Solver", Interrupted)
    out, cache = tmp_path / "report", tmp_path / "cache"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(SystemExit) as exit_:
            main(
                [
                    *("report", str(trained), "--out", str(out)),
                    *("--gradients=2", "--gradient_cells=24", f"--gradient_cache={cache}"),
                ]
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.endswith("metaspec-train: interrupted\n")
    assert not out.exists()
    assert sorted(file.name.partition("-")[2] for file in cache.iterdir()) == ["gradients.npy", "spectra.npy"]
