"""The studio in a real Chromium, as tests use it: real pointer and key events, and what the page sends and shows."""

from __future__ import annotations

import base64

import numpy as np

from metaspec_contract.structures import PIXELS, unpack
from metaspec_testing.chromium import Page
from metaspec_testing.small_models import Array

SPY = """
window.sent = {};
const fetchReally = window.fetch;
window.fetch = (path, options) => {
  if (options?.body) window.sent[String(path).split("?")[0]] = options.body;
  return fetchReally(path, options);
};
"""
"""Keeps the last body that was sent to each address."""


def opened(browser: Page, url: str) -> Page:
    """The studio of a server, with an empty cell."""
    browser.open(f"{url}/")
    browser.resize(1200, 1100)
    browser.evaluate(SPY)
    settled(browser)
    click(browser, "[data-edit=clear]")
    settled(browser)
    return browser


def settled(page: Page) -> None:
    """Wait until the spectra of what is drawn are shown."""
    page.wait("document.getElementById('results').dataset.state === 'current'")


def click(page: Page, selector: str) -> None:
    """Click the first element of a CSS selector."""
    page.evaluate(f"document.querySelector({selector!r}).click()")


def choose(page: Page, selector: str, value: str) -> None:
    """Give a value to an input, or choose an option."""
    page.evaluate(
        f"(() => {{ const chosen = document.querySelector({selector!r}); chosen.value = {value!r};"
        "for (const kind of ['input', 'change']) chosen.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )


def text(page: Page, selector: str) -> str:
    """Text of the first element of a CSS selector."""
    return str(page.evaluate(f"document.querySelector({selector!r}).textContent"))


def texts(page: Page, selector: str) -> list[str]:
    """Texts of all elements of a CSS selector."""
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent.trim())"
    )
    return found


def body(page: Page, path: str) -> bytes:
    """The body that the page has sent last to an address."""
    script = f"btoa(String.fromCharCode(...new Uint8Array(window.sent[{path!r}].buffer ?? window.sent[{path!r}])))"
    return base64.b64decode(page.evaluate(script))


def drawn(page: Page) -> Array:
    """The structure that the page has sent last."""
    settled(page)
    structure: Array = unpack(np.frombuffer(body(page, "predict"), np.uint8))
    return structure


def place(page: Page, row: float, column: float) -> tuple[float, float]:
    """Where the middle of a pixel is in the window."""
    box: dict[str, float] = page.evaluate("document.getElementById('structure').getBoundingClientRect().toJSON()")
    side = box["width"] / PIXELS
    return box["left"] + (column + 0.5) * side, box["top"] + (row + 0.5) * side


def drag(page: Page, *points: tuple[float, float], button: str = "left") -> None:
    """Draw through pixels, without anything between them."""
    x, y = place(page, *points[0])
    page.mouse("mousePressed", x, y, held=True, button=button)
    for point in points[1:]:
        x, y = place(page, *point)
        page.mouse("mouseMoved", x, y, held=True, button=button)
    page.mouse("mouseReleased", x, y, button=button)


def tool(page: Page, name: str) -> None:
    """Choose a tool of the drawing."""
    click(page, f"[name=tool][value={name}]")


def focus(page: Page) -> None:
    """Give the drawing the focus."""
    page.evaluate("document.getElementById('structure').focus()")
