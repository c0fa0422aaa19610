"""A surrogate in several processes: after forks, in spawned processes, as a copy, and as part of a PyTorch module."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaspec import AsyncSurrogate, Surrogate
from metaspec.torch import spectra_of
from metaspec_testing.servers import RunningServer
from metaspec_testing.silent import means_server
from metaspec_testing.small_models import Array, Expected

CHILDREN, CALLS = 3, 8

# Uses a connection, forks, and then predicts other structures in every process at the same time.
FORKS = f"""
import os, sys
import numpy as np
from metaspec import Surrogate

url, folder = sys.argv[1:]
structures = np.load(folder + "/structures.npy")
surrogate = Surrogate(url, timeout=60, retries=0)
surrogate.predict(structures[0])

def work(process):
    mine = structures[process * {CALLS} : (process + 1) * {CALLS}]
    np.save(f"{{folder}}/{{process}}.npy", [surrogate.predict(one).values[0] for one in mine])

children = []
for process in range({CHILDREN}):
    child = os.fork()
    if child == 0:
        try:
            work(process)
            os._exit(0)
        finally:
            os._exit(1)
    children.append(child)
work({CHILDREN})
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
work({CHILDREN})  # the parent's connections are as they were
"""


@pytest.fixture
def many() -> Array:
    return np.random.default_rng(21).integers(0, 2, ((CHILDREN + 1) * CALLS, 128, 128), dtype=np.uint8)


def fork(url: str, folder: Path, structures: Array) -> Array:
    """Spectra of structures that the processes of `FORKS` predict."""
    np.save(folder / "structures.npy", structures)
    program = [sys.executable, "-c", FORKS, url, str(folder)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return np.concatenate([np.load(folder / f"{process}.npy") for process in range(CHILDREN + 1)])


def test_forks_over_http(server: RunningServer, many: Array, expected: Expected, tmp_path: Path) -> None:
    np.testing.assert_allclose(fork(server.url, tmp_path, many), expected(many), atol=1e-6)


def test_forks_over_grpc(many: Array, tmp_path: Path) -> None:
    with means_server() as url:
        values = fork(url, tmp_path, many)
    wanted = np.broadcast_to(many.mean(axis=(1, 2))[:, None, None], values.shape)
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_threads_get_their_own_answers_over_grpc() -> None:
    """What tritonclient alone gets wrong where threads send at the same time."""
    values = np.linspace(0, 1, 64)
    with means_server() as url, Surrogate(url, concurrency=16) as surrogate, ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda value: surrogate.predict(np.full((128, 128), value)).values[0, 0, 0], values)
        np.testing.assert_allclose(list(found), values, atol=1e-5)


def test_spawned_processes(server: RunningServer, structures: Array, expected: Expected) -> None:
    spawn = multiprocessing.get_context("spawn")
    with Surrogate(server.url, batch_size=2) as surrogate, ProcessPoolExecutor(1, mp_context=spawn) as pool:
        surrogate.predict(structures)
        spectra = pool.submit(surrogate.predict, structures).result(timeout=120)
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-6)


@pytest.mark.parametrize("kind", [Surrogate, AsyncSurrogate])
def test_copies_have_the_settings_and_connections_of_their_own(kind: type) -> None:
    settings = {
        "model": "other",
        "version": 3,
        "api_key": "a key",
        "timeout": 5.0,
        "retries": 2,
        "wait": 7.0,
        "batch_size": 8,
        "concurrency": 2,
        "priority": 1,
        "progress": False,
    }
    original = kind("http://127.0.0.1:8123/", **settings)
    for duplicate in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original), copy.copy(original)):
        assert type(duplicate) is kind
        rebuild: Any = duplicate.__reduce__()[0]
        assert rebuild.keywords == {"url": "http://127.0.0.1:8123", **settings, "version": "3"}
        assert vars(duplicate).keys() == vars(original).keys()
        for name in ("_transport", "_gate", "_lines"):
            if name in vars(original):
                assert vars(duplicate)[name] is not vars(original)[name]


def test_a_copy_of_a_closed_surrogate_is_open(server: RunningServer, structures: Array) -> None:
    surrogate = Surrogate(server.url)
    surrogate.close()
    with copy.copy(surrogate) as again:
        assert len(again.predict(structures)) == 5


class Layer(torch.nn.Module):
    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.latent = torch.nn.Parameter(torch.zeros(1, 128, 128))
        self.surrogate = surrogate

    def forward(self) -> torch.Tensor:
        return spectra_of(torch.sigmoid(self.latent), self.surrogate)


def test_in_a_torch_module(server: RunningServer, expected: Expected) -> None:
    with Surrogate(server.url) as surrogate:
        layer = Layer(surrogate)
        layer()
        duplicate = copy.deepcopy(layer)
        np.testing.assert_allclose(duplicate().detach(), expected(np.full((1, 128, 128), 0.5)), atol=1e-6)
        duplicate.surrogate.close()
        assert layer().shape == (1, 4, 301)
