"""Statistics of a model as Triton counts them, and the level of the log, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.cache import computing_repeats_once
from metaspec_server.core.service import Service
from metaspec_server.core.statistics import BatchTimes, Duration, Statistics
from metaspec_server.engines.factory import engine_factory
from metaspec_server.ops.metrics import Metrics
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected

NAME = "diffractionnet"
PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
STATISTICS = f"/v2/models/{NAME}/versions/1/stats"


@pytest.fixture(scope="module")
def running(small_repository: Path) -> Iterator[RunningServer]:
    flags = ("--repository", str(small_repository), "--grpc-port", "0", "--max-batch", "4", "--instances", "1")
    with running_server(*flags) as server:
        yield server


@pytest.fixture(scope="module")
def over_grpc(running: RunningServer) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(running.grpc_address) as client:
        yield client


@pytest.fixture
def over_http(running: RunningServer) -> Iterator[tritonclient.http.InferenceServerClient]:
    with tritonclient.http.InferenceServerClient(running.address) as client:
        yield client


def statistics(running: RunningServer, executions: int) -> dict[str, Any]:
    """Statistics of the model, once it has run so many micro-batches: the last is counted after its answer is sent."""
    deadline = time.monotonic() + 60
    while True:
        (found,) = running.get(STATISTICS).raise_for_status().json()["model_stats"]
        assert time.monotonic() < deadline
        if found["execution_count"] >= executions:
            return dict(found)
        time.sleep(0.01)


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """How much each duration of requests has grown: count and nanoseconds."""
    old, new = before["inference_stats"], after["inference_stats"]
    return {name: (new[name]["count"] - old[name]["count"], new[name]["ns"] - old[name]["ns"]) for name in new}


def test_what_a_batch_adds_for_each_of_its_requests() -> None:
    counted, seen = Statistics(), list[MicroBatch]()
    observe = counted.beside(seen.append)
    batch = MicroBatch(7, [0.5, 0.25], 1.0, False, requests=3, input_seconds=0.125, output_seconds=0.25, repeats=2)
    for one in (batch, MicroBatch(5, [], 9.0, True)):
        observe(one)
    assert len(seen) == 2
    counts = counted.counts()
    assert (counts.executions, counts.inferences) == (1, 5), "one has failed; two structures were equal to others"
    assert counts.requests.queue == Duration(2, 750_000_000)
    assert counts.requests.compute_input == Duration(2, 375_000_000), (
        "three requests were in it, two for the first time"
    )
    assert counts.requests.compute_infer == Duration(2, 1_875_000_000)
    assert counts.requests.compute_output == Duration(2, 750_000_000)
    assert counts.batches == {
        5: BatchTimes(Duration(1, 125_000_000), Duration(1, 625_000_000), Duration(1, 250_000_000))
    }
    counts.requests.queue.add(1.0)
    assert counted.counts().requests.queue == Duration(2, 750_000_000), "a copy"


def test_requests_structures_batches_and_the_cache(running: RunningServer, expected: Expected) -> None:
    structures = np.random.default_rng(20).integers(0, 2, (6, 128, 128), np.uint8)

    def ask(chosen: Array) -> None:
        answer = running.post("/predict", content=np.packbits(chosen, axis=None).tobytes(), headers=PACKED)
        spectra = np.frombuffer(answer.raise_for_status().content, np.float32)
        np.testing.assert_allclose(spectra, expected(chosen).ravel(), atol=1e-6)

    before, started = statistics(running, 0), time.time()
    ask(structures)  # two micro-batches, of at most 4
    after = statistics(running, before["execution_count"] + 2)
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    assert started - 1 < after["last_inference"] / 1000 < time.time() + 1
    grown = growth(before, after)
    assert {name: count for name, (count, _) in grown.items()} == {
        "success": 1,
        "fail": 0,
        "queue": 1,
        "compute_input": 1,
        "compute_infer": 1,
        "compute_output": 1,
        "cache_hit": 0,
        "cache_miss": 1,
    }
    parts = ("queue", "compute_input", "compute_infer", "compute_output", "cache_miss")
    assert all(grown[name][1] > 0 for name in parts)
    assert grown["success"][1] > grown["compute_input"][1] + grown["compute_infer"][1] > 0
    sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in after["batch_stats"]}
    old_sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in before["batch_stats"]}
    assert {size: count - old_sizes.get(size, 0) for size, count in sizes.items()} == {4: 1, 2: 1}

    ask(structures[:3])  # all of them in the cache
    hit = statistics(running, 0)
    grown = growth(after, hit)
    assert {name for name, (count, _) in grown.items() if count} == {"success", "queue", "cache_hit"}
    assert grown["queue"] == (1, 0), "counted as Triton does, without a wait"
    assert (hit["inference_count"], hit["execution_count"]) == (after["inference_count"], after["execution_count"])

    answer = running.post(
        f"/v2/models/{NAME}/infer",
        json={
            "parameters": {"timeout": 1},
            "inputs": [{"name": "structure", "datatype": "UINT8", "shape": [1, 2048], "data": [1] * 2048}],
        },
    )
    assert answer.status_code == 504
    failed = growth(hit, statistics(running, 0))
    assert (failed["success"][0], failed["fail"][0]) == (0, 1)


ALL_COUNTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


@pytest.mark.parametrize(
    ("asked", "batches", "from_cache"),
    [
        ([0] * 10, {1: 1}, False),
        ([0, 1, 0, 2, 2, 1, 0], {2: 1}, False),  # 0 is in the cache by now
        ([2, 0, 1, 0], {}, True),
        ([3, 4, 5, 6, 7, 3, 4, 5, 6, 7], {4: 1, 1: 1}, False),
    ],
)
def test_equal_structures_count_once(
    running: RunningServer, expected: Expected, asked: list[int], batches: dict[int, int], from_cache: bool
) -> None:
    """`inference_count` has what the model computed, and is the sum over the micro-batches."""
    chosen = np.random.default_rng(21).integers(0, 2, (8, 128, 128), np.uint8)[asked]
    before, (hits, misses) = statistics(running, 0), looked_up(running)
    answer = running.post("/predict", content=np.packbits(chosen, axis=None).tobytes(), headers=PACKED)
    spectra = np.frombuffer(answer.raise_for_status().content, np.float32)
    np.testing.assert_allclose(spectra, expected(chosen).ravel(), atol=1e-6)
    executions, computed = sum(batches.values()), sum(size * count for size, count in batches.items())
    after = statistics(running, before["execution_count"] + executions)
    assert after["execution_count"] - before["execution_count"] == executions
    assert after["inference_count"] - before["inference_count"] == computed
    grown = {name: count for name, (count, _) in growth(before, after).items()}
    unchanged = (
        ("fail", "cache_miss", "compute_input", "compute_infer", "compute_output")
        if from_cache
        else ("fail", "cache_hit")
    )
    assert grown == {name: int(name not in unchanged) for name in ALL_COUNTS}
    sizes = [
        {one["batch_size"]: one["compute_infer"]["count"] for one in some["batch_stats"]} for some in (before, after)
    ]
    assert {size: count - sizes[0].get(size, 0) for size, count in sizes[1].items()} == dict.fromkeys(
        sizes[1], 0
    ) | batches
    assert after["inference_count"] == sum(size * count for size, count in sizes[1].items())
    assert looked_up(running) == (hits + len(asked) - computed, misses + computed)


def looked_up(running: RunningServer) -> tuple[float, float]:
    """Structures that were answered from the cache, and those that were not in it, by the metrics."""
    text = running.get("/metrics").text
    hits, misses = (
        float(line.rsplit(" ", 1)[1])
        for name in ("hits", "misses")
        for line in text.splitlines()
        if line.startswith(f'metaspec_cache_{name}_total{{model="{NAME}"}}')
    )
    return hits, misses


def test_densities_are_not_looked_up_and_count_each(running: RunningServer, expected: Expected) -> None:
    densities = np.repeat(np.random.default_rng(22).random((1, 128, 128), np.float32), 3, axis=0)
    before, cache = statistics(running, 0), looked_up(running)
    answer = running.post("/predict", json={"structures": densities.tolist()}).raise_for_status()
    np.testing.assert_allclose(answer.json()["spectra"], expected(densities), atol=1e-5)
    after = statistics(running, before["execution_count"] + 1)
    assert after["inference_count"] - before["inference_count"] == 3
    assert looked_up(running) == cache


async def test_equal_structures_of_two_requests_in_a_micro_batch_count_once() -> None:
    counted, batches = Statistics(), list[MicroBatch]()
    batcher = MicroBatcher(max_batch=8, max_queue=100, observe=counted.beside(batches.append))
    asked = ([1, 2], [2, 3, 1])
    tasks = [
        asyncio.create_task(batcher.submit({"x": np.array(some)[:, None]}, keys=[b"%d" % value for value in some]))
        for some in asked
    ]
    await asyncio.sleep(0)
    batcher.start(computing_repeats_once(lambda pieces: {"y": np.concatenate([piece["x"] for piece in pieces])}))
    results = await asyncio.gather(*tasks)
    await batcher.close(60)  # then the last micro-batch has been counted
    assert [result["y"][:, 0].tolist() for result in results] == list(asked)
    assert [(batch.rows, batch.computed, batch.requests) for batch in batches] == [(5, 3, 2)]
    counts = counted.counts()
    assert (counts.inferences, counts.executions, list(counts.batches)) == (3, 1, [3])


async def test_a_model_that_is_loaded_on_its_first_request_counts_from_it_on(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    options: dict[str, Any] = {"repository": small_repository, "lazy": True, "max_batch": 8}
    settings, metrics = Settings(**options), Metrics()
    service = await Service.start(settings, engine_factory(settings, metrics.observe), metrics)
    try:
        with service.registry.lease(NAME) as model:
            packed = np.packbits(structures.reshape(len(structures), -1), axis=1)
            results = await service.infer(model, {"structure": packed})
            np.testing.assert_allclose(results["spectra"], expected(structures), atol=1e-6)
            async with asyncio.timeout(60):
                while not (counts := model.statistics.counts()).executions:
                    await asyncio.sleep(0.01)
    finally:
        await service.close()
    assert (counts.inferences, counts.requests.success.count, list(counts.batches)) == (5, 1, [5])


def test_the_stock_clients_read_them(
    running: RunningServer,
    over_http: tritonclient.http.InferenceServerClient,
    over_grpc: tritonclient.grpc.InferenceServerClient,
) -> None:
    everything = over_http.get_inference_statistics()["model_stats"]
    assert [(one["name"], one["version"]) for one in everything] == [(NAME, "1"), (f"{NAME}_vjp", "1")]
    (one,) = over_http.get_inference_statistics(NAME)["model_stats"]
    (same,) = over_http.get_inference_statistics(NAME, "1")["model_stats"]
    assert one == same == everything[0]
    message = over_grpc.get_inference_statistics(NAME, "1")
    (sent,) = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)[
        "model_stats"
    ]
    for name in ("inference_count", "execution_count", "last_inference"):
        assert int(sent[name]) == one[name]
    for name, duration in one["inference_stats"].items():
        assert {field: int(value) for field, value in sent["inference_stats"][name].items()} == duration
    assert [int(entry["batch_size"]) for entry in sent["batch_stats"]] == [e["batch_size"] for e in one["batch_stats"]]
    assert len(over_grpc.get_inference_statistics().model_stats) == 2
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        over_http.get_inference_statistics("other")
    with pytest.raises(InferenceServerException, match="no version '9'"):
        over_grpc.get_inference_statistics(NAME, "9")


def logged(running: RunningServer, path: str) -> bool:
    """Whether a request for a path is logged: the log comes in order, so a line that surely comes ends the wait."""
    running.get(path)
    return any(path in line for line in wait_for(running, path))


def wait_for(running: RunningServer, path: str) -> list[str]:
    with tritonclient.http.InferenceServerClient(running.address) as client:
        client.update_log_settings({"log_info": True})
        marker = f"/{path.strip('/')}-after"
        running.get(marker)
    deadline = time.monotonic() + 60
    while not (found := [n for n, line in enumerate(running.log) if marker in line]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [line for line in running.log[: found[0]] if marker not in line]


def test_the_level_of_the_log_is_changed(
    running: RunningServer,
    over_http: tritonclient.http.InferenceServerClient,
    over_grpc: tritonclient.grpc.InferenceServerClient,
) -> None:
    def levels() -> list[Any]:
        names = ("log_error", "log_warning", "log_info", "log_verbose_level")
        settings = over_grpc.get_log_settings().settings
        sent = [getattr(settings[name], settings[name].WhichOneof("parameter_choice")) for name in names]
        assert sent == [over_http.get_log_settings()[name] for name in names]
        return sent

    assert levels() == [True, True, False, 0]
    assert not logged(running, "/quiet")
    assert levels() == [True, True, True, 0]
    assert logged(running, "/loud")
    over_grpc.update_log_settings({"log_verbose_level": 1})
    assert levels() == [True, True, True, 1]
    over_http.update_log_settings({"log_warning": False})
    assert levels() == [True, False, False, 0]
    assert not logged(running, "/silent")
    over_http.update_log_settings({"log_info": False, "log_warning": True})
    assert levels() == [True, True, False, 0]
    update: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (over_http.update_log_settings, {"log_error": False}, "errors are always logged"),
        (over_grpc.update_log_settings, {"log_error": False}, "errors are always logged"),
        (
            over_http.update_log_settings,
            {"log_info": True, "log_warning": False},
            "each level only with those before it",
        ),
        (over_http.update_log_settings, {"log_info": "true"}, "log_info must be true or false, got 'true'"),
        (
            over_grpc.update_log_settings,
            {"log_verbose_level": 3},
            "log_verbose_level must be 0, or 1 for the level debug",
        ),
        (over_http.update_log_settings, {"log_file": "/tmp/log"}, "log_file cannot be changed, got '/tmp/log'"),
        (
            over_http.update_log_settings,
            {"colour": True},
            "unknown log setting 'colour'; known are log_file, log_error",
        ),
    ]
    for method, settings, message in update:
        with pytest.raises(InferenceServerException, match=message):
            method(settings)
    assert levels() == [True, True, False, 0]


def test_traces_are_those_of_opentelemetry(
    over_http: tritonclient.http.InferenceServerClient, over_grpc: tritonclient.grpc.InferenceServerClient
) -> None:
    settings = over_http.get_trace_settings()
    assert (settings["trace_level"], settings["trace_mode"]) == (["OFF"], "opentelemetry")
    assert over_http.get_trace_settings(NAME) == settings
    assert list(over_grpc.get_trace_settings(NAME).settings["trace_level"].value) == ["OFF"]
    assert over_http.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": None}) == settings
    for client in (over_http, over_grpc):
        with pytest.raises(InferenceServerException, match="trace_level cannot be changed while the server runs"):
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.get_trace_settings("other")
    with pytest.raises(InferenceServerException, match="unknown trace setting 'colour'"):
        over_http.update_trace_settings(settings={"colour": "red"})
