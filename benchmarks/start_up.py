"""Time until the server listens, each of its models takes requests, and all do, with the processor time of its process.

    python benchmarks/start_up.py                            # the bundled models, default settings
    python benchmarks/start_up.py --models diffractionnet    # any settings of metaspec-serve

Linux only.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from metaspec_testing.servers import START_TIMEOUT, RunningServer, running_server


def cpu_seconds(server: RunningServer) -> float:
    """Processor time that the server's process has used, in user and system mode."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the times."""
    started = time.perf_counter()
    with running_server(*sys.argv[1:], until="listens") as server:

        def say(event: str) -> None:
            print(f"{time.perf_counter() - started:5.2f} s, {cpu_seconds(server):5.2f} s of CPU: {event}", flush=True)

        say("listens")
        server.get("/v2/health/live").raise_for_status()
        say("answers")
        seen = 0
        while "serves at" not in "".join(server.log[:seen]):
            for line in server.log[seen:]:
                say(line.partition("  (")[0].strip())
                seen += 1
            if server.process.poll() is not None or time.perf_counter() - started > START_TIMEOUT:
                raise SystemExit("it does not serve")
            time.sleep(0.002)


if __name__ == "__main__":
    main()
