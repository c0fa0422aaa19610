"""The structure widget: its Python side with the real server, and its page in a real browser."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metaspec
from metaspec import InvalidStructure, Spectra, Surrogate
from metaspec.objectives import NAMES, MinEfficiency
from metaspec_contract.detectors import CHANNELS
from metaspec_testing import chromium
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected, ExpectedGradient

pytest.importorskip("anywidget", reason="needs the extra notebook")

from metaspec.widget import StructureWidget

SCRIPT = Path(metaspec.__file__).parent / "_widget" / "widget.js"

PAGE = """<!DOCTYPE html><meta charset="utf-8"><link rel="stylesheet" href="/widget.css"><div id="place"></div>
<script type="module">
import widget from "/widget.js";

const encode = (view) => btoa(String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset, view.byteLength)));
const decode = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
const packed = (value) => value instanceof DataView ? { bytes: encode(value) } : value;
const unpacked = (value) => {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  if ("bytes" in value) return decode(value.bytes);
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, unpacked(part)]));
};

class Model { // the interface of a front end's model, over HTTP
  state = {}; changed = {}; callbacks = {}; sent = 0;
  get(name) { return this.state[name]; }
  set(name, value) {
    this.changed[name] = this.state[name] = value;
    for (const callback of this.callbacks["change:" + name] ?? []) callback();
  }
  on(event, callback) { (this.callbacks[event] ??= []).push(callback); }
  off(event, callback) { this.callbacks[event] = this.callbacks[event].filter((other) => other !== callback); }
  save_changes() { this.sent++; const changed = this.changed; this.changed = {}; return this.exchange(changed); }
  async exchange(changed) {
    const body = JSON.stringify(Object.fromEntries(Object.entries(changed).map(([name, value]) => [name, packed(value)])));
    const answer = await (await fetch("/state", { method: "POST", body })).json();
    for (const [name, value] of Object.entries(answer)) this.state[name] = unpacked(value);
    for (const name of Object.keys(answer)) for (const callback of this.callbacks["change:" + name] ?? []) callback();
  }
}

window.model = new Model();
await model.exchange({});
widget.render({ model, el: document.getElementById("place") });
window.shown = true;
</script>"""

CANVAS = "document.querySelector('canvas')"
SYNCED = ("facts", "pixels", "objective", "serial", "answer")


def packed(value: Any) -> Any:
    """A trait as JSON."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return {name: packed(part) for name, part in value.items()} if isinstance(value, dict) else value


class Handler(BaseHTTPRequestHandler):
    """The page, its files, and the traits of a widget."""

    widget: StructureWidget

    def do_GET(self) -> None:
        file = SCRIPT.parent / self.path[1:]
        kind = {".js": "text/javascript", ".css": "text/css"}.get(file.suffix, "text/html")
        self.answer(file.read_bytes() if file.is_file() else PAGE.encode(), kind)

    def do_POST(self) -> None:
        changed = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = {
            name: memoryview(base64.b64decode(value["bytes"])) if isinstance(value, dict) else value
            for name, value in changed.items()
        }
        before = {} if not changed else {name: getattr(self.widget, name) for name in SYNCED}
        self.widget.set_state(state)
        now = {name: getattr(self.widget, name) for name in SYNCED}
        news = {name: value for name, value in now.items() if value != before.get(name)}
        self.answer(json.dumps(packed(news)).encode(), "application/json")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def surrogate(server: RunningServer) -> Iterator[Surrogate]:
    with Surrogate(server.url, progress=False) as surrogate:
        yield surrogate


@pytest.fixture
def page(surrogate: Surrogate) -> Iterator[tuple[chromium.Page, StructureWidget]]:
    if chromium.PROGRAM is None:
        pytest.skip("Chromium is not installed")
    widget = StructureWidget(surrogate)
    handler = type("WidgetHandler", (Handler,), {"widget": widget})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with chromium.chromium() as browser:
            browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
            browser.wait("window.shown")
            yield browser, widget
    finally:
        server.shutdown()
        server.server_close()


def texts(browser: chromium.Page, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")
    return found


def colours(browser: chromium.Page) -> Array:
    """Red, green, blue and opacity of the canvas, (y, x, 4)."""
    data = f"{CANVAS}.getContext('2d').getImageData(0, 0, 128, 128).data"
    return np.array(browser.evaluate(f"[...{data}]")).reshape(128, 128, 4)


def answered(browser: chromium.Page) -> None:
    browser.wait("model.sent > 0 && model.get('answer').serial === model.get('serial')")


def test_the_page_draws_predicts_and_shows_gradients(
    page: tuple[chromium.Page, StructureWidget], expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    browser, widget = page
    assert texts(browser, ".metaspec-place") == list(CHANNELS)
    left, top, width = browser.evaluate(f"[{CANVAS}.getBoundingClientRect()].flatMap((b) => [b.left, b.top, b.width])")
    browser.mouse("mousePressed", left + 20.5 * width / 128, top + 40.5 * width / 128, held=True)
    browser.mouse("mouseMoved", left + 100.5 * width / 128, top + 40.5 * width / 128, held=True)
    browser.mouse("mouseReleased", left + 100.5 * width / 128, top + 40.5 * width / 128)
    browser.wait("model.get('pixels').getUint8(40 * 128 + 100) === 1")  # moves of a mouse are handled frame by frame
    answered(browser)

    rows, columns = np.nonzero(widget.structure)  # a horizontal bar, as wide as the pen
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (36, 44, 16, 104)
    assert widget.structure[40, 16:105].all()
    assert widget.spectra is not None
    np.testing.assert_array_equal(widget.spectra.values, expected(widget.structure))
    shades = colours(browser)
    np.testing.assert_array_equal(shades[..., 0] < 128, widget.structure == 1)
    curves = "[...document.querySelectorAll('polyline')].map((line) => [line.dataset.channel, line.points.length])"
    assert browser.evaluate(curves) == [[name, 301] for name in CHANNELS]
    efficiencies = widget.spectra.colour_efficiency()[0]
    assert texts(browser, ".metaspec-widget td") == [f"{value:.4f}" for value in efficiencies]
    assert texts(browser, "output") == ["diffractionnet version 1"]

    browser.evaluate("model.sent = 0")
    select = "[...document.querySelectorAll('select')].at(-1)"
    browser.evaluate(f"{select}.value = 'blue'; {select}.dispatchEvent(new Event('change')); true")
    answered(browser)
    blue = np.zeros((1, 4, 301), np.float32)
    blue[:, 3, :100] = 0.01
    gradient = expected_gradient(widget.structure, blue)[0]
    assert widget.gradient is not None
    np.testing.assert_allclose(widget.gradient, gradient, atol=1e-9)
    coloured = colours(browser)
    red, blueness = coloured[..., [0, 2]].transpose(2, 0, 1)
    strong = np.abs(gradient) > np.abs(gradient).max() / 2
    np.testing.assert_array_equal((red > blueness)[strong], (gradient > 0)[strong])
    assert texts(browser, ".metaspec-widget td")[-1] == f"{widget.value:.4f}"


def test_the_page_follows_python(page: tuple[chromium.Page, StructureWidget], structures: Array) -> None:
    browser, widget = page
    widget.structure = structures[0]
    browser.evaluate("model.exchange({})")
    shades = colours(browser)
    np.testing.assert_array_equal(shades[..., 0] < 128, structures[0] == 1)
    browser.evaluate("[...document.querySelectorAll('button')].find((one) => one.textContent === 'Invert').click()")
    answered(browser)
    np.testing.assert_array_equal(widget.structure, 1 - structures[0])


def test_python_sees_what_is_drawn(
    surrogate: Surrogate, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    widget = StructureWidget(surrogate, structures[0])
    assert widget.facts["objectives"] == list(NAMES)
    np.testing.assert_array_equal(widget.structure, structures[0])
    assert widget.spectra is not None
    np.testing.assert_array_equal(widget.spectra.values, expected(structures[:1]))
    assert (widget.value, widget.gradient) == (None, None)

    before = surrogate.sent.requests
    widget.set_state({"pixels": memoryview(structures[1].tobytes()), "objective": "min", "serial": 1})
    assert surrogate.sent.requests == before + 2, "three traits are one change"
    value, cotangent = MinEfficiency()(widget.spectra)
    assert widget.value == pytest.approx(value[0])
    assert widget.gradient is not None
    np.testing.assert_allclose(widget.gradient, expected_gradient(structures[1:2], cotangent)[0], atol=1e-9)
    assert widget.answer["serial"] == 1
    widget.objective = ""
    assert widget.gradient is None


def test_a_failure_is_shown_and_the_next_stroke_tries_again(surrogate: Surrogate, structures: Array) -> None:
    calls = []

    def moody(spectra: Spectra) -> tuple[Array, Array]:
        calls.append(len(spectra))
        if len(calls) == 1:
            raise ZeroDivisionError("by hand")
        return np.ones(1), np.ones_like(spectra.values)

    widget = StructureWidget(surrogate, objectives={"moody": moody}, objective="moody")
    assert widget.answer == {"serial": 0, "failed": True, "message": "ZeroDivisionError: by hand"}
    assert widget.spectra is None
    widget.structure = structures[0]
    assert (widget.answer["failed"], widget.value) == (False, 1.0)


def test_bad_arguments(surrogate: Surrogate, structures: Array) -> None:
    with pytest.raises(InvalidStructure, match=r"structure must be 128 x 128 pixels, got \(64, 64\)"):
        StructureWidget(surrogate, np.zeros((64, 64)))
    with pytest.raises(InvalidStructure, match="structure"):
        StructureWidget(surrogate, np.full((128, 128), 0.5))
    with pytest.raises(ValueError, match=r'objective must be one of bayer, .*, or "", got \'maximum\''):
        StructureWidget(surrogate, objective="maximum")
    with pytest.raises(TypeError, match="source must be a Surrogate or another Source"):
        StructureWidget("http://127.0.0.1:8000")  # type: ignore[arg-type]
    widget = StructureWidget(surrogate, structures[0])
    with pytest.raises(InvalidStructure):
        widget.structure = structures
    np.testing.assert_array_equal(widget.structure, structures[0])
