"""The option `--process`: a file with the process, and the line that says how it differs from the default."""

from __future__ import annotations

from pathlib import Path

import typer

from metaspec_contract.process import Process, read_process


def read_stated(path: Path) -> Process:
    """The default process with the fields of a file in place of the default ones; prints what these change.

    Raises:
        ValueError: see `metaspec_contract.process.read_process`.
    """
    process = read_process(path)
    print_process(process, path)
    return process


def print_process(process: Process, origin: Path) -> None:
    """Print how a process differs from the default, in one line."""
    difference = process.difference(Process())
    typer.echo(f"Process of {origin}, against the default: {difference or 'no difference'}.")
