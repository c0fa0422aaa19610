"""The studio in a real Chromium: real pointer and key events on the page that the real server serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES, COLOURS
from metaspec_contract.figures_of_merit import colour_efficiency, crosstalk
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.servers import free_port, running_server
from metaspec_testing.small_models import Array, Expected, ExpectedGradient
from metaspec_testing.studio import body, choose, click, drag, drawn, focus, opened, settled, text, texts, tool

DESIGNS = Path(__file__).parents[2] / "docs" / "design"
LINES = Process().wavelengths_nm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")]


def test_a_fast_stroke_leaves_no_gaps_and_the_right_button_erases(page: Page) -> None:
    choose(page, "#width", "5")
    drag(page, (20, 20), (100, 110))
    structure = drawn(page)
    for step in np.linspace(0, 1, 200):
        assert structure[round(20 + 80 * step), round(20 + 90 * step)] == 1
    assert structure.sum() < 6 * 130, "and is not wider than the brush"
    drag(page, (60, 20), (60, 110), button="right")
    erased = drawn(page)
    assert not erased[60, 20:111].any()
    assert 0 < erased.sum() < structure.sum()


def test_the_brush_is_a_disc_of_its_width_and_wraps(page: Page) -> None:
    choose(page, "#width", "9")
    drag(page, (0, 64))
    rows, columns = np.nonzero(drawn(page))
    assert set(rows) == {124, 125, 126, 127, 0, 1, 2, 3, 4}
    assert (columns.min(), columns.max()) == (60, 68)
    choose(page, "#width", "1")
    click(page, "[data-edit=clear]")
    drag(page, (5, 7))
    assert np.argwhere(drawn(page)).tolist() == [[5, 7]]


def test_line_rectangle_ellipse_and_fill(page: Page) -> None:
    choose(page, "#width", "1")
    tool(page, "rectangle")
    drag(page, (10, 20), (70, 80), (30, 60))  # what is drawn on the way does not stay
    expected = np.zeros((PIXELS, PIXELS), np.uint8)
    expected[10:31, 20:61] = 1
    assert (drawn(page) == expected).all()
    tool(page, "fill")
    click(page, "[name=material][value='0']")
    drag(page, (15, 30))
    assert not drawn(page).any()
    click(page, "[name=material][value='1']")
    tool(page, "ellipse")
    drag(page, (40, 40), (80, 100))
    y, x = np.mgrid[:PIXELS, :PIXELS]
    assert (drawn(page) == (((y - 60) / 20.5) ** 2 + ((x - 70) / 30.5) ** 2 <= 1)).all()
    click(page, "[data-edit=clear]")
    tool(page, "line")
    drag(page, (10, 10), (10, 60), (60, 10))
    structure = drawn(page)
    assert structure[10, 10]
    assert structure[60, 10]
    assert set(np.nonzero(structure)[1]) == {10}
    tool(page, "fill")
    drag(page, (100, 100))
    assert drawn(page).all(), "a line across a periodic cell does not part it"


def test_drawing_can_keep_a_symmetry(page: Page) -> None:
    choose(page, "#symmetry", "diagonal")
    drag(page, (10, 90), (40, 100))
    structure = drawn(page)
    assert structure[20, 93]
    assert (structure == structure.T).all()
    click(page, "[data-edit=clear]")
    choose(page, "#symmetry", "both")
    drag(page, (10, 30), (40, 50))
    structure = drawn(page)
    assert structure.any()
    assert (structure == structure[::-1]).all()
    assert (structure == structure[:, ::-1]).all()


def test_edits_of_the_whole_cell_and_the_history(page: Page) -> None:
    drag(page, (10, 20), (90, 30), (40, 70))
    before = drawn(page)
    edits = {
        "invert": 1 - before,
        "left": np.roll(before, -1, 1),
        "down": np.roll(before, 1, 0),
        "columns": before[:, ::-1],
        "rows": before[::-1],
        "transpose": before.T,
        "diagonal": np.triu(before) | np.triu(before, 1).T,
    }
    for name, expected in edits.items():
        click(page, f"[data-edit={name}]")
        assert (drawn(page) == expected).all(), name
        click(page, "#undo")
        assert (drawn(page) == before).all(), name
    choose(page, "#shift-by", "half")
    click(page, "[data-edit=right]")
    half = np.roll(before, PIXELS // 2, 1)
    assert (drawn(page) == half).all()
    page.press("z", modifiers=["Control"])
    assert (drawn(page) == before).all()
    page.press("y", modifiers=["Control"])
    assert (drawn(page) == half).all()
    assert page.evaluate("document.getElementById('redo').disabled")
    for _ in range(2):
        page.press("z", modifiers=["Control"])
    assert not drawn(page).any()
    page.press("z", modifiers=["Control", "Shift"])
    assert (drawn(page) == before).all()


def test_drawing_with_the_keyboard_alone(page: Page) -> None:
    focus(page)
    choose(page, "#width", "1")
    page.press("ArrowRight")
    assert text(page, "#place") == "row 64, column 64, void"
    page.press("ArrowUp", modifiers=["Shift"])
    page.press(" ", kinds=["keyDown"])
    for _ in range(3):
        page.press("ArrowRight")
    page.press(" ", kinds=["keyUp"])
    assert np.argwhere(drawn(page)).tolist() == [[56, 64], [56, 65], [56, 66], [56, 67]]
    page.press("ArrowLeft")
    page.press("Backspace")
    assert np.argwhere(drawn(page)).tolist() == [[56, 64], [56, 65], [56, 67]]
    page.press("u")  # a rectangle, between two places
    page.press(" ")
    page.press("ArrowDown", modifiers=["Shift"])
    page.press("ArrowRight", modifiers=["Shift"])
    page.press(" ")
    assert drawn(page)[56:65, 66:75].all()
    page.press("l")
    page.press(" ")
    page.press("ArrowDown")
    page.press("Escape")
    assert drawn(page)[56:65, 66:75].all()
    assert drawn(page).sum() == 81 + 2, "the line was dropped"
    before = drawn(page)
    page.press("ArrowLeft", modifiers=["Control"])
    assert (drawn(page) == np.roll(before, -1, 1)).all()
    page.press("i")
    assert (drawn(page) == 1 - np.roll(before, -1, 1)).all()
    page.press("Backspace", modifiers=["Shift"])
    assert not drawn(page).any()


def test_zoom_and_periods_draw_where_the_pointer_is(page: Page) -> None:
    choose(page, "#width", "1")
    click(page, "#zoom-in")
    drag(page, (0, 0))  # twice as near, around the middle: its upper left corner is pixel 32
    assert np.argwhere(drawn(page)).tolist() == [[32, 32]]
    click(page, "[data-edit=clear]")
    click(page, "#zoom-periods")
    drag(page, (100, 20))  # a pixel of the window is three of the plane, the first of them at -128
    assert np.argwhere(drawn(page)).tolist() == [[(3 * 100 + 1) % PIXELS, (3 * 20 + 1) % PIXELS]]
    click(page, "#zoom-whole")
    focus(page)
    page.press("h")
    drag(page, (20, 20), (40, 50))
    assert drawn(page).sum() == 1, "the hand moves the view, and draws nothing"
    tool(page, "pen")
    drag(page, (0, 0))
    assert drawn(page)[PIXELS - 20, PIXELS - 30] == 1


def test_the_gallery_opens_designs(page: Page) -> None:
    page.wait("document.querySelectorAll('#gallery button').length > 3")
    click(page, "#gallery button[title='Open router_78nm']")
    assert (drawn(page) == np.load(DESIGNS / "router_78nm.npy")).all()
    page.press("z", modifiers=["Control"])
    assert not drawn(page).any()


def efficiencies(spectra: Array) -> list[str]:
    """Cells of the table: the efficiency of each colour, and the smallest of them."""
    values = colour_efficiency(spectra, LINES)
    return [f"{value:.3f}" for value in (*values, values.min())]


def test_the_figures_of_merit_of_what_is_drawn(page: Page, expected: Expected) -> None:
    drag(page, (10, 20), (90, 30), (40, 70))
    spectra = expected(drawn(page))
    assert texts(page, "#efficiency td") == efficiencies(spectra[0])
    assert texts(page, "#crosstalk td")[:3] == [f"{value:.3f}" for value in crosstalk(spectra, LINES)[0]]
    assert texts(page, "#colours th")[1:] == [*(COLOUR_NAMES[colour] for colour in COLOURS), "smallest"]
    assert page.evaluate("document.querySelectorAll('#plot .current').length") == len(CHANNELS)
    assert page.evaluate("document.querySelectorAll('#plot .band').length") == len(COLOURS)
    assert {"wavelength in nm", "efficiency"} <= set(texts(page, "#plot text"))


def test_values_under_the_pointer_and_pinned_curves(page: Page, expected: Expected) -> None:
    drag(page, (10, 20), (90, 30))
    before = expected(drawn(page))[0]
    click(page, "#pin")
    drag(page, (90, 90), (20, 100))
    after = expected(drawn(page))[0]
    assert texts(page, "#pinned td") == efficiencies(before)
    box = page.evaluate("document.getElementById('plot').getBoundingClientRect().toJSON()")
    page.mouse("mouseMoved", box["left"] + 0.6 * box["width"], box["top"] + 0.5 * box["height"])
    match = re.search(r"(\d+) nm", text(page, "#plot .reader text"))
    assert match
    at = int(match[1]) - 400
    assert texts(page, "#legend b") == [f"{value:.3f}" for value in after[:, at]]
    assert texts(page, "#legend small") == [f"{value:.3f}" for value in before[:, at]]
    page.evaluate("document.getElementById('plot').focus()")
    page.press("Home")
    value = page.evaluate("document.getElementById('plot').getAttribute('aria-valuetext')")
    assert value.startswith(f"400 nm: R {after[0, 0]:.3f}, G1 {after[1, 0]:.3f}")
    click(page, "#pin")
    assert page.evaluate("document.querySelectorAll('#plot .pinned').length") == 0


def test_where_solid_would_help(page: Page, expected_gradient: ExpectedGradient) -> None:
    drag(page, (10, 20), (90, 30))
    structure = drawn(page)
    choose(page, "#overlay", "B")
    page.wait("window.sent.gradient && document.getElementById('overlay').getAttribute('aria-busy') === 'false'")
    sent = body(page, "gradient")
    assert sent[:2048] == np.packbits(structure).tobytes()
    cotangent = np.frombuffer(sent[2048:], "<f4").reshape(1, len(CHANNELS), len(LINES))
    weight = np.zeros_like(cotangent)
    weight[0, 3, :100] = 1 / 100
    np.testing.assert_allclose(cotangent, weight, atol=1e-7)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shown = pixels(page)
    click(page, "[data-edit=clear]")
    settled(page)
    choose(page, "#overlay", "")
    gradient = expected_gradient(structure[None], weight)[0]
    row, column = np.unravel_index(np.argmax(gradient * (structure == 0)), gradient.shape)
    red, _, blue = shown(int(row), int(column))
    assert red > blue + 60, "the strongest place is orange"


def pixels(page: Page) -> Any:
    """A function for the colour of a pixel, as it is on the screen."""
    address = page.evaluate(
        "(() => { const canvas = document.getElementById('structure'); const data = canvas.getContext('2d')"
        f".getImageData(0, 0, canvas.width, canvas.height).data; const side = canvas.width / {PIXELS}; const found = [];"
        f"for (let row = 0; row < {PIXELS}; row++) for (let column = 0; column < {PIXELS}; column++) {{"
        "const at = 4 * (Math.floor((row + .5) * side) * canvas.width + Math.floor((column + .5) * side));"
        "found.push([data[at], data[at + 1], data[at + 2]]); } return found; })()"
    )
    return lambda row, column: address[row * PIXELS + column]


def test_a_server_that_dies_and_returns(browser: Page, small_repository: Path) -> None:
    arguments = ("--repository", str(small_repository), "--port", str(free_port()))
    with running_server(*arguments) as server:
        page = opened(browser, server.url)
        drag(page, (10, 20), (90, 30))
        before = drawn(page)
    drag(page, (90, 90), (20, 100))
    page.wait("document.getElementById('results').dataset.state === 'away'")
    assert "does not answer" in text(page, "#away")
    assert page.evaluate("getComputedStyle(document.querySelector('.shown')).opacity") < "1"
    with running_server(*arguments):
        structure = drawn(page)  # which waits for the spectra
        assert page.evaluate("document.getElementById('away').hidden")
        assert structure.sum() > before.sum()
        assert text(page, "#status").startswith("diffractionnet version 1, ")


def test_a_server_that_requires_a_key(browser: Page, small_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("page: secret-of-the-page infer\n")
    with running_server("--repository", str(small_repository), "--api-keys", str(tmp_path / "keys")) as server:
        browser.open(server.url)
        browser.wait("document.getElementById('results').dataset.state === 'failed'")
        assert "expected a valid API key" in text(browser, "#status")
        choose(browser, "#key", "secret-of-the-page")
        settled(browser)
        assert text(browser, "#status").startswith("diffractionnet version 1, ")


def test_light_and_dark_are_switched_live(page: Page) -> None:
    def painted(scheme: str) -> list[int]:
        page.prefer(scheme)
        page.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        colour: list[int] = pixels(page)(30, 30)
        return colour

    dark, light = painted("dark"), painted("light")
    assert max(dark) < 80
    assert min(light) > 200
    page.prefer("")


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    page.wait("document.querySelectorAll('#gallery button').length > 3")
    page.resize(320)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for selector in ("#structure", "#plot", "#efficiency td:last-child", "#steps"):
        box = page.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        assert box["right"] <= 320, selector


def test_names_for_screen_readers_and_the_order_of_the_focus(page: Page) -> None:
    page.wait("document.querySelectorAll('#gallery button').length > 3")
    controls = {"button", "combobox", "radio", "slider", "checkbox", "textbox", "link", "application", "spinbutton"}
    for node in page.accessibility():
        if not node.get("ignored") and node["role"]["value"] in controls:
            assert node["name"]["value"].strip(), node
    order = []
    for _ in range(60):
        page.press("Tab")
        order.append(page.evaluate("((one) => one.id || one.dataset.edit || one.name)(document.activeElement)"))
    wanted = ["model", "tool", "material", "width", "structure", "zoom-out", "invert", "plot", "pin", "overlay"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)
