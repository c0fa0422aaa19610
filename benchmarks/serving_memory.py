"""Memory of the server: after its start, and after every model has computed full micro-batches.

    python benchmarks/serving_memory.py                      # the bundled models, default settings
    python benchmarks/serving_memory.py --lazy               # any settings of metaspec-serve

The last micro-batches are computed by all models at once, so that their memory adds up as far as it can. Linux only.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from metaspec_contract.model import is_gradient_model
from metaspec_testing.servers import RunningServer, running_server

STRUCTURES = 16
ROUNDS = 1
RAW = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def use(server: RunningServer, model: str) -> None:
    """Have a model compute structures that are in no cache."""
    seed = sum(model.encode())
    metadata = server.get(f"/v2/models/{model}").json()
    for turn in range(ROUNDS):
        bits = np.random.default_rng(seed + turn).integers(0, 256, (STRUCTURES, 2048), np.uint8).tobytes()
        route = "/predict"
        if is_gradient_model(model):
            route = "/gradient"
            shape = next(tensor["shape"][1:] for tensor in metadata["inputs"] if tensor["name"] == "cotangent")
            bits += np.ones((STRUCTURES, *shape), "<f4").tobytes()
        server.post(f"{route}?model={model}", content=bits, headers=RAW, timeout=600).raise_for_status()


def main() -> None:
    """Print the resident memory."""
    with running_server("--cache-mb", "0", *sys.argv[1:]) as server:
        print(f"idle {server.resident_bytes / 2**20:.0f} MiB, peak {server.peak_bytes / 2**20:.0f} MiB")
        models = [entry["name"] for entry in server.post("/v2/repository/index").json()]
        for model in models:
            use(server, model)
            print(f"after {model} {server.resident_bytes / 2**20:.0f} MiB")
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(lambda model: use(server, model), models))
        print(f"after all at once {server.resident_bytes / 2**20:.0f} MiB, peak {server.peak_bytes / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
