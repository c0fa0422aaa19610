"""The command `metaspec`: in this process, or in one of its own, which tests interrupt."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

# The command, which a signal interrupts also where tests run in the background.
COMMAND = """
import signal
from metaspec.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


Command: TypeAlias = Callable[..., tuple[int, str, str]]
"""Gives the command in this process: exit status, standard output, standard error."""


def give(arguments: Sequence[object]) -> int:
    """Give the command in this process, and return its exit status."""
    from metaspec.__main__ import main

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["metaspec", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return int(ended.value.code or 0)


def metaspec(*arguments: object, code: str = COMMAND) -> subprocess.Popen[str]:
    """Start the command.

    Args:
        *arguments: its arguments.
        code: Python code that runs it.
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupt_in_simulation(process: subprocess.Popen[str], folder: Path) -> tuple[str, str]:
    """Interrupt a run on the solver as soon as its folder keeps something simulated.

    Returns:
        What it printed, and its errors.
    """
    try:
        deadline = time.monotonic() + 240
        while not list(folder.glob("cache/[!.]*.npy")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return process.communicate(timeout=120)
    finally:
        process.kill()
