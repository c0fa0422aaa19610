"""Engines that follow the load: one with all cores while little waits, one on each core when more does, never both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec_server.core.batching import MicroBatcher
from metaspec_server.core.errors import DeadlineExceeded, EngineFailure
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.tensors import Piece, Rows
from metaspec_server.engines.factory import engine_factory
from metaspec_server.ops.metrics import Metrics
from metaspec_server.repository import find_models
from metaspec_server.settings import Settings
from metaspec_testing.small_models import (
    Array,
    Expected,
    ExpectedGradient,
    hanging_model,
    small_model,
    write_repository,
)

NAME = "diffractionnet"
DEADLY = 666


def row(*values: int) -> Rows:
    return {"x": np.array(values)[:, None]}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


class Engine:
    """An engine that doubles its rows once it is let go, and sees which others compute."""

    def __init__(self, crew: dict[str, Engine], name: str) -> None:
        self.name, self.crew, self.batches = name, crew, list[list[int]]()
        self.computing, self.go, self.stopped = False, threading.Event(), False

    def __call__(self, pieces: Sequence[Piece]) -> Rows:
        batch = np.concatenate([piece.rows["x"] for piece in pieces])
        self.batches.append(batch[:, 0].tolist())
        self.computing = True
        kinds = {name[0] for name, engine in self.crew.items() if engine.computing}
        assert kinds == {self.name[0]}, "never both kinds at once"
        assert self.go.wait(60)
        self.computing = False
        if self.stopped:
            raise RuntimeError("told to end")
        if DEADLY in batch:
            raise SystemExit("the engine's thread ends")
        return {"y": 2 * batch}

    def stop(self) -> None:
        self.stopped = True
        self.go.set()


def crew_of(cores: int, **options: Any) -> tuple[MicroBatcher, dict[str, Engine]]:
    """A batcher with one engine that has all cores, micro-batches of 4, and one on each core, micro-batches of 2."""
    crew: dict[str, Engine] = {}
    batcher = MicroBatcher(4, 1000, **options)
    for name in ["all", *(f"core {n}" for n in range(cores))]:
        engine = crew[name] = Engine(crew, name)
        batcher.start(engine, engine.stop, max_batch=4 if name == "all" else 2, on_one_core=name != "all")
    return batcher, crew


def computing(crew: dict[str, Engine]) -> set[str]:
    return {name for name, engine in crew.items() if engine.computing}


def on_cores(crew: dict[str, Engine]) -> list[list[int]]:
    """Micro-batches of the engines on one core."""
    return sorted(batch for name, engine in crew.items() if name != "all" for batch in engine.batches)


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def submitted(batcher: MicroBatcher, *values: int) -> asyncio.Task[Rows]:
    task = asyncio.create_task(batcher.submit(row(*values)))
    await asyncio.sleep(0)
    return task


async def test_a_lone_request_gets_all_cores_and_a_crowd_one_core_each() -> None:
    batcher, crew = crew_of(3)
    lone = await submitted(batcher, 1)
    await until(lambda: computing(crew) == {"all"})
    crowd = [await submitted(batcher, n) for n in range(10, 15)]
    assert batcher.waiting == 5
    crew["all"].go.set()
    await until(lambda: computing(crew) == {"core 0", "core 1", "core 2"})
    assert on_cores(crew) == [[10, 11], [12], [13]]
    assert batcher.waiting == 1
    crew["core 1"].go.set()
    await until(lambda: len(crew["core 1"].batches) == 2)
    late = await submitted(batcher, 20)
    await until(lambda: len(crew["core 1"].batches) == 3)
    assert crew["core 1"].batches[1:] == [[14], [20]], "a core does not wait for the others"
    for engine in crew.values():
        engine.go.set()
    results = await asyncio.gather(lone, *crowd, late)
    assert [result["y"][0, 0] for result in results] == [2, 20, 22, 24, 26, 28, 40]
    await until(lambda: not any(batcher.busy.values()))
    assert (await batcher.submit(row(3)))["y"].tolist() == [[6]]
    assert crew["all"].batches == [[1], [3]], "when all are idle, a lone request gets all cores again"
    await batcher.close(60)


async def test_less_than_a_row_for_each_core_gets_all_cores() -> None:
    batcher, crew = crew_of(3)
    crew["all"].go.set()
    await batcher.submit(row(1, 2))
    assert crew["all"].batches == [[1, 2]]
    enough = await submitted(batcher, 1, 2, 3)
    await until(lambda: computing(crew) == {"core 0", "core 1", "core 2"})
    assert on_cores(crew) == [[1], [2], [3]]
    for engine in crew.values():
        engine.go.set()
    assert (await enough)["y"][:, 0].tolist() == [2, 4, 6]
    await batcher.close(60)


async def test_when_the_engine_with_all_cores_has_died_the_others_take_what_comes() -> None:
    batcher, crew = crew_of(2)
    for engine in crew.values():
        engine.go.set()
    with pytest.raises(EngineFailure):
        await batcher.submit(row(DEADLY))
    await until(lambda: batcher.missing == 1)
    assert (await batcher.submit(row(1)))["y"].tolist() == [[2]]
    assert on_cores(crew) == [[1]]
    await batcher.close(60)


async def test_when_the_engines_on_one_core_have_died_the_one_with_all_cores_takes_what_comes() -> None:
    batcher, crew = crew_of(2)
    for engine in crew.values():
        engine.go.set()
    for dead, fatal in enumerate([(DEADLY, 1), (DEADLY,)], start=1):  # one row is enough for the last core
        with pytest.raises(EngineFailure):
            await batcher.submit(row(*fatal))
        await until(lambda dead=dead: batcher.missing == dead)  # type: ignore[misc]
        await until(lambda: not any(batcher.busy.values()))
    assert (await batcher.submit(row(*range(6))))["y"][:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert crew["all"].batches == [[0, 1, 2, 3], [4, 5]]
    await batcher.close(60)


async def test_what_waits_when_an_engine_dies_is_taken_by_the_other_kind() -> None:
    batcher, crew = crew_of(2)
    fatal = await submitted(batcher, DEADLY)
    await until(lambda: computing(crew) == {"all"})
    waiting = await submitted(batcher, 1)
    for engine in crew.values():
        engine.go.set()
    with pytest.raises(EngineFailure):
        await fatal
    assert (await waiting)["y"].tolist() == [[2]]
    await batcher.close(60)


async def test_an_overdue_engine_leaves_the_work_to_the_other_kind_and_is_replaced() -> None:
    batcher, crew = crew_of(2, engine_timeout=0.05)
    stuck = await submitted(batcher, 1)
    await until(lambda: computing(crew) == {"all"})
    waiting = await submitted(batcher, 2)
    crew["core 0"].go.set()
    crew["core 1"].go.set()
    await until(lambda: batcher.missing == 1)
    crew["all"].computing = False  # what is overdue is not waited for
    assert await asyncio.to_thread(batcher.give_up) == [0]
    with pytest.raises(DeadlineExceeded):
        await stuck
    assert (await waiting)["y"].tolist() == [[4]]
    assert batcher.engines == 2
    crew["all"] = Engine(crew, "all")
    crew["all"].go.set()
    batcher.start(crew["all"], crew["all"].stop, place=0)
    assert batcher.engines == 3
    await until(lambda: not any(batcher.busy.values()))
    assert (await batcher.submit(row(5)))["y"].tolist() == [[10]]
    assert crew["all"].batches == [[5]]
    await batcher.close(60)


@pytest.mark.parametrize("rows", [1, 2, 9])
async def test_closing_finishes_what_was_accepted(rows: int) -> None:
    batcher, crew = crew_of(2, name="closed")
    first = await submitted(batcher, -1)
    await until(lambda: computing(crew) == {"all"})
    waiting = await submitted(batcher, *range(rows))
    for engine in crew.values():
        engine.go.set()
    await batcher.close(60)
    assert (await waiting)["y"][:, 0].tolist() == [2 * n for n in range(rows)]
    await first
    assert not threads("closed")


async def test_work_that_is_cancelled_while_closing_ends_the_idle_engines_too() -> None:
    batcher, crew = crew_of(2, name="closed")
    first = await submitted(batcher, -1)
    await until(lambda: computing(crew) == {"all"})
    waiting = await submitted(batcher, 1)
    closing = asyncio.create_task(batcher.close(60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    crew["all"].go.set()
    await first
    await closing
    assert not threads("closed")


@asynccontextmanager
async def loaded(root: Path, name: str = NAME, **options: Any) -> AsyncIterator[ServedModel]:
    """A model with ONNX Runtime on two threads, as the server loads it."""
    settings = Settings(repository=root, provider="cpu", threads=2, **options)
    (file,) = find_models(root)[name]
    model = engine_factory(settings, Metrics().observe)(file)
    try:
        yield model
    finally:
        await model.queue.close(60)


def packed(structures: Array) -> Rows:
    return {"structure": np.packbits(structures.reshape(len(structures), -1), axis=1)}


async def test_the_first_crowd_brings_an_engine_to_each_core(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    async with loaded(small_repository) as model:
        for _ in range(3):
            alone = await model.queue.submit(packed(structures[:1]))
            np.testing.assert_allclose(alone["spectra"], expected(structures[:1]), atol=1e-6)
        assert (model.queue.engines, model.ready) == (1, True)
        for _ in range(3):
            results = await asyncio.gather(*(model.queue.submit(packed(structures[n:])) for n in range(5)))
            for n, result in enumerate(results):
                np.testing.assert_allclose(result["spectra"], expected(structures[n:]), atol=1e-6)
            await until(lambda: model.queue.engines == 3)
        await until(lambda: model.statistics.counts().inferences == 3 + 3 * 15)
        counts = model.statistics.counts()
        assert max(counts.batches) <= 4
        assert 2 in counts.batches, "the micro-batches of one core"
        assert (model.wanted, model.ready, list(model.queue.busy)) == (1, True, ["0", "1", "2"])


async def test_gradients_of_many_callers(
    small_repository: Path, structures: Array, expected_gradient: ExpectedGradient
) -> None:
    cotangents = np.random.default_rng(3).normal(size=(40, 5, 4, 301)).astype(np.float32)
    async with loaded(small_repository, f"{NAME}_vjp") as model:
        while model.queue.engines < 3:
            results = await asyncio.gather(
                *(model.queue.submit({**packed(structures), "cotangent": cotangent}) for cotangent in cotangents)
            )
            for cotangent, result in zip(cotangents, results, strict=True):
                np.testing.assert_allclose(
                    result["gradient"][:, 0], expected_gradient(structures, cotangent), atol=1e-6
                )


async def test_hung_engines_of_both_kinds_are_replaced_and_what_waits_is_computed(
    tmp_path: Path, structures: Array, expected: Expected
) -> None:
    hanging = np.zeros((1, 128, 128), np.uint8)
    hanging[0, 40, 50] = 1
    async with loaded(write_repository(tmp_path, hanging_model()), engine_timeout=0.5, max_batch=1) as model:
        queue = model.queue
        await queue.submit(packed(structures))
        await until(lambda: queue.engines == 3)

        stuck = asyncio.create_task(queue.submit(packed(hanging)))
        await until(lambda: queue.busy["0"] > 0)
        waiting = [asyncio.create_task(queue.submit(packed(structures))) for _ in range(3)]
        await until(lambda: queue.missing == 1)
        assert await asyncio.to_thread(model.revive) == 1
        with pytest.raises(DeadlineExceeded):
            await stuck
        for result in await asyncio.gather(*waiting):
            np.testing.assert_allclose(result["spectra"], expected(structures), atol=1e-6)
        await until(lambda: (queue.engines, queue.missing) == (3, 0))

        await until(lambda: not any(queue.busy.values()))
        stuck = asyncio.create_task(queue.submit(packed(np.concatenate([hanging, structures]))))
        await until(lambda: max(queue.busy["1"], queue.busy["2"]) > 0.5)
        assert (queue.engines, queue.missing, model.ready) == (2, 1, True)
        result = await queue.submit(packed(structures))
        np.testing.assert_allclose(result["spectra"], expected(structures), atol=1e-6)
        assert await asyncio.to_thread(model.revive) == 1
        with pytest.raises(DeadlineExceeded):
            await stuck
        await until(lambda: (queue.engines, queue.missing, queue.abandoned) == (3, 0, 0))
        for _ in range(5):
            result = await queue.submit(packed(structures))
            np.testing.assert_allclose(result["spectra"], expected(structures), atol=1e-6)


@pytest.mark.parametrize("gone", [True, False])
async def test_a_file_that_has_changed_brings_no_further_engines(
    tmp_path: Path, structures: Array, expected: Expected, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_repository(tmp_path / "repository", small_model())
    async with loaded(root) as model:
        model.file.path.unlink()
        if not gone:
            other = write_repository(tmp_path / "other", small_model(seed=1))
            (other / NAME / "1" / "model.onnx").rename(model.file.path)
        for _ in range(20):
            result = await model.queue.submit(packed(structures))
            np.testing.assert_allclose(result["spectra"], expected(structures), atol=1e-6)
        await until(lambda: f"{NAME} version 1 stays on one engine with all cores" in caplog.text)
        assert (model.queue.engines, model.ready) == (1, True)
    assert gone or "is another file than the one that is served" in caplog.text


@pytest.mark.parametrize("options", [{"instances": 1}, {"instances": 2}])
async def test_a_given_number_of_engines_stays(small_repository: Path, structures: Array, options: Any) -> None:
    async with loaded(small_repository, **options) as model:
        for _ in range(20):
            await model.queue.submit(packed(structures))
        assert model.queue.engines == model.wanted == options["instances"]
