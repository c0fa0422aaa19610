"""What a prompt and a notebook show: short reprs, HTML without markup of others, names that are public."""

from __future__ import annotations

import base64
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import image as matplotlib_image

import metaspec
from metaspec import AsyncSurrogate, Evaluation, ModelUnavailable, ServedModel, Spectra, Surrogate
from metaspec.figures import draw_spectra, draw_structure
from metaspec.objectives import MinEfficiency
from metaspec.optimise import Problem
from metaspec.optimise.record import History, Result
from metaspec.topology import Parameterisation
from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_contract.html import structure_png
from metaspec_contract.process import Process
from metaspec_contract.source import SourceInfo
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

WAVELENGTHS = Process().wavelengths_nm
HOSTILE = '<img src=x onerror="alert(1)">&'


class Page(HTMLParser):
    """Tags and texts of HTML; an element that is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "img":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def spectra_of(count: int, channels: tuple[str, ...] = CHANNELS, name: str = "diffractionnet") -> Spectra:
    values = np.random.default_rng(0).random((count, len(channels), 301)).astype(np.float32)
    return Spectra(values, WAVELENGTHS, channels, model=name, version="4")


def result_of(count: int, name: str = "diffractionnet") -> Result:
    rows, value = np.arange(count), np.linspace(0.6, 0.4, count)
    structure = np.random.default_rng(1).integers(0, 2, (count, 128, 128), np.uint8)
    history = History(np.full(3, 4.0), np.zeros((3, count)), np.array([0, 2]), np.zeros((2, count)))
    latent, spectra = structure.astype(np.float32), spectra_of(count, name=name)
    return Result(structure, value, spectra, latent, rows, rows, history, structure, 3 * count, 6, 1.0)


@pytest.mark.parametrize("count", [0, 1, 6, 9])
def test_spectra_in_a_notebook(count: int) -> None:
    spectra = spectra_of(count, (*CHANNELS, SPREAD))
    page = Page(spectra._repr_html_())
    shown = min(count, 6)
    assert page.tags.count("svg") == shown
    assert page.tags.count("polyline") == 5 * shown
    for n, row in enumerate(spectra.colour_efficiency()[:shown]):
        place = page.texts.index(str(n))
        assert page.texts[place + 1 : place + 4] == [f"{value:.3f}" for value in row]
    assert ("... and 3 more" in page.texts) == (count > 6)
    assert repr(spectra).startswith(f"<Spectra: {count} structure{'' if count == 1 else 's'}, R/G1/G2/B/spread")


def test_spectra_that_reach_no_band() -> None:
    infrared = Spectra(np.full((2, 4, 3), np.nan, np.float32), np.array([800.0, 850, 900]), model="m")
    page = Page(infrared._repr_html_())
    assert (page.tags.count("svg"), "red" in page.texts) == (2, False)


def test_names_of_others_are_text() -> None:
    info = SourceInfo(HOSTILE, HOSTILE, Process(), WAVELENGTHS, CHANNELS, merged_greens=True)
    shown = (spectra_of(1, name=HOSTILE), spectra_of(2, ("R", "G1", "G2", "B", HOSTILE)), info, result_of(2, HOSTILE))
    for thing in shown:
        html = thing._repr_html_()
        page = Page(html)
        assert page.tags.count("img") == html.count("data:image/png")
        assert any(HOSTILE in text for text in page.texts)


def test_descriptions_are_short(server: RunningServer) -> None:
    with Surrogate(server.url) as surrogate:
        info = surrogate.metadata()
    assert repr(info) == (
        "<ModelInfo: diffractionnet version 1, R/G1/G2/B, 301 wavelengths from 400 to 700 nm, 128 x 128 pixels, "
        "Si3N4 on SiO2, period 2 um, thickness 0.6 um, detectors 2.5 um below>"
    )
    texts = Page(info._repr_html_()).texts
    assert texts[:3] == ["diffractionnet version 1", "channels", "R/G1/G2/B"]
    evaluation = Evaluation(np.arange(20.0), np.zeros((20, 128, 128), np.float32), spectra_of(20))
    assert repr(evaluation).startswith(
        "<Evaluation: value [ 0.  1. ... 18. 19.], gradient (20, 128, 128), <Spectra: 20 "
    )


def test_a_result_in_a_notebook() -> None:
    result = result_of(8)
    assert repr(result) == "<Result: 8 designs, best 0.6000, 3 steps, diffractionnet version 4>"
    assert repr(result.history) == "<History: 3 steps of 8 starts, 2 evaluations of binary structures>"
    html = result._repr_html_()
    assert Page(html).tags.count("img") == 6
    (first, *_) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    picture = matplotlib_image.imread(io.BytesIO(base64.b64decode(first)), format="png")
    np.testing.assert_array_equal(picture < 0.5, result.structure[0] == 1)


def test_a_problem_says_what_it_is(server: RunningServer) -> None:
    with Surrogate(server.url) as surrogate:
        shape = Parameterisation(radius_nm=120)
        problem = Problem(surrogate, MinEfficiency(0.02), shape)
        assert repr(problem) == f"<Problem: MinEfficiency(softness=0.02) of {shape!r}, by {surrogate!r}>"


def test_pictures_of_structures_are_png_files() -> None:
    density = np.linspace(0, 1, 12).reshape(3, 4)
    picture: Array = matplotlib_image.imread(io.BytesIO(structure_png(density)), format="png")
    assert picture.shape == (3, 4)
    assert (np.diff(picture.ravel()) < 0).all(), "more solid is darker"


def test_figures_are_pictures_by_themselves() -> None:
    for figure in (draw_spectra(spectra_of(1)), draw_structure(np.eye(128))):
        picture: Array = matplotlib_image.imread(io.BytesIO(figure._repr_png_()), format="png")  # type: ignore[attr-defined]
        assert picture.shape[1] == figure.get_figwidth() * 80


def test_models_of_a_server(server: RunningServer) -> None:
    with Surrogate(server.url, model="another") as surrogate:
        models = surrogate.models()
        assert models == (ServedModel("diffractionnet", "1", True), ServedModel("diffractionnet_vjp", "1", True))
        assert surrogate.sent.requests == 0, "a question is no request for spectra"
        with pytest.raises(ModelUnavailable):
            surrogate.metadata()


async def test_models_of_a_server_without_waiting(server: RunningServer) -> None:
    async with AsyncSurrogate(server.url) as surrogate:
        assert [model.name for model in await surrogate.models()] == ["diffractionnet", "diffractionnet_vjp"]


MODULES = [module.name for module in pkgutil.iter_modules(metaspec.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_completion_shows_what_is_public(name: str) -> None:
    if name == "widget":
        pytest.importorskip("anywidget")
    module = importlib.import_module(f"metaspec.{name}")
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


def test_completion_of_the_package() -> None:
    assert dir(metaspec) == sorted([*metaspec.__all__, *MODULES])
    with pytest.raises(AttributeError, match="module 'metaspec' has no attribute 'Surogate'"):
        _ = metaspec.Surogate  # type: ignore[attr-defined]


def test_modules_are_imported_when_they_are_used() -> None:
    code = "import sys, metaspec; assert 'metaspec.optimise' not in sys.modules; print(metaspec.optimise.NAMES[0])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "adam\n"
