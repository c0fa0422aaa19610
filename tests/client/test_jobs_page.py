"""The page of `metaspec jobs` in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metaspec_testing.chromium import PROGRAM, Page, chromium
from metaspec_testing.jobs import RunningJobs, running_jobs
from metaspec_testing.servers import RunningServer
from metaspec_testing.studio import choose, click, text, texts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")]

TOKEN = "a-secret-of-16-letters"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def service(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningJobs]:
    with running_jobs(tmp_path_factory.mktemp("page"), "--url", server.url) as running:
        yield running


def row(name: str) -> str:
    """JavaScript that finds the entry of a job."""
    return f"document.querySelector('[aria-label=\"Remove {name}\"]')?.closest('.job')"


def give(page: Page, **settings: object) -> None:
    """Fill in the form of a new job, and send it."""
    for name, value in settings.items():
        choose(page, f"#{name}" if name in ("name", "command") else f"#setting-{name}", str(value))
    click(page, "#form button.primary")


def test_jobs_are_made_watched_paused_resumed_and_removed(browser: Page, service: RunningJobs) -> None:
    browser.complaints.clear()
    browser.open(f"{service.url}/")
    browser.wait("!document.getElementById('none').hidden && document.getElementById('new').open")
    assert "crosstalk" in texts(browser, "#setting-objective option")
    give(browser, name="routers", steps=300, starts=1, radius_nm=-1)
    browser.wait("document.getElementById('form-problem').textContent.includes('radius_nm must be')")
    assert browser.evaluate("document.activeElement.name") == "radius_nm"
    give(browser, radius_nm=120)
    browser.wait(f"{row('routers')}?.dataset.state === 'running'")
    browser.wait(f"{row('routers')}.querySelectorAll('.curve path').length === 2")
    assert text(browser, ".list h2") in ("Ranked by objective bayer", "Without a value yet")
    click(browser, '[aria-label="Pause routers"]')
    browser.wait(f"{row('routers')}?.dataset.state === 'paused'")
    assert service.show("routers")["state"] == "paused"
    browser.wait("document.getElementById('said').textContent.startsWith('routers: paused')")
    click(browser, '[aria-label="Resume routers"]')
    service.until("routers", "finished")
    browser.wait(f"{row('routers')}.dataset.state === 'finished'")
    links = dict(
        zip(
            texts(browser, ".job a"),
            browser.evaluate("[...document.querySelectorAll('.job a')].map((one) => one.href)"),
            strict=True,
        )
    )
    assert list(links) == ["report", "designs.npy", "best.gds", "log", "studio"]
    assert links["report"] == f"{service.url}/jobs/routers/report"
    assert links["studio"].endswith(f"&jobs={service.url}/".replace(":", "%3A").replace("/", "%2F"))
    browser.open(links["studio"])
    browser.wait("!document.getElementById('jobs').hidden")
    assert browser.evaluate("document.getElementById('jobs').href") == f"{service.url}/"
    assert text(browser, "#jobs") == f"jobs at {service.url.removeprefix('http://')}"
    browser.open(f"{service.url}/")
    browser.wait("document.querySelector('.job')")
    click(browser, '[aria-label="Remove routers"]')
    click(browser, "#remove button[value='']")
    assert service.show("routers")["state"] == "finished"
    click(browser, '[aria-label="Remove routers"]')
    click(browser, "#remove button[value=remove]")
    browser.wait("!document.getElementById('none').hidden")
    refused = [one for one in browser.complaints if "422" not in one]
    assert not refused, "nothing is refused by the content security policy"


def test_the_page_fits_a_phone_has_names_and_follows_the_scheme(browser: Page, service: RunningJobs) -> None:
    service.make(name="a-long-name-of-a-job-that-has-to-be-broken-into-several-lines-0", objective="red", steps=5)
    browser.open(f"{service.url}/")
    browser.wait("document.querySelector('.job[data-state=finished]')")
    for summary in ("#new > summary", "#form summary"):
        click(browser, summary)
    for width in (320, 1000):
        browser.resize(width)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        seen.append(browser.evaluate(paper))
    assert seen[0] != seen[1]
    nodes = [node for node in browser.accessibility() if not node.get("ignored")]
    roles = {"button", "textbox", "combobox", "link", "image", "img", "checkbox"}
    named = [node for node in nodes if node["role"]["value"] in roles]
    assert len(named) > 20
    assert all(node["name"]["value"] for node in named)


def test_a_service_that_returns_is_followed_again(browser: Page, server: RunningServer, tmp_path: Path) -> None:
    with running_jobs(tmp_path, "--url", server.url) as before:
        browser.open(f"{before.url}/")
        browser.wait("!document.getElementById('none').hidden")
        port = before.url.rpartition(":")[2]
        before.stop()
        browser.wait("!document.getElementById('away').hidden")
        with running_jobs(tmp_path, "--url", server.url, "--port", port) as after:
            after.make(name="later", steps=5)
            browser.wait("document.getElementById('away').hidden && document.querySelector('.job')")


def test_the_token_is_asked_for(browser: Page, server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with running_jobs(tmp_path / "jobs", "--url", server.url, "--token-file", tmp_path / "token") as service:
        browser.open(f"{service.url}/")
        browser.wait("!document.getElementById('token-form').hidden")
        choose(browser, "#token", "wrong")
        click(browser, "#token-form button")
        browser.wait("document.getElementById('token-problem').textContent.includes('expected that of this service')")
        choose(browser, "#token", TOKEN)
        click(browser, "#token-form button")
        browser.wait("!document.getElementById('none').hidden")
