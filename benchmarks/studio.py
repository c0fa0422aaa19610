"""How long the studio takes to a good design: runs from random starts in a real Chromium, on the bundled models.

    python benchmarks/studio.py --runs 3 --seconds 60

It starts a server of its own, opens the page, and presses "Start" with the settings that the page has. Needs Chromium.
"""

from __future__ import annotations

import argparse
import time

from metaspec_contract.model import gradient_model
from metaspec_testing import chromium
from metaspec_testing.chromium import Page
from metaspec_testing.servers import running_server
from metaspec_testing.studio import choose, click, settled, text

GOOD = 0.5  # smallest efficiency
JUDGE = "diffractionnet_symmetric"  # states the spread of what the other model predicts


def main() -> None:
    """Print the time and the efficiency of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diffractionnet_fast", help="model to optimise [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="number of runs [%(default)s]")
    parser.add_argument("--starts", type=int, default=4, help="random starts of each run [%(default)s]")
    parser.add_argument("--steps", type=int, default=120, help="steps of each run [%(default)s]")
    parser.add_argument("--seconds", type=float, default=60, help="after which a run is stopped [%(default)s]")
    arguments = parser.parse_args()
    if chromium.PROGRAM is None:
        parser.exit(2, "Chromium is not installed\n")
    names = ",".join([arguments.model, gradient_model(arguments.model), JUDGE])
    with running_server("--models", names) as server, chromium.chromium() as page:
        page.open(f"{server.url}/?model={arguments.model}")
        settled(page)
        choose(page, "#starts", str(arguments.starts))
        choose(page, "#steps", str(arguments.steps))
        for run in range(arguments.runs):
            reached, taken = one_run(page, arguments.seconds)
            good = "not reached" if reached is None else f"after {reached:.1f} s"
            print(f"run {run}: above {GOOD:g} {good}; {taken:.1f} s: {text(page, '#run-status')}", flush=True)


def one_run(page: Page, seconds: float) -> tuple[float | None, float]:
    """Seconds until the best binary structure is good, and those of the run."""
    click(page, "[data-edit=clear]")
    settled(page)
    started, reached = time.perf_counter(), None
    click(page, "#run-start")
    while (taken := time.perf_counter() - started) < seconds:
        if reached is None and float(text(page, "td.smallest")) > GOOD:
            reached = taken
        if not page.evaluate("document.getElementById('run-start').disabled"):
            break
        time.sleep(0.1)
    click(page, "#run-stop")
    settled(page)
    return reached, taken


if __name__ == "__main__":
    main()
