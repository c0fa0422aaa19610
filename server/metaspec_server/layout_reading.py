"""Reads a GDSII layout in a process of its own: a hostile one can take minutes, or end the process that reads it.

    python -m metaspec_server.layout_reading < request > answer

The request is a line of JSON, `process`, `cell` and `layer`, and the layout after it. The answer is a `.npy` file of densities,
or one line on standard error and exit status 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from metaspec_contract.layouts import parse_layout
from metaspec_contract.process import Process

__all__ = ["MEMORY_BYTES", "main"]

MEMORY_BYTES = 2 * 2**30
"""Address space of the process. Linux and macOS only."""

_NAME = Path("the layout")  # in messages


def main() -> None:
    """Read the request from standard input, and write the answer to standard output."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # Windows has no such limits, and some systems do not set them
        pass
    head, content = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    request = json.loads(head)
    try:
        layout = parse_layout(content, _NAME, cell=request["cell"], layer=tuple(request["layer"]))
        density = layout.density(Process.model_validate(request["process"]))
    except ValueError as error:
        sys.exit(str(error))
    np.save(sys.stdout.buffer, density.astype(np.float32))


if __name__ == "__main__":
    main()
