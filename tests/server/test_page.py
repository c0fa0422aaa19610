"""The pages that the server serves: their headers and addresses, and what they must not say themselves."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

import metaspec_server
from metaspec_contract.detectors import BANDS_NM, CHANNELS, COLOUR_NAMES, COLOURS, DETECTORS, QUADRANTS
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.structures import PIXELS, packed_bytes, unpack
from metaspec_testing import chromium
from metaspec_testing.nginx import NGINX, running_nginx
from metaspec_testing.servers import RunningServer, free_port

WEB = Path(metaspec_server.__file__).parent / "web"
SCRIPTS = sorted(path for path in WEB.glob("*.js") if path.name != "docs.js")
DESIGNS = Path(__file__).parents[2] / "docs" / "design"


def test_security_headers_and_the_page(server: RunningServer) -> None:
    page = server.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"<script[^>]*>[^<]|<[^>]+\s(style|on\w+)=", page.text), "the policy would not let it run"
    for link in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
        if not link.startswith("data:"):
            assert not link.startswith(("/", "http")), "links are relative: they hold behind the prefix of a proxy"
            assert server.get(f"/{link}").status_code == 200
    assert server.get("/static/../settings.py").status_code == 404
    assert server.post("/predict", content=b"").headers["Content-Security-Policy"] == policy


def test_every_module_of_the_page_is_served_and_used(server: RunningServer) -> None:
    used = set(re.findall(r'src="static/([\w.-]+)"', (WEB / "index.html").read_text()))
    for path in SCRIPTS:
        used |= {match.removeprefix("./") for match in re.findall(r'from "(\./[\w.-]+)"', path.read_text())}
    assert used == {path.name for path in SCRIPTS}
    for name in used:
        answer = server.get(f"/static/{name}").raise_for_status()
        assert answer.headers["Content-Type"].partition(";")[0] in ("text/javascript", "application/javascript")


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in [*SCRIPTS, WEB / "page.css", WEB / "index.html"]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which is not loaded
        assert not re.search(r"https?://|@import|url\(", text), path.name


def test_the_documentation_loads_nothing_from_elsewhere(server: RunningServer) -> None:
    page = server.get("/docs")
    assert page.headers["Content-Security-Policy"] == server.get("/").headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"static/swagger-ui-bundle.js", "static/swagger-ui.css", "static/docs.js"} <= set(links)
    for link in links:
        assert link.startswith("data:") or server.get(f"/{link}").status_code == 200, link
    assert not re.search(r"<script[^>]*>[^<]", page.text), "the policy would not let it run"


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "/lab/metaspec"])
def test_the_pages_in_a_browser(server: RunningServer, tmp_path: Path, prefix: str) -> None:
    if chromium.PROGRAM is None:
        pytest.skip("Chromium is not installed")
    if not prefix:
        show_the_pages(server.address, prefix)
        return
    if NGINX is None:
        pytest.skip("nginx is not installed")
    port = free_port()  # of a proxy that removes the prefix: the server does not know it
    location = f"location {prefix}/ {{ proxy_pass http://{server.address}/; }}"
    with running_nginx(tmp_path, port, f"server {{ listen 127.0.0.1:{port}; {location} }}"):
        show_the_pages(f"127.0.0.1:{port}", prefix)


def show_the_pages(address: str, prefix: str) -> None:
    with chromium.chromium() as page:
        page.open(f"http://{address}{prefix}/")
        page.wait("/^diffractionnet version 1, \\d+ ms/.test(document.getElementById('status').textContent)")
        page.wait("document.querySelectorAll('#gallery button').length > 3")
        page.open(f"http://{address}{prefix}/docs")
        page.wait("document.body.innerText.includes('/predict')")
        text = page.evaluate("document.body.innerText.replaceAll('\\u200b', '')")
        assert "/v2/models/{model}/infer" in text
        assert "Open Inference Protocol" in text
        if prefix:  # the address that requests from the page go to
            page.wait(f"document.querySelector('.servers [value=\"{prefix}\"]')")
        assert page.complaints == []


def test_the_contract_states_what_the_page_needs(server: RunningServer) -> None:
    facts = server.get("/contract").raise_for_status().json()
    assert (facts["pixels"], facts["packed_bytes"], facts["default_model"]) == (PIXELS, packed_bytes(), DEFAULT_MODEL)
    assert gradient_model("any") == "any" + facts["gradient_suffix"]
    assert facts["channels"] == list(CHANNELS)
    assert facts["quadrants"] == {name: list(place) for name, place in QUADRANTS.items()}
    assert list(facts["colours"]) == list(COLOURS)
    for colour, stated in facts["colours"].items():
        detectors, band = list(DETECTORS[colour]), list(BANDS_NM[colour])
        assert stated == {"name": COLOUR_NAMES[colour], "band_nm": band, "detectors": detectors}


@pytest.mark.parametrize("path", [*SCRIPTS, WEB / "index.html"], ids=lambda path: path.name)
def test_the_page_has_no_facts_of_its_own(path: Path) -> None:
    said = re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.MULTILINE)  # without comments, which cite papers
    facts = [str(PIXELS), str(packed_bytes()), DEFAULT_MODEL, *CHANNELS, *COLOUR_NAMES.values()]
    facts += [f"{edge:g}" for band in BANDS_NM.values() for edge in band]
    for fact in facts:
        assert not re.search(rf"\b{fact}\b", said), fact


def test_the_gallery_holds_the_designs_of_the_documentation() -> None:
    designs = json.loads((WEB / "gallery" / "designs.json").read_text())
    assert {one["name"] for one in designs} == {path.stem for path in DESIGNS.glob("*.npy")}
    for one in designs:
        bits = np.frombuffer(base64.b64decode(one["packed"]), np.uint8)
        assert (unpack(bits) == np.load(DESIGNS / f"{one['name']}.npy")).all()
