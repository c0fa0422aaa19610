"""Conditions behind the routes: engines, micro-batches that mix values, the cache, and versions that add conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.cache import computing_repeats_once, keys
from metaspec_server.core.errors import DeadlineExceeded
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import Load
from metaspec_server.core.tensors import Rows
from metaspec_server.engines.factory import engine_factory
from metaspec_server.engines.onnx import OnnxEngine
from metaspec_server.repository import find_models
from metaspec_server.settings import Settings
from metaspec_testing.conditioned_models import CONDITIONS, conditioned_gradient_model, conditioned_model
from metaspec_testing.direct import Direct
from metaspec_testing.small_models import Array, small_gradient_model, small_model, write_repository

FORWARD, GRADIENT = DEFAULT_MODEL, gradient_model(DEFAULT_MODEL)


def engine(repository: Path, name: str = FORWARD, **options: Any) -> OnnxEngine:
    (file,) = find_models(repository)[name]
    return OnnxEngine(file, **options)


def drawn(count: int, seed: int) -> tuple[Array, Rows]:
    """Structures, and the inputs of the forward model with packed ones, a distance and an incidence for each."""
    generator = np.random.default_rng(seed)
    structures = generator.integers(0, 2, (count, 128, 128), np.uint8)
    distance = generator.uniform(1, 3, (count, 1)).astype(np.float32)
    incidence = generator.uniform(-20, 20, (count, 2)).astype(np.float32)
    bits = np.packbits(structures.reshape(count, -1), axis=1)
    return structures, {"structure": bits, "distance_um": distance, "incidence": incidence}


def some(rows: Rows, start: int, stop: int) -> Rows:
    return {name: array[start:stop] for name, array in rows.items()}


def single(values: Any) -> Array:
    return np.array(values, np.float32)


def load_with(**options: Any) -> Load:
    return engine_factory(Settings(**options), lambda name: lambda batch: None)


@pytest.mark.parametrize("bound", [False, True])
def test_pieces_with_other_values_come_back_row_for_row(with_conditions: Path, direct: Direct, bound: bool) -> None:
    """As they are on a CPU, or as on a GPU, in tensors of a few sizes, which are longer than what is computed."""
    model = engine(with_conditions, GRADIENT, max_batch=8)
    if bound:
        model._bind("cpu", 0, cuda_graphs=False)
    for size in (5, 8, 1):
        structures, rows = drawn(size, size)
        cotangent = np.random.default_rng(size).standard_normal((size, 4, 301), np.float32)
        whole = rows | {"cotangent": cotangent}
        pieces = [some(whole, n, n + 2) for n in range(0, size, 2)]
        found = model.run(pieces)
        given = {condition.name: rows[condition.name] for condition in CONDITIONS}
        for name, array in direct.gradients(structures, cotangent, **given).items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_small_values_of_conditions_are_not_taken_for_zero(with_conditions: Path) -> None:
    """A structure or cotangent of 1e-25 is negligible; what is negligible in a condition depends on its unit."""
    model, (_, rows) = engine(with_conditions), drawn(1, 1)
    model.run([rows | {"incidence": single([[1e-25, -1e-25]])}])
    np.testing.assert_array_equal(model._buffers["incidence"][0], single([1e-25, -1e-25]))


async def test_one_micro_batch_holds_rows_of_all_callers(with_conditions: Path, direct: Direct) -> None:
    """Of equal structures with equal values, one is computed; with other values, each."""
    model = engine(with_conditions, max_batch=8)
    records: list[MicroBatch] = []
    batcher = MicroBatcher(8, 100, observe=records.append)
    structures, rows = drawn(6, 2)
    rows["structure"][:], structures[:] = rows["structure"][0], structures[0]
    for name in ("distance_um", "incidence"):
        rows[name][5] = rows[name][4]
    parts = [some(rows, 0, 1), some(rows, 1, 4), some(rows, 4, 5), some(rows, 5, 6)]
    asked = [asyncio.create_task(batcher.submit(part, keys=keys(part))) for part in parts]
    await asyncio.sleep(0)  # they wait for an engine
    batcher.start(computing_repeats_once(model.run))
    answers = await asyncio.gather(*asked)
    await batcher.close(60)
    found = np.concatenate([answer["spectra"] for answer in answers])
    given = {condition.name: rows[condition.name] for condition in CONDITIONS}
    np.testing.assert_allclose(found, direct.spectra(structures, **given), atol=1e-6)
    assert [(record.rows, record.requests, record.repeats) for record in records] == [(6, 4, 1)]


async def test_deadlines_and_priorities_of_rows_with_conditions(with_conditions: Path, direct: Direct) -> None:
    """Of equal structures, each at its own values: late ones are never computed, interactive ones go ahead."""
    model, computed = engine(with_conditions, max_batch=2), list[float]()

    def run(pieces: Sequence[Rows]) -> Rows:
        computed.extend(value for piece in pieces for value in piece["distance_um"][:, 0].tolist())
        return model.run(pieces)

    batcher = MicroBatcher(2, 100)
    structures, rows = drawn(4, 5)
    rows["structure"][:], structures[:] = rows["structure"][0], structures[0]
    late = asyncio.create_task(batcher.submit(some(rows, 0, 1), timeout=0.01))
    bulk = asyncio.create_task(batcher.submit(some(rows, 1, 3)))
    await asyncio.sleep(0)
    interactive = asyncio.create_task(batcher.submit(some(rows, 3, 4), priority=1))
    with pytest.raises(DeadlineExceeded):
        await late
    batcher.start(computing_repeats_once(run))
    answers = await asyncio.gather(bulk, interactive)
    await batcher.close(60)
    assert computed == rows["distance_um"][[3, 1, 2], 0].tolist()
    given = {condition.name: rows[condition.name][1:] for condition in CONDITIONS}
    found = np.concatenate([answer["spectra"] for answer in answers])
    np.testing.assert_allclose(found, direct.spectra(structures[1:], **given), atol=1e-6)


async def test_a_model_that_is_loaded_on_its_first_request(with_conditions: Path, direct: Direct) -> None:
    load = load_with(lazy=True, threads=1)
    (file,) = find_models(with_conditions)[FORWARD]
    model = load(file)
    assert model.about.metadata.conditions == CONDITIONS
    structures, rows = drawn(3, 3)
    found = await model.queue.submit(rows)
    await model.queue.close(60)
    given = {condition.name: rows[condition.name] for condition in CONDITIONS}
    np.testing.assert_allclose(found["spectra"], direct.spectra(structures, **given), atol=1e-6)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("together", [True, False])
async def test_a_new_version_that_takes_conditions(tmp_path: Path, keep: int, together: bool) -> None:
    """The gradient model is published first, as it may take more; a server that finds both at once serves both, too."""
    write_repository(tmp_path, small_model())
    write_repository(tmp_path, small_gradient_model())
    load = load_with(threads=1, max_batch=4)
    registry = Registry(tmp_path, keep, load)
    await registry.refresh()
    write_repository(tmp_path, conditioned_gradient_model(), 2)
    if not together:
        await registry.refresh()
    write_repository(tmp_path, conditioned_model(), 2)
    await registry.refresh()
    await registry.refresh()
    try:
        assert {(model.name, model.version) for model in registry.newest()} == {(FORWARD, 2), (GRADIENT, 2)}
        assert not registry.failures()
    finally:
        await registry.close(60)


async def test_a_forward_model_with_more_conditions_than_its_gradient_model(tmp_path: Path) -> None:
    write_repository(tmp_path, small_gradient_model())
    write_repository(tmp_path, small_model())
    registry = Registry(tmp_path, 2, load_with(threads=1))
    await registry.refresh()
    write_repository(tmp_path, conditioned_model(), 2)
    for _ in range(2):
        await registry.refresh()
        assert [model.version for model in registry.newest()] == [1, 1]
        ((name, version, reason),) = registry.failures()
        assert (name, version) == (FORWARD, 2)
        assert "takes distance_um between 1 and 3 um, default 2.5" in reason
        assert "takes no distance_um" in reason
    await registry.close(60)
