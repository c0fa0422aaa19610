"""Workers that are killed: the data set is made all the same, the progress bar is right, and nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import psutil
import pytest
from distributed import LocalCluster

from metaspec_contract.process import Process
from metaspec_simulation import dataset as data

LONGEST, COUNT, SHARD = 20.0, 6, 3
DEADLINE = 240.0  # seconds for each step of a command, which may have to compile first
RECIPE = data.Recipe(Process(), seed=7, cells=24, longest=LONGEST)


def start(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    settings = ["--count", COUNT, "--out", out, "--seed", 7, "--cells", 24, "--longest", LONGEST, *arguments]
    with (out.parent / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "metaspec_simulation", *map(str, settings)], stdout=log, stderr=log
        )


def log(out: Path) -> str:
    return (out.parent / "log").read_text()


def new_worker(process: subprocess.Popen[bytes], known: set[int]) -> psutil.Process:
    """A worker of the command that has not been seen before."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, "the command has ended"
        for child in psutil.Process(process.pid).children():
            try:
                if child.pid not in known and "spawn_main" in " ".join(child.cmdline()):
                    known.add(child.pid)
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)
    raise AssertionError("no worker has started")


def wait_for(text: str, out: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE
    while text not in log(out):
        assert time.monotonic() < deadline, log(out)
        assert process.poll() is None, log(out)
        time.sleep(0.01)


@pytest.mark.slow
def test_workers_that_are_killed_cost_their_shards_time_only(tmp_path: Path) -> None:
    """Killed five times, three of them while starting, once in the first shard and once in the second."""
    out = tmp_path / "set"
    data.open_dataset(out, RECIPE, COUNT, shard=SHARD)
    process = start(out)
    known: set[int] = set()
    for _ in range(3):
        new_worker(process, known).kill()
    for steps in ("1/6 [", "4/6 ["):
        worker = new_worker(process, known)
        wait_for(steps, out, process)
        worker.kill()
    assert process.wait(DEADLINE) == 0, log(out)
    bar = log(out).split("\r")[-1]
    assert f"{COUNT}/{COUNT} [" in bar
    assert f"has {COUNT} samples." in bar
    assert len(data.load(out)) == COUNT


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    one: Any = LocalCluster
    first_kill_counts = {"distributed.scheduler.allowed-failures": 0}
    with dask.config.set(first_kill_counts), one(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_dask_worker_that_is_killed(tmp_path: Path, cluster: LocalCluster) -> None:
    out = tmp_path / "set"
    data.open_dataset(out, RECIPE, COUNT, shard=SHARD)
    (nanny,) = cluster.workers.values()
    process = start(out, "--scheduler", cluster.scheduler_address)
    wait_for("1/6 [", out, process)
    os.kill(nanny.pid, signal.SIGKILL)
    assert process.wait(DEADLINE) == 0, log(out)
    assert f"{COUNT}/{COUNT} [" in log(out).split("\r")[-1]
    np.testing.assert_array_equal(data.load(out).structures[3], RECIPE.structure(3))
