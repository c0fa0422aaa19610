"""Versions are published and removed while callers call: callers may notice by the version in their answers only."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from metaspec_contract.process import Process
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import METADATA, Array, small_gradient_model, small_model, write_repository

NPY = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository", small_model(seed=1), version=1)


def publish(root: Path, model: onnx.ModelProto, version: int) -> None:
    """As `metaspec-export` does it: whole, by one rename."""
    hidden = root / "diffractionnet" / f".{version}"
    hidden.mkdir()
    onnx.save(model, hidden / "model.onnx")
    hidden.rename(root / "diffractionnet" / str(version))


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def version(server: RunningServer) -> str:
    return str(server.get("/v2/models/diffractionnet").json()["versions"][-1])


def serves(server: RunningServer, number: str) -> bool:
    return version(server) == number


def longer(answers: list[Any], length: int) -> bool:
    return len(answers) > length


def index(server: RunningServer) -> dict[tuple[str, str], dict[str, str]]:
    entries = server.post("/v2/repository/index").json()
    return {(entry["name"], entry["version"]): entry for entry in entries}


def spectra_of(model: onnx.ModelProto, structures: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    spectra: Array = session.run(None, {"structure": structures[:, None].astype(np.float32)})[0]
    return spectra


@contextmanager
def callers(server: RunningServer, structures: Array, count: int = 6) -> Iterator[list[tuple[int, str, Array]]]:
    """Several callers who call in a loop; yields their answers as status, version and spectra."""
    answers: list[tuple[int, str, Array]] = []
    stop = threading.Event()
    body = np.packbits(structures, axis=None).tobytes()

    def call() -> None:
        with server.client() as http:
            while not stop.is_set():
                answer = http.post("/predict", content=body, headers=NPY)
                spectra = np.frombuffer(answer.content, np.float32) if answer.status_code == 200 else np.empty(0)
                answers.append((answer.status_code, answer.headers.get("MetaSpec-Version", ""), spectra))

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.parametrize("cache", ["0", "16"])
def test_callers_do_not_notice_new_versions(root: Path, structures: Array, cache: str) -> None:
    models = {str(number): small_model(seed=number) for number in (1, 2, 3)}
    flags = ("--repository", str(root), "--poll-interval", "0.05", "--keep-versions", "1", "--cache-mb", cache)
    with running_server(*flags) as server, callers(server, structures) as answers:
        for number in (2, 3):
            until(partial(longer, answers, 20))
            publish(root, models[str(number)], number)
            until(partial(serves, server, str(number)))
            until(partial(longer, answers, len(answers) + 20))
        shutil.rmtree(root / "diffractionnet" / "3")  # rollback is removal
        until(partial(serves, server, "2"))
        until(partial(longer, answers, len(answers) + 20))
    expected = {number: spectra_of(model, structures).ravel() for number, model in models.items()}
    assert {status for status, *_ in answers} == {200}
    assert {number for _, number, _ in answers} == {"1", "2", "3"}
    for _, answered, spectra in answers:
        np.testing.assert_allclose(spectra, expected[answered], atol=1e-6)
    assert not [line for line in server.log if "Traceback" in line]


def test_a_broken_version_never_replaces_a_working_one(root: Path) -> None:
    with running_server("--repository", str(root), "--poll-interval", "0.05") as server:
        (root / "diffractionnet" / "2").mkdir()
        (root / "diffractionnet" / "2" / "model.onnx").write_bytes(b"no graph")
        until(lambda: ("diffractionnet", "2") in index(server))
        entries = index(server)
        assert entries["diffractionnet", "1"]["state"] == "READY"
        assert entries["diffractionnet", "2"]["state"] == "UNAVAILABLE"
        assert "ONNX Runtime cannot load it" in entries["diffractionnet", "2"]["reason"]
        assert version(server) == "1"
        assert server.get("/v2/health/ready").status_code == 200
        until(lambda: any("diffractionnet version 2 is not served" in line for line in server.log))
        assert 'metaspec_load_failures_total{model="diffractionnet"} 1.0' in server.get("/metrics").text

        def answer() -> tuple[str, list[Any]]:
            answered = server.post("/predict", json={"structures": np.eye(128).tolist()}).json()
            return answered["version"], answered["spectra"]

        def replace(seed: int) -> None:
            onnx.save(small_model(seed=seed), root / "diffractionnet" / "2" / "whole.onnx")
            os.replace(root / "diffractionnet" / "2" / "whole.onnx", root / "diffractionnet" / "2" / "model.onnx")

        replace(seed=2)
        until(partial(serves, server, "2"))
        before = answer()
        assert before == answer(), "from the cache"
        replace(seed=3)
        until(lambda: answer() != before)  # what the cache has is that of another model
        assert answer()[0] == "2"
        assert index(server)["diffractionnet", "2"]["state"] == "READY"

        (root / "diffractionnet" / "2" / "model.onnx").write_bytes(b"no graph any more")
        until(lambda: "reason" in index(server)["diffractionnet", "2"])
        assert index(server)["diffractionnet", "2"]["state"] == "READY", "what is loaded goes on"


def test_a_version_of_another_device_never_replaces_a_working_one(root: Path) -> None:
    process = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750)
    other = METADATA | {
        "process": process.model_dump(mode="json"),
        "wavelengths_nm": process.wavelengths_nm.tolist(),
    }
    with running_server("--repository", str(root), "--poll-interval", "0.05") as server:
        publish(root, small_model(other), 2)
        until(lambda: ("diffractionnet", "2") in index(server))
        entry = index(server)["diffractionnet", "2"]
        assert entry["state"] == "UNAVAILABLE"
        assert entry["reason"] == (
            f"{root}/diffractionnet/2/model.onnx: diffractionnet version 2 and version 1, which it would replace, are of "
            "different processes: period_um 1.6 against 2.0, wavelength_min_nm 450.0 against 400.0, "
            "wavelength_max_nm 750.0 against 700.0; publish it under another name"
        )
        assert version(server) == "1"
        assert server.get("/v2/models/diffractionnet").json()["parameters"]["process"]["period_um"] == 2.0
        answer = server.post("/predict", json={"structures": np.eye(128).tolist()}).raise_for_status().json()
        assert (answer["version"], answer["wavelengths_nm"][0]) == ("1", 400)
        assert server.get("/v2/health/ready").status_code == 200


def test_at_the_start_an_older_version_stands_in_for_a_broken_one(root: Path) -> None:
    (root / "diffractionnet" / "7").mkdir()
    (root / "diffractionnet" / "7" / "model.onnx").write_bytes(b"no graph")
    with running_server("--repository", str(root)) as server:
        assert version(server) == "1"
        assert index(server)["diffractionnet", "7"]["state"] == "UNAVAILABLE"
        assert "diffractionnet version 7 is not served" in server.banner


def test_load_and_unload_by_the_stock_client(root: Path) -> None:
    write_repository(root, small_gradient_model())
    with (
        running_server("--repository", str(root), "--poll-interval", "0") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        client.unload_model("diffractionnet")
        assert not client.is_model_ready("diffractionnet")
        assert client.is_model_ready("diffractionnet_vjp")
        with pytest.raises(InferenceServerException, match="no model 'diffractionnet' here"):
            client.unload_model("diffractionnet")
        publish(root, small_model(seed=2), 2)
        assert not client.is_model_ready("diffractionnet"), "nobody looks for new versions here"
        client.load_model("diffractionnet")
        assert client.is_model_ready("diffractionnet", "2")
        assert client.is_model_ready("diffractionnet", "1")
        publish(root, onnx.ModelProto(), 3)
        with pytest.raises(InferenceServerException, match="version 3 cannot be loaded"):
            client.load_model("diffractionnet")
        assert client.is_model_ready("diffractionnet", "2")
        with pytest.raises(InferenceServerException, match="no model 'other' in the repository"):
            client.load_model("other")


def test_what_callers_may_not_do(root: Path) -> None:
    with running_server("--repository", str(root), "--no-model-control") as server:
        answer = server.post("/v2/repository/models/diffractionnet/unload")
        assert answer.status_code == 403
        assert "--no-model-control" in answer.json()["error"]
        assert version(server) == "1"


def test_a_repository_that_vanishes_for_a_while(root: Path) -> None:
    with running_server("--repository", str(root), "--poll-interval", "0.05") as server:
        root.rename(root.parent / "away")
        until(lambda: any("no such folder" in line for line in server.log))
        assert version(server) == "1"
        (root.parent / "away").rename(root)
        assert server.get("/v2/health/ready").status_code == 200
