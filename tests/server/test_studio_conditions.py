"""Conditions in the studio: sliders and numbers for what the model in use takes, in every request of the page."""

from __future__ import annotations

import pytest

from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.direct import Direct
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array
from metaspec_testing.studio import choose, click, drag, drawn, opened, settled, text, texts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")]


def efficiencies(spectra: Array) -> list[str]:
    """Cells of the table for spectra (1, 4, 301)."""
    found = colour_efficiency(spectra[0], Process().wavelengths_nm)
    return [f"{value:.3f}" for value in (*found, found.min())]


def test_a_slider_and_a_number_for_each_value(browser: Page, conditioned: RunningServer, direct: Direct) -> None:
    page = opened(browser, conditioned.url)
    names = "[...document.querySelectorAll('#conditions input[type=number]')].map((one) => one.ariaLabel)"
    assert page.evaluate(names) == ["distance", "incidence 1", "incidence 2"]
    drag(page, (10, 20), (90, 30))
    structure = drawn(page)
    assert texts(page, "#efficiency td") == efficiencies(direct.spectra(structure))
    choose(page, "#conditions input[type=range]", "1.25")
    settled(page)
    at_distance = efficiencies(direct.spectra(structure, distance_um=1.25))
    assert at_distance != efficiencies(direct.spectra(structure))
    assert texts(page, "#efficiency td") == at_distance
    assert ", distance 1.25 um, incidence 0, 0 degrees, " in text(page, "#status")
    choose(page, "#conditions input[aria-label='incidence 2'][type=number]", "-7.5")
    settled(page)
    expected = direct.spectra(structure, distance_um=1.25, incidence=[0, -7.5])
    assert texts(page, "#efficiency td") == efficiencies(expected)
    choose(page, "#conditions input[aria-label=distance][type=number]", "3.5")
    settled(page)
    assert texts(page, "#efficiency td") == efficiencies(expected), "a value out of range is not taken"
    click(page, "#save-link")
    page.wait("document.getElementById('note').textContent.includes('holds the structure')")
    page.open(page.evaluate("location.href"))
    settled(page)
    assert texts(page, "#efficiency td") == efficiencies(expected), "the link holds the values"


def test_gradients_and_runs_are_at_the_values_that_are_set(
    browser: Page, conditioned: RunningServer, direct: Direct
) -> None:
    page = opened(browser, conditioned.url)
    choose(page, "#conditions input[type=range]", "1.5")
    drag(page, (10, 20), (90, 30))
    settled(page)
    page.evaluate(
        "window.asked = new Set(); const before = window.fetch;"
        "window.fetch = (path, options) => { window.asked.add(String(path)); return before(path, options); }; null"
    )
    choose(page, "#overlay", "B")
    page.wait("document.getElementById('overlay').getAttribute('aria-busy') === 'false'")
    choose(page, "#steps", "8")
    choose(page, "#starts", "2")
    click(page, "#run-start")
    assert page.evaluate("document.getElementById('conditions').disabled"), "values stay while a run goes on"
    page.wait("document.getElementById('run-status').textContent.includes('done after')")
    assert not page.evaluate("document.getElementById('conditions').disabled")
    settled(page)
    asked = page.evaluate("[...window.asked].filter((path) => /^(predict|gradient)/.test(path))")
    query = "?model=diffractionnet&distance_um=1.5&incidence=0%2C0"
    assert set(asked) == {f"predict{query}", f"gradient{query}"}
    assert texts(page, "#efficiency td") == efficiencies(direct.spectra(drawn(page), distance_um=1.5))


def test_a_model_without_conditions_has_no_controls(page: Page) -> None:
    assert page.evaluate("document.getElementById('conditions').hidden")
