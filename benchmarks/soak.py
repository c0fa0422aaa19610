"""A campaign of load and faults, the same one for our server and for Triton, with every answer compared with the model's own.

Callers send mixed requests (`soak_load.py`) while new versions are loaded and engines are killed and hung (`soak_faults.py`),
spread evenly over the campaign. A request that is refused, or whose connection breaks, is sent again; it is lost if there is no
answer for a minute. Afterwards 2,000 connections send a request each at the same time, which is more than the queue holds, and
the disk of the repository is filled, then made read-only, while new versions arrive on it.

    python benchmarks/soak.py --out runs/soak
    python benchmarks/soak.py --out runs/soak-try --requests 5000 --swaps 5 --killed 3 --hung 2

A contender that is finished is kept in OUT: the same command goes on with the next one, and one with other numbers is refused.
Needs the right to mount a tmpfs; without it, the two rows about disks are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import soak_faults
from soak_faults import Contender
from soak_load import SEEDS, Tally, Truth, soak
from tqdm import tqdm

from metaspec_contract.files import write_json, write_text
from metaspec_contract.model import DEFAULT_MODEL

CONTENDERS = {"MetaSpec": soak_faults.metaspec, "Triton": soak_faults.triton}
CALLERS, CROWD = 16, 2000
WARM = 2000  # requests before memory is read for the first time
DISK_MIB = 24


class Conductor(threading.Thread):
    """Causes the faults of a campaign one after another, each when its share of the requests has been answered.

    Args:
        contender: the server.
        faults: number of faults by kind: swap, kill, hang.
        count: number of requests of the campaign.
    """

    def __init__(self, contender: Contender, faults: dict[str, int], count: int) -> None:
        super().__init__(daemon=True)
        self._contender = contender
        self._plan = sorted(
            (count * (n + 1) / (number + 1), kind) for kind, number in faults.items() for n in range(number)
        )
        self.answered = 0
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        contender = self._contender
        acts = {"swap": lambda: contender.swap(SEEDS), "kill": contender.kill_engine, "hang": contender.hang_engine}
        for due, kind in self._plan:
            while self.answered < due and not self.stopped.wait(0.02):
                pass
            if self.stopped.is_set():
                return
            try:
                acts[kind]()
                self.done[kind] += 1
            except (OSError, RuntimeError, psutil.Error) as error:
                self.errors.append(f"{kind}: {error}")


def campaign(contender: Contender, truth: Truth, count: int, faults: dict[str, int]) -> dict[str, Any]:
    """Load and faults; what became of them."""
    run_load(contender, truth, WARM)
    before = contender.memory_mib(), contender.handles()
    conductor = Conductor(contender, faults, count)
    started = time.monotonic()
    with tqdm(total=count, desc=contender.name, unit="request", disable=None) as bar:

        def advance(number: int) -> None:
            conductor.answered += number
            bar.update(number)

        conductor.start()
        try:
            tally = asyncio.run(soak(contender.address, truth, CALLERS, count, conductor.is_alive, advance))
        finally:
            conductor.stopped.set()
    seconds = time.monotonic() - started
    run_load(contender, truth, WARM)
    after = contender.memory_mib(), contender.handles()
    return {
        "seconds": seconds,
        "tally": outcome(tally),
        "faults": dict(conductor.done),
        "errors": conductor.errors,
        "memory_mib": (before[0], after[0]),
        "handles": (before[1], after[1]),
    }


def run_load(contender: Contender, truth: Truth, count: int, callers: int = CALLERS) -> Tally:
    """Requests without faults."""
    return asyncio.run(soak(contender.address, truth, callers, count, lambda: False, lambda number: None))


def disks(contender: Contender, truth: Truth) -> dict[str, Any]:
    """A full disk, then a read-only one, under a version that arrives."""
    found: dict[str, Any] = {}
    filler = contender.repository / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
            file.flush()
    torn = contender.repository / DEFAULT_MODEL / str(contender.version + 1)
    with suppress(OSError):
        torn.mkdir()
        (torn / "model.onnx").write_bytes(bytes(2**20))
    found["full disk, load"] = contender.load(DEFAULT_MODEL)
    found["full disk"] = outcome(run_load(contender, truth, WARM))
    shutil.rmtree(torn, ignore_errors=True)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(contender.repository)], check=True)
    found["read-only, load"] = contender.load(DEFAULT_MODEL)
    found["read-only disk"] = outcome(run_load(contender, truth, WARM))
    subprocess.run(["mount", "-o", "remount,rw", str(contender.repository)], check=True)
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A folder that is a disk of its own until the block ends; False where that is not permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def outcome(tally: Tally) -> dict[str, Any]:
    refused = {str(status): count for status, count in sorted(tally.refused.items())}
    return vars(tally) | {"refused": refused, "kinds": dict(tally.kinds)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The result in Markdown."""

    def words(of: dict[str, Any]) -> str:
        again = ", ".join(
            f"{count} x {status if status != '0' else 'broken connection'}" for status, count in of["refused"].items()
        )
        return f"{of['right']:,} right, {of['wrong']} wrong, {of['lost']} lost" + (
            f"; sent again: {again}" if again else ""
        )

    def row(title: str, cell: Any) -> str:
        return f"| {title} | " + " | ".join(cell(result) for result in results.values()) + " |\n"

    text = "| | " + " | ".join(results) + " |\n|---|" + "---|" * len(results) + "\n"
    text += row("requests", lambda one: words(one["campaign"]["tally"]))
    for kind, title in (("swap", "versions loaded"), ("kill", "engines killed"), ("hang", "engines hung")):
        text += row(title, lambda one, kind=kind: str(one["campaign"]["faults"].get(kind, 0)))
    text += row("slowest answer", lambda one: f"{one['campaign']['tally']['slowest']:.1f} s")
    text += row(
        "requests per second", lambda one: f"{one['campaign']['tally']['right'] / one['campaign']['seconds']:.0f}"
    )
    for field, title in (("memory_mib", "memory, before and after (MiB)"), ("handles", "open files, before and after")):
        text += row(title, lambda one, field=field: "{:.0f}, {:.0f}".format(*one["campaign"][field]))
    text += row(f"{CROWD:,} connections at the same time", lambda one: words(one["crowd"]))
    for name in ("full disk", "read-only disk"):
        text += row(name, lambda one, name=name: words(one["disks"][name]) if one["disks"] else "not run")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--swaps", type=int, default=500, help="versions that are loaded")
    parser.add_argument("--killed", type=int, default=50, help="engines that are killed")
    parser.add_argument("--hung", type=int, default=20, help="engines that are hung")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    arguments = parser.parse_args()
    if arguments.requests < 1 or min(arguments.swaps, arguments.killed, arguments.hung) < 0:
        parser.error("--requests must be at least 1, the others at least 0")
    arguments.out.mkdir(parents=True, exist_ok=True)
    faults = {"swap": arguments.swaps, "kill": arguments.killed, "hang": arguments.hung}
    plan = {"requests": arguments.requests, **faults}
    files = {name: arguments.out / f"{name.lower()}.json" for name in arguments.contenders}
    for kept in files.values():
        if kept.exists() and (found := json.loads(kept.read_text()).get("plan")) != plan:
            parser.error(f"{kept} is of {found}, expected {plan}: take another --out, or remove it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and disks are cleaned up
    truth, results = Truth(), {}
    for name, kept in files.items():
        if not kept.exists():
            with tempfile.TemporaryDirectory() as work:
                place = Path(work) / name.lower()
                with small_disk(place) as mounted, CONTENDERS[name](Path(work)) as contender:
                    found = {"plan": plan, "campaign": campaign(contender, truth, arguments.requests, faults)}
                    found["crowd"] = outcome(run_load(contender, truth, CROWD, CROWD))
                    found["disks"] = disks(contender, truth) if mounted else {}
                    write_json(kept, found)
        results[name] = json.loads(kept.read_text())
    text = table(results)
    write_text(arguments.out / "soak.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nsoak: interrupted; the same command resumes", file=sys.stderr)
        raise SystemExit(130) from None
