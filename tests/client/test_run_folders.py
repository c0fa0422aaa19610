"""What processes that share run folders agree on: the lock of a folder, and the lines of its progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from metaspec._run_lock import holder, locked
from metaspec._run_progress import lines, recorded
from metaspec.designs import is_finished
from metaspec.optimise import Progress
from metaspec_contract.run_folder import LOCK, PROGRESS
from metaspec_testing.commands import Command
from metaspec_testing.servers import RunningServer

HOLD = """
import sys
from pathlib import Path
from metaspec._run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_process_works_in_a_folder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with another_process(tmp_path) as other:
        assert holder(tmp_path) == other.pid
        with pytest.raises(ValueError, match=f"process {other.pid} works in {tmp_path}: wait"), locked(tmp_path):
            pytest.fail("two processes hold it")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert (tmp_path / LOCK).exists()
        assert holder(tmp_path) is None
        with locked(tmp_path):
            assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_lock_is_waited_for_while_somebody_asks_for_its_holder(tmp_path: Path) -> None:
    """Whoever asks holds the lock for a moment, which does not make another process refuse."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            holder(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(200):
            with locked(tmp_path):
                assert (tmp_path / LOCK).read_text() == str(os.getpid())
    finally:
        ended.set()
        asking.join()


def test_a_command_refuses_the_folder_of_another_process(
    metaspec: Command, server: RunningServer, tmp_path: Path
) -> None:
    with another_process(tmp_path) as other:
        status, _, errors = metaspec("optimise", "--url", server.url, "--out", tmp_path, "--steps", 1)
    assert (status, errors) == (
        2,
        f"metaspec: process {other.pid} works in {tmp_path}: wait until it ends, or use another folder\n",
    )
    assert not is_finished(tmp_path, {})  # the lock, which the killed process left, is nothing foreign


def test_the_check_of_a_command_asks_and_writes_nothing(metaspec: Command, nobody: str, tmp_path: Path) -> None:
    url = f"http://{nobody}"
    assert metaspec("optimise", "--check", "--url", url, "--out", tmp_path / "run") == (0, "", "")
    status, _, errors = metaspec("optimise", "--check", "--url", url, "--out", tmp_path / "run", "--optimiser", "none")
    assert status == 2
    assert errors.startswith("metaspec: optimiser must be one of adam, ")
    assert not list(tmp_path.iterdir())


def test_progress_is_read_line_by_line_and_goes_on_after_one_that_was_cut(tmp_path: Path) -> None:
    assert not list(lines(tmp_path))
    seen: list[int] = []

    def step(number: int, best: float = 0.5, beta: float = 4.0) -> Progress:
        structures = np.zeros((2, 8, 8), np.uint8)
        return Progress(number, 3, beta, np.array([0.25, 0.75]), np.array([-np.inf, best]), structures)

    note = recorded(tmp_path, lambda progress: seen.append(progress.step))
    note(step(1, best=-np.inf))
    note(step(2))
    first, second = lines(tmp_path)
    assert seen == [1, 2]
    expected = {"step": 1, "steps": 3, "value": 0.75, "median": 0.5, "best": None, "beta": 4.0}
    assert first.values.items() >= expected.items()
    assert second.values["best"] == 0.5
    assert list(lines(tmp_path, first.end)) == [second]
    with (tmp_path / PROGRESS).open("a") as file:
        file.write('{"step": 3, "ste')
    assert list(lines(tmp_path, second.end)) == []
    recorded(tmp_path, lambda progress: None)(step(3, beta=np.inf))
    (third,) = lines(tmp_path, second.end)
    assert third.values.items() >= {"step": 3, "beta": None}.items()
    assert third.end == (tmp_path / PROGRESS).stat().st_size
    assert [line.values["step"] for line in lines(tmp_path, third.end + 1)] == [1, 2, 3]  # of another file
