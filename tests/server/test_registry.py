"""Versions of a model, and its forward and gradient model, are of one device: what contradicts what is served is refused."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest

from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.process import Process
from metaspec_server.core.errors import UnknownModel
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import ServedModel
from metaspec_server.engines.factory import engine_factory
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model, write_repository

FORWARD, GRADIENT = DEFAULT_MODEL, gradient_model(DEFAULT_MODEL)
OTHER: dict[str, Any] = METADATA | {"process": Process(period_um=1.6).model_dump(mode="json")}
"""Metadata of the small model of another device."""

Served = dict[str, dict[int, float]]


@asynccontextmanager
async def registry(root: Path, keep: int = 2, loaded: list[int] | None = None) -> AsyncIterator[Registry]:
    """The registry of a repository, refreshed once, with engines of ONNX Runtime. Versions that it loads are listed."""
    options: dict[str, Any] = {"threads": 1, "max_batch": 4}
    engine = engine_factory(Settings(**options), lambda name: lambda batch: None)

    def load(file: ModelFile) -> ServedModel:
        if loaded is not None:
            loaded.append(file.version)
        return engine(file)

    registry = Registry(root, keep, load)
    await registry.refresh()
    yield registry
    await registry.close(60)


def served(registry: Registry) -> Served:
    """Period of the device of each served version."""
    periods: Served = {}
    for model in registry.served():
        periods.setdefault(model.name, {})[model.version] = model.about.metadata.process.period_um
    return periods


def refused(registry: Registry) -> dict[tuple[str, int], str]:
    """What each refused version contradicts."""
    return {
        (name, version): reason.partition(f"{name} version {version} and ")[2].partition(", ")[0]
        for name, version, reason in registry.failures()
    }


def replace(root: Path, model: onnx.ModelProto, name: str, version: int) -> None:
    """Put another file in the place of that of a version."""
    place = root / name / str(version)
    onnx.save(model, place / "whole.onnx")
    os.replace(place / "whole.onnx", place / "model.onnx")


@pytest.mark.parametrize("keep", [1, 2])
async def test_a_new_version_of_another_device(tmp_path: Path, keep: int) -> None:
    write_repository(tmp_path, small_model(), 1)
    async with registry(tmp_path, keep) as models:
        write_repository(tmp_path, small_model(OTHER), 2)
        await models.refresh()
        assert served(models) == {FORWARD: {1: 2.0}}
        assert refused(models) == {(FORWARD, 2): "version 1"}
        write_repository(tmp_path, small_model(seed=3), 3)
        await models.refresh()
        assert served(models) == {FORWARD: {3: 2.0, 1: 2.0} if keep == 2 else {3: 2.0}}
        for version in (1, 3):  # what is not on disk any more does not count
            shutil.rmtree(tmp_path / FORWARD / str(version))
        await models.refresh()
        assert served(models) == {FORWARD: {2: 1.6}}
        assert not models.failures()


async def test_a_refused_version_is_unloaded_and_not_loaded_again(tmp_path: Path) -> None:
    write_repository(tmp_path, small_model(), 1)
    loaded: list[int] = []
    async with registry(tmp_path, loaded=loaded) as models:
        write_repository(tmp_path, small_model(OTHER), 2)
        for _ in range(3):
            await models.refresh()
        assert loaded == [1, 2]
        with pytest.raises(UnknownModel):
            models.find(FORWARD, "2")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(FORWARD)]


@pytest.mark.parametrize(
    ("periods", "keep", "serves"),
    [
        ((2.0, 1.6), 2, {1: 2.0}),
        ((2.0, 1.6, 1.6), 2, {3: 1.6, 2: 1.6}),  # the oldest is not loaded
        ((2.0, 1.6, 1.6), 3, {1: 2.0}),
        ((1.6, 1.6, 2.0), 2, {2: 1.6, 1: 1.6}),
        ((2.0, 1.6), 1, {2: 1.6}),
    ],
)
async def test_of_versions_that_are_loaded_together_the_older_is_right(
    tmp_path: Path, periods: tuple[float, ...], keep: int, serves: dict[int, float]
) -> None:
    for version, period in enumerate(periods, 1):
        write_repository(tmp_path, small_model(METADATA if period == 2.0 else OTHER), version)
    async with registry(tmp_path, keep) as models:
        assert served(models) == {FORWARD: serves}
        await models.refresh()
        assert served(models) == {FORWARD: serves}


async def test_a_replaced_file_is_compared_with_the_other_versions_only(tmp_path: Path) -> None:
    write_repository(tmp_path, small_model(), 1)
    async with registry(tmp_path) as models:
        replace(tmp_path, small_model(OTHER), FORWARD, 1)
        await models.refresh()
        assert served(models) == {FORWARD: {1: 1.6}}
        write_repository(tmp_path, small_model(OTHER), 2)
        await models.refresh()
        for version in (1, 2):
            replace(tmp_path, small_model(), FORWARD, version)
            await models.refresh()
            assert served(models) == {FORWARD: {2: 1.6, 1: 1.6}}, "what is loaded stays"
            assert (FORWARD, version) in refused(models)
            replace(tmp_path, small_model(OTHER), FORWARD, version)
            await models.refresh()
            assert not models.failures()


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (small_model, small_gradient_model, (FORWARD, GRADIENT)),
        (small_gradient_model, small_model, (GRADIENT, FORWARD)),
    ],
)
async def test_a_gradient_model_and_its_forward_model_are_of_one_device(
    tmp_path: Path,
    first: Callable[..., onnx.ModelProto],
    second: Callable[..., onnx.ModelProto],
    names: tuple[str, str],
) -> None:
    write_repository(tmp_path, first(), 1)
    async with registry(tmp_path) as models:
        write_repository(tmp_path, second(OTHER), 1)
        await models.refresh()
        assert served(models) == {names[0]: {1: 2.0}}
        assert refused(models) == {(names[1], 1): f"{names[0]} version 1"}
        kind = "forward" if names[0] == FORWARD else "gradient"
        assert f", its {kind} model, are of different processes: period_um 1.6 against 2.0" in models.failures()[0][2]
        shutil.rmtree(tmp_path / names[0])
        await models.refresh()
        assert served(models) == {names[1]: {1: 1.6}}


async def test_a_device_is_changed_by_replacing_both_models(tmp_path: Path) -> None:
    """At once, or one after the other with a refresh between them."""
    write_repository(tmp_path, small_model(), 1)
    write_repository(tmp_path, small_gradient_model(), 1)
    async with registry(tmp_path) as models:
        replace(tmp_path, small_model(OTHER), FORWARD, 1)
        replace(tmp_path, small_gradient_model(OTHER), GRADIENT, 1)
        await models.refresh()
        assert served(models) == {FORWARD: {1: 1.6}, GRADIENT: {1: 1.6}}
        replace(tmp_path, small_model(), FORWARD, 1)
        await models.refresh()
        assert served(models) == {FORWARD: {1: 1.6}, GRADIENT: {1: 1.6}}
        replace(tmp_path, small_gradient_model(), GRADIENT, 1)
        await models.refresh()
        assert served(models) == {FORWARD: {1: 2.0}, GRADIENT: {1: 2.0}}


async def test_loaded_together_the_gradient_model_is_refused(tmp_path: Path) -> None:
    write_repository(tmp_path, small_model(), 1)
    write_repository(tmp_path, small_gradient_model(OTHER), 1)
    async with registry(tmp_path) as models:
        assert served(models) == {FORWARD: {1: 2.0}}
        assert refused(models) == {(GRADIENT, 1): f"{FORWARD} version 1"}
