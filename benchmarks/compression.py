"""Compression of answers: what each level of gzip takes off, and how fast, on one core.

    python benchmarks/compression.py

The answers are those of a real server: spectra of 64 structures of the test set as JSON and as `.npy`, and the API's document.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import numpy as np

from metaspec_simulation.dataset import read_dataset
from metaspec_testing.servers import RunningServer, running_server

LEVELS = (1, 4, 6, 9)
SECONDS = 0.5  # of CPU time, compressing the same answer again
ROOT = Path(__file__).parents[1]


def answers(server: RunningServer) -> dict[str, bytes]:
    """Bodies of answers, by what they are."""
    packed = np.asarray(read_dataset(ROOT / "datasets" / "bayer-600nm")["structure"][-64:]).tobytes()

    def predict(accept: str, dtype: str) -> bytes:
        headers = {"Content-Type": "application/octet-stream", "Accept": accept, "Accept-Encoding": "identity"}
        return server.post(f"/predict?dtype={dtype}", content=packed, headers=headers).raise_for_status().content

    return {
        "spectra, JSON": predict("application/json", "float32"),
        "spectra, .npy, float32": predict("application/x-npy", "float32"),
        "spectra, .npy, float16": predict("application/x-npy", "float16"),
        "/openapi.json": server.get("/openapi.json", headers={"Accept-Encoding": "identity"}).content,
    }


def measure(body: bytes, level: int) -> tuple[float, float]:
    """Compressed size as a share of the whole, and bytes per second of CPU time."""
    compressed, turns, started = b"", 0, time.process_time()
    while (seconds := time.process_time() - started) < SECONDS:
        compressor = zlib.compressobj(level, wbits=31)
        compressed = compressor.compress(body) + compressor.flush()
        turns += 1
    return len(compressed) / len(body), turns * len(body) / seconds


def main() -> None:
    """Print a table."""
    with running_server("--models", "diffractionnet") as server:
        metadata = server.get("/v2/models/diffractionnet").json()["parameters"]
        bodies = answers(server)
    print(f"diffractionnet {metadata.get('network_sha256', metadata['weights_sha256'])[:12]}\n")
    print("| answer | kB | " + " | ".join(f"level {level}: size, MB/s" for level in LEVELS) + " |")
    print("|---|---|" + "---|" * len(LEVELS))
    for name, body in bodies.items():
        results = [measure(body, level) for level in LEVELS]
        cells = [f"{100 * share:.0f} %, {speed / 1e6:.0f}" for share, speed in results]
        print(f"| {name} | {len(body) / 1e3:.0f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
