"""Optimising in the studio: its steps are those of the client's library, and its controls work in a real Chromium."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec.objectives import MinEfficiency
from metaspec.optimise import Adam
from metaspec.topology import Parameterisation, beta_schedule, feature_size
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.servers import free_port, running_server
from metaspec_testing.small_models import Array, Expected
from metaspec_testing.studio import choose, click, drag, drawn, opened, settled, text, texts

DESIGNS = Path(__file__).parents[2] / "docs" / "design"
LINES = Process().wavelengths_nm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")]


def called(page: Page, module: str, expression: str, **arrays: Array) -> Array:
    """Value of an expression over the names of a module and over arrays, float32 in the page.

    Args:
        page: page of the server.
        module: name of the module.
        expression: JavaScript, in which `m` is the module.
        **arrays: arrays that it may name, flat.
    """
    constants = "".join(
        f"const {name} = new Float32Array(Uint8Array.from(atob('{base64.b64encode(array.astype('<f4').tobytes()).decode()}'),"
        "(character) => character.charCodeAt(0)).buffer);"
        for name, array in arrays.items()
    )
    page.evaluate(
        f"import(new URL('static/{module}.js', location.href)).then((module) => {{ window.module = module; }})"
    )
    value = page.evaluate(
        f"(() => {{ const m = window.module; {constants} const value = {expression};"
        "const bytes = new Uint8Array(new Float64Array(value).buffer);"
        "return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join('')); })()"
    )
    return np.frombuffer(base64.b64decode(value), np.float64)


@pytest.mark.parametrize("symmetry", [None, "diagonal"])
@pytest.mark.parametrize("radius_nm", [80.0, 200.0])
def test_filter_and_projection_are_those_of_the_library(page: Page, radius_nm: float, symmetry: str | None) -> None:
    rng = np.random.default_rng(0)
    latent, gradient = rng.random((PIXELS, PIXELS)), rng.normal(size=(PIXELS, PIXELS))
    ours = Parameterisation(radius_nm, symmetry)
    theirs = f"const p = new m.Parameterisation({PIXELS}, {radius_nm / 15.625}, '{symmetry or 'none'}'); return "
    density = called(page, "topology", f"(() => {{ {theirs} p.project(p.smooth(latent), 16); }})()", latent=latent)
    np.testing.assert_allclose(density.reshape(latent.shape), ours.density(latent, 16.0), atol=1e-4)
    pulled = called(
        page,
        "topology",
        f"(() => {{ {theirs} p.pullBack(p.smooth(latent), gradient, 16); }})()",
        latent=latent,
        gradient=gradient,
    )
    np.testing.assert_allclose(pulled.reshape(latent.shape), ours.pull_back(latent, gradient, 16.0), atol=1e-3)


def test_optimiser_and_schedule_are_those_of_the_library(page: Page) -> None:
    rng = np.random.default_rng(1)
    start, gradients = rng.random((1, 8, 8)), rng.normal(size=(5, 1, 8, 8))
    ours = Adam(start)
    for gradient in gradients:
        ours.ask()
        ours.tell(np.zeros(1), gradient)
    stepped = called(
        page,
        "adam",
        "(() => { const adam = new m.Adam(start);"
        "for (let n = 0; n < 5; n++) adam.step(gradients.subarray(64 * n, 64 * n + 64));"
        "return adam.latent; })()",
        start=start.ravel(),
        gradients=gradients.ravel(),
    )
    np.testing.assert_allclose(stepped, ours.ask().ravel(), atol=1e-5)
    np.testing.assert_allclose(called(page, "topology", "m.betaSchedule(120)"), beta_schedule(120, stages=8), rtol=1e-6)


def test_the_objective_is_that_of_the_library(page: Page) -> None:
    spectra = np.random.default_rng(2).random((len(CHANNELS), len(LINES)))
    page.evaluate("fetch('contract').then((answer) => answer.json()).then((facts) => { window.facts = facts; })")
    page.evaluate("import(new URL('static/merits.js', location.href)).then((module) => { window.merits = module; })")
    found = (
        f"m.objectives(new window.merits.Merits(window.facts, {{wavelengths: {json.dumps(LINES.tolist())},"
        f"channels: {json.dumps(CHANNELS)}}}), window.facts.colours)[0]"
    )
    value = called(page, "objectives", f"[{found}.value(spectra)]", spectra=spectra)
    cotangent = called(page, "objectives", f"{found}.cotangent(spectra)", spectra=spectra)
    ours = MinEfficiency(0.02)
    np.testing.assert_allclose(value, ours.score(spectra, LINES, CHANNELS), atol=1e-6)
    np.testing.assert_allclose(cotangent.reshape(spectra.shape), ours.cotangent(spectra, LINES, CHANNELS), atol=1e-6)


@pytest.mark.parametrize("name", ["router_60nm", "router_78nm", "router_100nm"])
def test_widths_are_those_of_imageruler_and_mending_keeps_its_rule(page: Page, name: str) -> None:
    design = np.load(DESIGNS / f"{name}.npy")
    widths = called(page, "features", f"m.narrowest(Uint8Array.from(solid), {PIXELS})", solid=design)
    np.testing.assert_allclose(widths * Process().pixel_nm, feature_size(design))
    mended = called(page, "features", f"m.mended(Uint8Array.from(solid), {PIXELS}, 8)", solid=design)
    structure = mended.reshape(design.shape).astype(np.uint8)
    assert min(feature_size(structure)) >= 8 * Process().pixel_nm
    assert 0.1 < structure.mean() < 0.9


def test_mending_what_is_drawn(page: Page) -> None:
    drag(page, (20, 20), (100, 110))
    choose(page, "#width", "2")
    drag(page, (100, 20), (100, 60))
    before = drawn(page)
    click(page, "#mend")
    after = drawn(page)
    assert min(feature_size(after)) >= 78 > min(feature_size(before))
    assert "pixels mended: narrowest solid" in text(page, "#run-status")
    click(page, "#mend")
    assert text(page, "#run-status").startswith("Nothing to mend: ")


def set_up(page: Page, **values: Any) -> None:
    for name, value in values.items():
        choose(page, f"#{name.replace('_', '-')}", str(value))


def finished(page: Page) -> None:
    page.wait("document.getElementById('run-start').disabled === false")
    settled(page)


def test_a_run_from_random_starts(page: Page, expected: Expected) -> None:
    drag(page, (20, 20), (100, 110))
    before = drawn(page)
    set_up(page, starts=2, steps=16, run_symmetry="diagonal")
    click(page, "#run-start")
    page.wait("document.querySelectorAll('#curve path').length === 2")
    assert page.evaluate("document.querySelector('[data-edit=invert]').disabled")
    drag(page, (90, 20), (20, 110))  # draws nothing meanwhile
    finished(page)
    assert text(page, "#run-status").startswith("Step 16 of 16, best 0.")
    structure = drawn(page)
    assert (structure == structure.T).all()
    efficiency = colour_efficiency(expected(structure)[0], LINES)
    assert texts(page, "#efficiency td")[-1] == f"{efficiency.min():.3f}"
    value = float(text(page, "#run-status").split("best ")[1].split(";")[0])
    assert abs(value - MinEfficiency(0.02).score(expected(structure)[0].astype(float), LINES, CHANNELS)) < 1e-4
    page.press("z", modifiers=["Control"])
    assert (drawn(page) == before).all(), "and the run is one step of the history"


def test_a_run_from_what_is_drawn_gains(page: Page, expected: Expected) -> None:
    click(page, "[data-edit=random]")
    before = drawn(page)
    choose(page, "#from", "drawn")
    set_up(page, steps=24, objective="B")
    click(page, "#run-start")
    finished(page)
    after = drawn(page)
    assert 0 < (after != before).mean() < 0.9
    blue = [colour_efficiency(expected(one)[0], LINES)[2] for one in (before, after)]
    assert blue[1] > blue[0] + 0.01


def test_pause_go_on_and_stop(page: Page) -> None:
    set_up(page, starts=1, steps=2000)
    click(page, "#run-start")
    page.wait("/^Step [3-9]/.test(document.getElementById('run-status').textContent)")
    click(page, "#run-pause")
    page.wait("document.getElementById('run-status').textContent.endsWith('paused')")
    page.wait("document.getElementById('run-pause').textContent === 'Go on'")
    page.evaluate("new Promise((done) => setTimeout(done, 300))")
    held = int(text(page, "#run-status").split()[1])
    page.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert int(text(page, "#run-status").split()[1]) == held
    click(page, "#run-pause")
    page.wait(f"parseInt(document.getElementById('run-status').textContent.split(' ')[1]) > {held}")
    click(page, "#run-stop")
    finished(page)
    assert "; stopped after " in text(page, "#run-status")
    assert drawn(page).any()


def test_a_run_goes_on_when_its_server_is_back(browser: Page, small_repository: Path) -> None:
    arguments = ("--repository", str(small_repository), "--port", str(free_port()))
    with running_server(*arguments) as server:
        page = opened(browser, server.url)
        set_up(page, starts=1, steps=400)
        click(page, "#run-start")
        page.wait("/^Step [1-9]/.test(document.getElementById('run-status').textContent)")
    page.wait("document.getElementById('run-status').textContent.includes('goes on when it is back')")
    with running_server(*arguments):
        page.wait("/^Step \\d\\d+ of 400/.test(document.getElementById('run-status').textContent)")
        click(page, "#run-stop")
        finished(page)
        assert drawn(page).any()


def test_settings_out_of_range_are_refused(page: Page) -> None:
    set_up(page, steps=3)
    click(page, "#run-start")
    assert not page.evaluate("document.getElementById('run-start').disabled")
    assert page.evaluate("document.getElementById('steps').validity.rangeUnderflow")
    set_up(page, steps=8, radius="")
    click(page, "#run-start")
    assert not page.evaluate("document.getElementById('run-start').disabled")


def test_the_bundled_fast_model_from_random_starts(browser: Page) -> None:
    with running_server("--models", "diffractionnet_fast,diffractionnet_fast_vjp,diffractionnet_symmetric") as server:
        browser.open(f"{server.url}/?model=diffractionnet_fast")
        page = browser
        settled(page)
        click(page, "#run-start")
        page.wait("document.getElementById('run-status').textContent.includes('done')", timeout=400)
        settled(page)
        assert float(texts(page, "#efficiency td")[-1]) > 0.5
        page.wait("document.getElementById('trust').textContent.includes('diffractionnet_symmetric')")
        assert not page.evaluate("document.getElementById('trust').className.includes('warns')")
