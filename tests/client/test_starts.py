"""Given starts: latents that give a structure back, and `metaspec optimise --start FILE`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import Surrogate, objectives
from metaspec.layouts import write_gds
from metaspec.optimise import by_name
from metaspec.topology import Parameterisation, feature_size, random_latents, without_small_features
from metaspec_contract.run_folder import read_report
from metaspec_testing.commands import Command
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

DESIGN = Path(__file__).parents[2] / "docs" / "design" / "router_78nm.npy"


@pytest.mark.parametrize("symmetry", [None, "diagonal"])
def test_what_the_filter_made_is_given_back(symmetry: str | None) -> None:
    parameterisation = Parameterisation(symmetry=symmetry)
    structures = parameterisation.binary(random_latents(2, seed=7, correlation_nm=(60.0, 120.0)))
    latents = parameterisation.latent(structures)
    assert latents.min() >= 0
    assert latents.max() <= 1
    assert (parameterisation.binary(latents) != structures).mean() < 2e-4
    plain = parameterisation.binary(structures.astype(np.float64))
    assert (plain != structures).mean() > 0.01  # the structure itself is no such latent


def test_a_design_with_features_of_78_nm_is_given_back() -> None:
    parameterisation = Parameterisation()
    design = np.load(DESIGN)
    latent = parameterisation.latent(design)
    np.testing.assert_array_equal(parameterisation.binary(latent), design)
    assert np.abs(parameterisation.density(latent, 64.0) - design).mean() < 0.02


def test_what_the_filter_cannot_make_is_lost_where_it_is_too_small() -> None:
    """A square stays, noise beside it is lost."""
    structure = np.zeros((128, 128), np.uint8)
    structure[20:60, 20:60] = 1
    structure[80:120] = np.random.default_rng(0).integers(0, 2, (40, 128))
    back = Parameterisation().binary(Parameterisation().latent(structure))
    assert (back[80:120] != structure[80:120]).mean() > 0.05
    np.testing.assert_array_equal(back[10:70], structure[10:70])


def test_given_latents_are_the_first_starts() -> None:
    latents = random_latents(2, seed=5)
    method = by_name("adam", 4, seed=1, latents=latents)
    np.testing.assert_array_equal(method.ask()[:2], latents)
    np.testing.assert_array_equal(method.ask()[2:], random_latents(4, seed=1)[2:])
    with pytest.raises(ValueError, match=r"latents must be at most 1 rows of \(128, 128\), got shape \(2, 128, 128\)"):
        by_name("adam", 1, latents=latents)
    with pytest.raises(ValueError, match=r'latents are starts of gradient methods, adam, .*, not of "cmaes"'):
        by_name("cmaes", 4, latents=latents)


def write_starts(folder: Path) -> tuple[list[Any], Array]:
    """Three structures in three files of different kinds and grids."""
    structures = Parameterisation(min_feature_nm=90.0).binary(random_latents(3, seed=11))
    write_gds(folder / "a.gds", structures[0], array=(2, 2))
    np.save(folder / "b.npy", np.kron(structures[1:], np.ones((2, 2))))
    return ["--start", folder / "a.gds", "--start", folder / "b.npy"], structures


@pytest.mark.parametrize(("width", "starts"), [(0, 3), (90, 4)])
def test_a_run_from_files_is_never_worse_than_they_are(
    metaspec: Command, server: RunningServer, tmp_path: Path, width: int, starts: int
) -> None:
    """Random starts are added where more are asked for."""
    given, structures = write_starts(tmp_path)
    out = tmp_path / "designs"
    more = ["--starts", starts] if starts > 3 else []
    run = ["optimise", "--url", server.url, "--out", out, "--steps", 2, "--min-feature-nm", width, *more, *given]
    status, printed, errors = metaspec(*run)
    assert (status, errors) == (0, "")
    assert printed.startswith(f"Optimising objective bayer, {starts} starts, adam; ")
    assert f"Start {tmp_path / 'a.gds'}: cell ROUTER_ARRAY, " in printed
    assert f"Start {tmp_path / 'b.npy'}: 2 structures, 256 x 256 pixels averaged to 128 x 128, " in printed
    assert printed.count("the filter of 80 nm loses 0") == 2
    report = read_report(out)
    with Surrogate(server.url) as surrogate:
        before = objectives.by_name("bayer")(surrogate.predict(structures))[0]
    assert len(report.designs) == starts
    for design in report.designs:
        assert design.start >= 3 or design.objective >= np.asarray(before)[design.start] - 1e-6
    if width:
        assert all(min(feature_size(one)) >= width for one in np.load(out / "designs.npy"))
    again = metaspec(*run)
    assert again[0] == 0
    assert "is finished, nothing to do" in again[1]
    status, _, errors = metaspec(*run[:-2])
    assert (status, errors.count("\n")) == (2, 1)
    assert "belongs to an optimisation with other settings: start" in errors
    assert "start a.gds (" in errors


def test_small_features_of_a_start_are_repaired(metaspec: Command, server: RunningServer, tmp_path: Path) -> None:
    (structure,) = Parameterisation(40.0).binary(random_latents(1, seed=3, correlation_nm=(40.0, 80.0)))
    np.save(tmp_path / "a.npy", structure)
    run = ["optimise", "--url", server.url, "--out", tmp_path / "designs", "--steps", 1, "--start", tmp_path / "a.npy"]
    status, printed, _ = metaspec(*run, "--min-feature-nm", 100)
    assert status == 0
    changed = 100 * (without_small_features(structure, 100.0) != structure).mean()
    assert f"repaired to 100 nm in {changed:.2g} % of the pixels" in printed


def test_grey_starts_are_warned_of_and_settings_say_what_ran(
    metaspec: Command, server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may come from METASPEC_URL."""
    monkeypatch.setenv("METASPEC_URL", server.url)
    np.save(tmp_path / "grey.npy", np.full((128, 128), 0.4))
    out = tmp_path / "designs"
    status, printed, errors = metaspec("optimise", "--out", out, "--steps", 1, "--start", tmp_path / "grey.npy")
    assert (status, errors) == (0, "")
    assert "0.0 % solid, 100 % of the pixels grey, thresholded at 1/2 (40.0 % solid before)" in printed
    warning = "thresholding its grey pixels at 1/2 changes the solid from 40.0 % to 0.0 % of the cell."
    assert f"Warning: {tmp_path / 'grey.npy'}: {warning}" in printed
    settings = read_report(out).settings
    assert settings["starts"] == 1
    assert None not in settings.values()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<dt>start</dt><dd>grey\.npy \([0-9a-f]{16}\)</dd>", page)
    assert "None" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "nowhere.npy"], "nowhere.npy is missing"),
        (["--start", "a.txt"], "a.txt: the name must end in .npy"),
        (["--start", "other.npy"], "other.npy: structures must lie between 0 (void) and 1 (solid), got 7"),
        (["--start", "period.gds"], "period.gds: the outline is 1.6 x 1.6 um, but the period is 2 um"),
        (["--start", "a.npy", "--symmetry", "diagonal"], "a.npy: the structure is not symmetric about the diagonal"),
        (
            ["--start", "a.npy", "--optimiser", "cmaes"],
            "--start needs an optimiser with gradients, got --optimiser cmaes",
        ),
        (["--start", "a.npy", "--start", "a.npy", "--starts", "1"], "--starts must be at least the 2 structures"),
        (["--start", "a.npy", "--start-cell", "A"], "a.npy is no layout: it has no cell 'A'"),
        (["--start-cell", "A"], "--start-cell needs --start FILE"),
        (["--gds-layer", "100/0"], "--gds-layer must not be 100/0, the layer of the unit cell's outline"),
        (
            ["--start", "period.gds", "--start-layer", "7"],
            "--start-layer must be two integers, LAYER/DATATYPE, got '7'",
        ),
        (["--start", "period.gds", "--start-layer", "7/0"], "has nothing in layer 7/0; layers with polygons: 1/0"),
        (["--gds-unit-nm", "3"], "--gds-unit-nm: unit_nm: the period of 2 um is not a multiple of 3 nm"),
        (
            ["--contour-tolerance-nm", "5"],
            "--contour-tolerance-nm: tolerance_nm must be finite and at least 0.75 pixels",
        ),
    ],
)
def test_what_cannot_start(
    metaspec: Command,
    server: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (structure,) = Parameterisation().binary(random_latents(1))
    np.save("a.npy", structure)
    np.save("other.npy", np.full((16, 16), 7))
    write_gds("period.gds", structure, period_um=1.6)
    files = set(tmp_path.iterdir())
    status, printed, errors = metaspec("optimise", "--out", "x", "--url", server.url, *arguments)
    assert (status, printed) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("metaspec: ")
    assert message in line
    assert set(tmp_path.iterdir()) == files  # nothing is begun


def test_a_file_that_cannot_be_read_is_refused_before_anything_is_sent(
    metaspec: Command, nobody: str, tmp_path: Path
) -> None:
    (tmp_path / "a.gds").write_bytes(b"hello")
    status, _, errors = metaspec(
        "optimise", "--out", tmp_path / "x", "--url", f"http://{nobody}", "--start", tmp_path / "a.gds", "--wait", 60
    )
    assert (status, errors) == (
        2,
        f"metaspec: {tmp_path / 'a.gds'} is not a GDSII file: it does not begin with a header\n",
    )


def test_robust_designs_state_their_eroded_and_dilated_forms(
    metaspec: Command, server: RunningServer, tmp_path: Path
) -> None:
    out = tmp_path / "designs"
    run = ["optimise", "--url", server.url, "--out", out, "--steps", 6, "--starts", 2, "--robust-delta", 0.1]
    status, printed, _ = metaspec(*run, "--objective", "min")
    assert status == 0
    assert "Ranked by objective min, the worst of eroded, nominal and dilated" in " ".join(printed.split())
    report = read_report(out)
    assert report.ranked_by == "objective min, the worst of eroded, nominal and dilated"
    for design in report.designs:
        assert design.eroded is not None
        assert design.dilated is not None
        forms = (design.eroded.predicted, design.predicted, design.dilated.predicted)
        efficiencies = [form.min_efficiency for form in forms]
        assert None not in efficiencies
        assert design.objective == pytest.approx(min(one or 0 for one in efficiencies), abs=1e-6)
        assert -100 < design.eroded.shift_nm < 0 < design.dilated.shift_nm < 100
        cells = [f"{one:.3f}" for one in efficiencies if one is not None]
        (row,) = (line for line in printed.splitlines() if line.split()[:1] == [f"{design.rank:03d}"])
        assert set(cells) <= set(row.split())
        assert f"{design.objective:.4f}" in row.split()
    dilations = sorted(design.dilated.shift_nm for design in report.designs if design.dilated is not None)
    ends = dict.fromkeys(f"{shift:+.0f}" for shift in (dilations[0], dilations[-1]))
    assert f", {' to '.join(ends)} nm" in " ".join(printed.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"({round(report.designs[0].dilated.shift_nm):+d}&nbsp;nm)" in page  # type: ignore[union-attr]
    assert "Ranked by objective min, the worst of eroded, nominal and dilated." in page


def test_narrow_features_are_warned_of(metaspec: Command, server: RunningServer, tmp_path: Path) -> None:
    out = tmp_path / "designs"
    np.save(tmp_path / "lines.npy", np.arange(128 * 128).reshape(128, 128) % 16 < 3)  # 47 nm wide
    run = ["optimise", "--url", server.url, "--out", out, "--steps", 1, "--start", tmp_path / "lines.npy"]
    run += ["--radius-nm", 20]
    status, printed, errors = metaspec(*run)
    assert status == 0
    (design,) = json.loads((out / "report.json").read_text())["designs"]
    assert min(design["solid_nm"], design["void_nm"]) < 60
    warning = "Features narrower than 60 nm, which few processes can make: design 000."
    assert errors == ""
    assert f"Warning: {warning}" in printed
    assert warning in (out / "report.html").read_text(encoding="utf-8")
    assert "solid, void: narrowest features in whole pixels (imageruler)" in " ".join(printed.split())


def test_the_document_from_python(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "inverse-design.md").read_text(encoding="utf-8")
    section = text[text.index("### From Python") : text.index("### Predictions")]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", server.url).replace("=16", "=2").replace("=200", "=3"), names)
    assert read_report(tmp_path / "designs").designs[0].objective == names["result"].value[0]
    assert names["binary"].value.shape == (1,)
    assert names["report"]["settings"] == {}
