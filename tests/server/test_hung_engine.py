"""Engines that do not come back: seen, ended or given up, and replaced, while everything else is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from metaspec_server.core import batching
from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.errors import Closed, DeadlineExceeded
from metaspec_server.core.keys import ApiKeys
from metaspec_server.core.service import Service
from metaspec_server.core.tensors import Piece, Rows
from metaspec_server.engines.factory import engine_factory
from metaspec_server.engines.onnx import OnnxEngine
from metaspec_server.http.app import create_app
from metaspec_server.ops.metrics import Metrics
from metaspec_server.repository import RepositoryError, find_models
from metaspec_server.settings import Settings
from metaspec_testing.small_models import METADATA, Array, Expected, hanging_model, small_model, write_repository

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
NAME = "diffractionnet"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Held:
    """An engine that doubles its rows, but computes a negative one until it is released."""

    def __init__(self, ends: bool) -> None:
        self.ends, self.stopped = ends, 0
        self.entered, self.released = threading.Event(), threading.Event()

    def __call__(self, pieces: Sequence[Piece]) -> Rows:
        batch = np.concatenate([piece.rows["x"] for piece in pieces])
        if batch.min() < 0:
            self.entered.set()
            assert self.released.wait(60)
            if self.stopped and self.ends:
                raise RuntimeError("told to end")
        return {"y": 2 * batch}

    def stop(self) -> None:
        self.stopped += 1
        if self.ends:
            self.released.set()


def row(value: int) -> Rows:
    return {"x": np.array([[value]])}


async def hung(batcher: MicroBatcher, engine: Held) -> asyncio.Task[Rows]:
    task = asyncio.create_task(batcher.submit(row(-1)))
    assert await asyncio.to_thread(engine.entered.wait, 60)
    return task


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has been told to end and does not is waited for a moment only."""
    monkeypatch.setattr(batching, "_GRACE", 0.01)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("ends", [True, False])
async def test_an_overdue_engine_is_given_up_and_what_waits_is_computed_by_another(ends: bool) -> None:
    told: list[MicroBatch] = []
    engine, other = Held(ends), Held(ends)
    batcher = MicroBatcher(4, 100, observe=told.append, engine_timeout=0.05)
    batcher.start(engine, engine.stop)
    assert (batcher.engines, batcher.missing, batcher.busy) == (1, 0, {"0": 0.0})
    stuck = await hung(batcher, engine)
    waiting = asyncio.create_task(batcher.submit(row(3)))
    await until(lambda: batcher.engines == 0)
    assert batcher.missing == 1
    assert batcher.busy["0"] > 0.05
    assert await asyncio.to_thread(batcher.give_up) == [0]
    with pytest.raises(DeadlineExceeded, match=r"not finished within 0\.05 s"):
        await stuck
    assert engine.stopped == 1
    assert not waiting.done()
    assert [(batch.rows, batch.failed) for batch in told] == [(1, True)]
    batcher.start(other, other.stop, place=0)
    assert (await waiting)["y"].tolist() == [[6]]
    await until(lambda: (batcher.engines, batcher.missing) == (1, 0))
    if not ends:
        assert batcher.abandoned == 1
    engine.released.set()
    await until(lambda: batcher.abandoned == 0)
    assert await asyncio.to_thread(batcher.give_up) == []
    await batcher.close(60)
    assert [(batch.rows, batch.failed) for batch in told] == [(1, True), (1, False)], "what comes too late counts once"


async def test_a_run_for_nobody_is_ended_too() -> None:
    engine = Held(ends=True)
    batcher = MicroBatcher(4, 100, engine_timeout=0.05)
    batcher.start(engine, engine.stop)
    left = await hung(batcher, engine)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    await until(lambda: batcher.missing == 1)
    assert await asyncio.to_thread(batcher.give_up) == [0]
    assert engine.stopped == 1
    assert batcher.abandoned == 0
    await batcher.close(60)


@pytest.mark.usefixtures("short_grace")
async def test_engines_are_not_replaced_for_ever_while_their_runs_go_on() -> None:
    engines: list[Held] = []
    batcher = MicroBatcher(1, 100, engine_timeout=0.01)

    def add(place: int | None) -> Held:
        engines.append(Held(ends=False))
        batcher.start(engines[-1], engines[-1].stop, place=place)
        return engines[-1]

    engine, stuck = add(None), []
    for _ in range(3):
        stuck.append(await hung(batcher, engine))
        await until(lambda: batcher.missing == 1)
        assert await asyncio.to_thread(batcher.give_up) == [0]
        engine = add(0)
    stuck.append(await hung(batcher, engine))
    await until(lambda: batcher.missing == 1)
    with pytest.raises(RuntimeError, match="4 runs were told to end and go on: restart the server"):
        await asyncio.to_thread(batcher.give_up)
    for task in stuck:
        with pytest.raises(DeadlineExceeded):
            await task
    engines[0].released.set()
    await until(lambda: batcher.abandoned == 3)
    assert await asyncio.to_thread(batcher.give_up) == [0]
    for engine in engines:
        engine.released.set()
    await batcher.close(60)


async def test_at_the_end_a_hung_run_is_ended() -> None:
    engine = Held(ends=True)
    batcher = MicroBatcher(4, 100)
    batcher.start(engine, engine.stop)
    stuck = await hung(batcher, engine)
    await batcher.close(0.01)
    with pytest.raises(Closed):
        await stuck
    assert engine.stopped == 1


@asynccontextmanager
async def served(root: Path, **options: float) -> AsyncIterator[tuple[httpx.AsyncClient, Service, threading.Event]]:
    """A server's application, whose engines, one for each model, are replaced once the event is set."""
    settings, metrics = Settings(repository=root, cache_mb=0, instances=1, **options), Metrics()  # type: ignore[arg-type]
    service = await Service.start(settings, engine_factory(settings, metrics.observe), metrics)
    may_revive = threading.Event()
    model = service.registry.find(NAME)
    revive = model.revive
    model.revive = lambda: revive() if may_revive.is_set() else 0
    app = create_app(service, metrics, ApiKeys(None))
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", timeout=60
        ) as client:
            yield client, service, may_revive
    finally:
        may_revive.set()
        await service.close()


async def metric(client: httpx.AsyncClient, line: str) -> float:
    """Value of a sample of the metrics."""
    text = (await client.get("/metrics")).text
    (found,) = [entry for entry in text.splitlines() if entry.startswith(f"metaspec_{line} ")]
    return float(found.split()[-1])


def one_pixel() -> bytes:
    structure = np.zeros((128, 128), np.uint8)
    structure[40, 50] = 1
    return np.packbits(structure).tobytes()


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_a_hung_model_and_everything_around_it(tmp_path: Path, structures: Array, expected: Expected) -> None:
    root = write_repository(tmp_path / "repository", hanging_model())
    write_repository(root, small_model(METADATA | {"name": "other"}))
    body = np.packbits(structures).tobytes()
    labels = f'{{model="{NAME}",version="1"}}'
    busy = f'engine_busy_seconds{{engine="0",model="{NAME}",version="1"}}'

    async def spectra(client: httpx.AsyncClient, model: str) -> Array:
        answer = await client.post(f"/predict?model={model}", content=body, headers=PACKED)
        return np.frombuffer(answer.raise_for_status().content, np.float32)

    async with served(root, engine_timeout=1) as (client, service, may_revive):
        np.testing.assert_allclose(await spectra(client, NAME), expected(structures).ravel(), atol=1e-6)
        assert await metric(client, busy) == 0
        stuck = asyncio.create_task(client.post("/predict", content=one_pixel(), headers=PACKED))
        await until(lambda: not service.ready)
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get(f"/v2/models/{NAME}/ready")).status_code == 503
        assert (await client.get("/v2/models/other/ready")).status_code == 200
        assert await metric(client, busy) > 1
        assert await metric(client, f"engines{labels}") == 0
        np.testing.assert_allclose(await spectra(client, "other"), expected(structures).ravel(), atol=1e-6)
        waiting = asyncio.create_task(spectra(client, NAME))
        may_revive.set()
        answer = await stuck
        assert answer.status_code == 504
        assert answer.json()["detail"] == "not finished within 1 s"
        np.testing.assert_allclose(await waiting, expected(structures).ravel(), atol=1e-6)
        await until(lambda: service.ready)
        assert threads(f"{NAME} 1") == 1, "the run has ended, and its thread"
        assert await metric(client, f"engines_abandoned{labels}") == 0
        restarts = f'engine_restarts_total{{model="{NAME}"}}'
        async with asyncio.timeout(60):
            while await metric(client, restarts) < 1:
                await asyncio.sleep(0.01)
        assert await metric(client, f'engine_errors_total{{model="{NAME}"}}') == 1

        # A caller who does not wait for it: the run is ended all the same.
        leaving = asyncio.create_task(client.post("/predict", content=one_pixel(), headers=PACKED))
        queue = service.registry.find(NAME).queue
        await until(lambda: queue.busy["0"] > 0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(60):
            while await metric(client, restarts) < 2:
                await asyncio.sleep(0.01)
        assert threads(f"{NAME} 1") == 1
        np.testing.assert_allclose(await spectra(client, NAME), expected(structures).ravel(), atol=1e-6)


def test_a_model_that_hangs_in_its_trial_is_refused(tmp_path: Path) -> None:
    root = write_repository(tmp_path, hanging_model(solid_pixels=128 * 128))
    (file,) = find_models(root)[NAME]
    with pytest.raises(
        RepositoryError, match=r"model\.onnx: ONNX Runtime fails to run it: it has not finished within 0\.2 s"
    ):
        OnnxEngine(file, load_timeout=0.2)


def test_the_hanging_model_is_otherwise_the_small_one(structures: Array, expected: Expected, tmp_path: Path) -> None:
    onnx.checker.check_model(hanging_model())
    (file,) = find_models(write_repository(tmp_path, hanging_model()))[NAME]
    spectra = OnnxEngine(file).run([{"structure": structures[:, None].astype(np.float32)}])["spectra"]
    np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)
