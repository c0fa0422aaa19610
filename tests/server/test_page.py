"""The page to draw a structure: its headers, and its script in node with just enough of a document."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import metaspec_server
from metaspec_contract.detectors import BANDS_NM, CHANNELS, COLOUR_NAMES, COLOURS, DETECTORS, QUADRANTS
from metaspec_contract.figures_of_merit import colour_efficiency, crosstalk
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, packed_bytes, unpack
from metaspec_testing.nginx import NGINX, running_nginx
from metaspec_testing.servers import RunningServer, free_port
from metaspec_testing.small_models import Expected

WEB = Path(metaspec_server.__file__).parent / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

BROWSER = """
const ids = new Set(IDS), elements = new Map();
class Element {
  children = []; style = {}; value = ""; checked = false; textContent = "";
  append(child) { this.children.push(child); if (child.id) elements.set(child.id, child); }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this[name] = value; }
  addEventListener() {}
  getContext() { return { createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }), putImageData() {} }; }
}
globalThis.document = {
  documentElement: new Element(),
  createElement: () => new Element(),
  createElementNS: () => new Element(),
  querySelector: () => ({ value: "1" }),
  getElementById(id) {
    if (!elements.has(id) && ids.has(id)) elements.set(id, new Element());
    if (!elements.has(id)) throw new Error(`no element ${id}`);
    return elements.get(id);
  },
};
globalThis.location = { search: "" };
globalThis.getComputedStyle = () => ({ getPropertyValue: () => "#38536b" });
const fetchAnywhere = globalThis.fetch, sent = [];
globalThis.fetch = (path, options) => {
  if (options.body) sent.push(options.body);
  return fetchAnywhere(new URL(path, URL_OF_SERVER), options);
};
require("vm").runInThisContext(require("fs").readFileSync(SCRIPT, "utf8"));
const status = document.getElementById("status");
const deadline = Date.now() + 60000;
(function wait() {
  if (!status.textContent && Date.now() < deadline) { setTimeout(wait, 20); return; }
  const texts = (id) => document.getElementById(id).children.map((child) => child.textContent);
  const tables = Object.fromEntries(["detectors", "colours", "efficiency", "crosstalk"].map((id) => [id, texts(id)]));
  const paths = document.getElementById("plot").children.filter((child) => child.d).map((child) => child.class);
  const places = document.getElementById("detectors").children.map((child) => child.style.gridArea);
  const body = Buffer.from(sent[0] || "").toString("base64");
  console.log(JSON.stringify({ status: status.textContent, ...tables, paths, places, body }));
})();
"""


def test_security_headers_and_the_page(server: RunningServer) -> None:
    page = server.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert "<script>" not in page.text, "the policy would not let it run"
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        if not link.startswith("data:"):
            assert not link.startswith(("/", "http")), "links are relative: they hold behind the prefix of a proxy"
            assert server.get(f"/{link}").status_code == 200
    assert server.get("/static/../settings.py").status_code == 404
    assert server.post("/predict", content=b"").headers["Content-Security-Policy"] == policy


def test_the_documentation_loads_nothing_from_elsewhere(server: RunningServer) -> None:
    page = server.get("/docs")
    assert page.headers["Content-Security-Policy"] == server.get("/").headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"static/swagger-ui-bundle.js", "static/swagger-ui.css", "static/docs.js"} <= set(links)
    for link in links:
        assert link.startswith("data:") or server.get(f"/{link}").status_code == 200, link
    assert not re.search(r"<script[^>]*>[^<]", page.text), "the policy would not let it run"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("prefix", ["", "/lab/metaspec"])
def test_the_pages_in_a_browser(server: RunningServer, tmp_path: Path, prefix: str) -> None:
    with contextlib.ExitStack() as stack:
        address = server.address
        if prefix:  # which the proxy removes: the server does not know it
            if NGINX is None:
                pytest.skip("nginx is not installed")
            port = free_port()
            location = f"location {prefix}/ {{ proxy_pass http://{address}/; }}"
            stack.enter_context(running_nginx(tmp_path, port, f"server {{ listen 127.0.0.1:{port}; {location} }}"))
            address = f"127.0.0.1:{port}"
        page = show(f"http://{address}{prefix}/", tmp_path / "profile")
        assert re.search(r'id="status"[^>]*>diffractionnet version 1, \d+ ms', page)
        documentation = show(f"http://{address}{prefix}/docs", tmp_path / "profile")
    for text in ("/predict", "/v2/models/{model}/infer", "Open Inference Protocol"):
        assert text in re.sub(r"<[^>]+>|\u200b", "", documentation)
    assert not prefix or f'value="{prefix}"' in documentation, "the address that requests from the page go to"


def show(url: str, profile: Path) -> str:
    """The document of a page in Chromium, after its scripts have run. It fails where the page has reported an error."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--enable-logging=stderr"]
    flags += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom"]
    shown = subprocess.run([CHROMIUM, *flags, url], capture_output=True, text=True, check=True, timeout=240)
    reported = [line for line in shown.stderr.splitlines() if ":CONSOLE" in line and "[DOM]" not in line]
    assert not reported, reported
    return shown.stdout


def test_the_contract_states_what_the_page_needs(server: RunningServer) -> None:
    facts = server.get("/contract").raise_for_status().json()
    assert (facts["pixels"], facts["packed_bytes"], facts["default_model"]) == (PIXELS, packed_bytes(), DEFAULT_MODEL)
    assert facts["channels"] == list(CHANNELS)
    assert facts["quadrants"] == {name: list(place) for name, place in QUADRANTS.items()}
    assert list(facts["colours"]) == list(COLOURS)
    for colour, stated in facts["colours"].items():
        detectors, band = list(DETECTORS[colour]), list(BANDS_NM[colour])
        assert stated == {"name": COLOUR_NAMES[colour], "band_nm": band, "detectors": detectors}


def test_the_page_has_no_facts_of_its_own() -> None:
    script = (WEB / "page.js").read_text().replace("padEnd(128", "")  # which is of the .npy format
    markup = (WEB / "index.html").read_text().replace('viewBox="0 0 640 400"', "")
    facts = [str(PIXELS), str(packed_bytes()), DEFAULT_MODEL, *CHANNELS, *COLOUR_NAMES.values()]
    facts += [f"{edge:g}" for band in BANDS_NM.values() for edge in band]
    for fact in facts:
        assert not re.search(rf"\b{fact}\b", script + markup), fact


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_shows_the_figures_of_merit_of_what_it_draws(server: RunningServer, expected: Expected) -> None:
    names = re.findall(r'\bid="([\w-]+)"', (WEB / "index.html").read_text())
    values = {"IDS": names, "URL_OF_SERVER": server.url, "SCRIPT": str(WEB / "page.js")}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    command = ["node", "-e", constants + BROWSER]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert shown["status"].startswith("diffractionnet version 1, ")
    spectra = expected(unpack(np.frombuffer(base64.b64decode(shown["body"]), np.uint8)[None]))
    wavelengths = Process().wavelengths_nm
    assert shown["efficiency"] == [f"{value:.3f}" for value in colour_efficiency(spectra, wavelengths)[0]]
    assert shown["crosstalk"] == [f"{value:.3f}" for value in crosstalk(spectra, wavelengths)[0]]
    assert shown["colours"] == [COLOUR_NAMES[colour] for colour in COLOURS]
    assert shown["paths"] == [f"channel-{name}" for name in CHANNELS]
    assert dict(zip(shown["detectors"], shown["places"], strict=True)) == {
        name: f"{row + 1} / {column + 1}" for name, (row, column) in QUADRANTS.items()
    }
