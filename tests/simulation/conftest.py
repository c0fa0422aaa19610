"""`metaspec-simulate` in this process, and a structure and a solver that several files share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from metaspec_contract.process import Process
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.cli import main
from metaspec_simulation.data.families import random_structure


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metaspec-simulate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def refusal(command: Callable[..., Outcome]) -> Callable[..., str]:
    """What the command says when it refuses: one line, exit status 2."""

    def run(*arguments: object) -> str:
        outcome = command(*arguments)
        assert outcome.code == 2, outcome
        line = outcome.err.splitlines()[-1]
        assert outcome.err.count("metaspec-simulate: ") == 1
        assert line.startswith("metaspec-simulate: ")
        return line

    return run


@pytest.fixture(scope="session")
def start_command() -> Callable[..., subprocess.Popen[str]]:
    """The command in a process of its own, which Ctrl-C interrupts even if this one ignores it, as in a background job."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from metaspec_simulation.cli import main; main()"
    )

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options)

    return start


@pytest.fixture(scope="session")
def coarsest() -> Solver:
    """The coarsest grid of the default process."""
    return Solver(Process(), cells=24)


@pytest.fixture(scope="session")
def structure() -> Structure:
    return random_structure(np.random.default_rng(4), "random_field")
