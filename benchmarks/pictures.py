"""Pictures of the studio and of the page of `metaspec jobs`, in a real Chromium on the bundled models, for the documents.

    python benchmarks/pictures.py --out docs/figures

Writes studio.png, studio_run.png and jobs.png, and prints which models they show. Needs Chromium.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from metaspec import Surrogate
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.jobs import running_jobs
from metaspec_testing.servers import running_server
from metaspec_testing.studio import click, drag, settled

MODEL, FAST, JUDGE = "diffractionnet", "diffractionnet_fast", "diffractionnet_symmetric"
DESIGN = "router_78nm_2"
STROKE = (20, 70), (34, 84)
READ_AT = 0.63  # of the plot's width: some 580 nm
STEPS_SHOWN = 60
JOBS: dict[str, dict[str, Any]] = {
    "routers": {"steps": 60, "min_feature_nm": 78},
    "routers-diagonal": {"steps": 60, "symmetry": "diagonal"},
    "more-steps": {"steps": 300},
}


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    arguments = parser.parse_args()
    if chromium.PROGRAM is None:
        parser.exit(2, "Chromium is not installed\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = (MODEL, f"{MODEL}_vjp", FAST, f"{FAST}_vjp", JUDGE)
    with running_server("--models", ",".join(names)) as server, chromium.chromium() as page:
        for name in (MODEL, FAST):
            with Surrogate(server.url, model=name) as surrogate:
                print(surrogate.metadata(), flush=True)
        picture_design(page, server.url, arguments.out / "studio.png")
        picture_run(page, server.url, arguments.out / "studio_run.png")
        picture_jobs(page, server.url, arguments.out / "jobs.png")


def picture_design(page: Page, url: str, path: Path) -> None:
    """A design of the gallery, pinned, and what one stroke changes."""
    opened(page, f"{url}/?model={MODEL}", 1280, 1180)
    click(page, f"#gallery button[title='Open {DESIGN}']")
    judged(page)
    click(page, "#pin")
    drag(page, *STROKE)
    judged(page)
    box = page.evaluate("document.getElementById('plot').getBoundingClientRect().toJSON()")
    page.mouse("mouseMoved", box["left"] + READ_AT * box["width"], box["top"] + box["height"] / 2)
    page.screenshot(path, whole=True)


def picture_run(page: Page, url: str, path: Path) -> None:
    """An optimisation that is half done."""
    opened(page, f"{url}/?model={FAST}", 1280, 1180)
    click(page, "#run-start")
    page.wait(f"document.getElementById('run-status').textContent.startsWith('Step {STEPS_SHOWN} ')", timeout=300)
    page.screenshot(path, whole=True)
    click(page, "#run-stop")
    settled(page)


def picture_jobs(page: Page, url: str, path: Path) -> None:
    """Two finished jobs and one that runs."""
    with tempfile.TemporaryDirectory() as folder, running_jobs(Path(folder), "--url", url) as service:
        for name, settings in JOBS.items():
            service.make(name=name, model=FAST, objective="balanced", starts=4, radius_nm=80, **settings)
        page.open(f"{service.url}/")
        page.resize(1000, 760)
        service.until_step(list(JOBS)[-1], 100)
        page.wait("document.querySelectorAll('.job .curve path').length === 6")
        page.screenshot(path)


def opened(page: Page, url: str, width: int, height: int) -> None:
    """Open the studio, and wait for its spectra and its gallery."""
    page.open(url)
    page.resize(width, height)
    settled(page)
    page.wait("document.querySelector('#gallery button')")


def judged(page: Page) -> None:
    """Wait until the spread of what is drawn is shown, and not that of what was drawn before."""
    page.evaluate("document.getElementById('trust').textContent = ''")
    settled(page)
    page.wait("document.getElementById('trust').textContent !== ''")


if __name__ == "__main__":
    main()
