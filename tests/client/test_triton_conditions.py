"""Models with conditions, as `metaspec-export` configures them, on a bare Triton, which requires all inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import AsyncSurrogate, InvalidCondition, ServerBusy, Surrogate
from metaspec_contract.model import parse_metadata
from metaspec_export.triton_config import config_pbtxt
from metaspec_testing.conditioned_models import CONDITIONS, conditioned_gradient_model, conditioned_model
from metaspec_testing.direct import Direct, conditioned_repository
from metaspec_testing.small_models import Array, Expected, small_model, write_repository
from metaspec_testing.triton import Triton, python_repository, start_triton

pytestmark = pytest.mark.triton

ROWS = 23  # in requests of 5


def configure(root: Path, *models: Any) -> None:
    """Write the configurations of models as an export does."""
    for model in models:
        metadata = parse_metadata({entry.key: entry.value for entry in model.metadata_props})
        (root / metadata.name / "config.pbtxt").write_text(config_pbtxt(metadata, "fp32"))


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """The model with its gradient, a slow one with a short queue, and one whose gradient model takes more than it does."""
    root = conditioned_repository(tmp_path_factory.mktemp("source"))
    configure(root, conditioned_model(), conditioned_gradient_model())
    busy = root / "busy"
    shutil.copytree(root / "diffractionnet", busy)
    config = (busy / "config.pbtxt").read_text().replace('name: "diffractionnet"', 'name: "busy"')
    batching = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\ninstance_group"
    start, _, rest = config.partition("dynamic_batching")
    single = start.replace("max_batch_size: 256", "max_batch_size: 1") + batching + rest.partition("instance_group")[2]
    (busy / "config.pbtxt").write_text(single.partition("model_warmup")[0])
    older = write_repository(tmp_path_factory.mktemp("older"), small_model())
    configure(older, small_model())
    for suffix, source in (("", older), ("_vjp", root)):
        shutil.copytree(source / f"diffractionnet{suffix}", root / f"older{suffix}")
        config = (root / f"older{suffix}" / "config.pbtxt").read_text()
        (root / f"older{suffix}" / "config.pbtxt").write_text(config.replace('name: "diffractionnet', 'name: "older'))
    repository = python_repository(root, tmp_path_factory.mktemp("triton") / "repository")
    model, head = repository / "busy" / "1" / "model.py", "def execute(self, requests):\n"
    model.write_text(model.read_text().replace(head, f"{head}        __import__('time').sleep(0.2)\n"))
    with start_triton(repository, tmp_path_factory.mktemp("work")) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, triton: Triton) -> str:
    return f"{request.param}://{triton.http if request.param == 'http' else triton.grpc}"


def drawn(seed: int = 1) -> tuple[Array, dict[str, Array], Array]:
    """Structures, values of both conditions for each, and cotangents."""
    rng = np.random.default_rng(seed)
    conditions = {"distance_um": rng.uniform(1, 3, ROWS), "incidence": rng.uniform(-20, 20, (ROWS, 2))}
    return rng.integers(0, 2, (ROWS, 128, 128), np.uint8), conditions, rng.normal(size=(ROWS, 4, 301))


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_spectra_and_gradients(url: str, direct: Direct) -> None:
    structures, conditions, cotangent = drawn()
    expected = direct.gradients(structures, cotangent, **conditions)
    with Surrogate(url, batch_size=5) as surrogate:
        assert surrogate.metadata().conditions == CONDITIONS
        assert not surrogate.metadata().takes_bits
        close(surrogate.predict(structures, **conditions).values, direct.spectra(structures, **conditions))
        close(surrogate.predict(structures, distance_um=1.25).values, direct.spectra(structures, distance_um=1.25))
        close(surrogate.predict(structures).values, direct.spectra(structures))
        structure, by_condition = surrogate.gradients(structures, cotangent, **conditions)
        with pytest.raises(InvalidCondition, match="distance_um must lie between 1 and 3 um, got 4"):
            surrogate.predict(structures, distance_um=4)
    close(structure, expected["gradient"][:, 0])
    close(by_condition["distance_um"], expected["gradient_distance_um"][:, 0])
    close(by_condition["incidence"], expected["gradient_incidence"])


async def test_asyncio(url: str, direct: Direct) -> None:
    structures, conditions, cotangent = drawn(2)
    expected = direct.gradients(structures, cotangent, **conditions)
    async with AsyncSurrogate(url, batch_size=5) as surrogate:
        close((await surrogate.predict(structures, **conditions)).values, direct.spectra(structures, **conditions))
        structure, by_condition = await surrogate.gradients(structures, cotangent, **conditions)
    close(structure, expected["gradient"][:, 0])
    close(by_condition["distance_um"], expected["gradient_distance_um"][:, 0])


async def test_requests_sent_again_have_the_same_values(
    url: str, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model takes one structure at a time, and lets one more wait."""
    monkeypatch.setattr("metaspec._surrogate.base._LONGEST_PAUSE", 0.5)
    structures, conditions, _ = drawn(3)
    structures, conditions = structures[:6], {name: values[:6] for name, values in conditions.items()}
    settings: dict[str, Any] = {"model": "busy", "batch_size": 1, "concurrency": 6}
    with Surrogate(url, retries=0, **settings) as surrogate, pytest.raises(ServerBusy, match="maximum queue size"):
        surrogate.predict(structures, **conditions)
    with Surrogate(url, retries=100, **settings) as surrogate:
        close(surrogate.predict(structures, **conditions).values, direct.spectra(structures, **conditions))
    async with AsyncSurrogate(url, retries=100, **settings) as asynchronous:
        close((await asynchronous.predict(structures, **conditions)).values, direct.spectra(structures, **conditions))


def test_a_gradient_model_that_takes_more_gets_its_defaults(url: str, direct: Direct, expected: Expected) -> None:
    """A gradient model is published before its forward model."""
    structures, _, cotangent = drawn(4)
    with Surrogate(url, model="older", batch_size=5) as surrogate:
        close(surrogate.predict(structures).values, expected(structures))
        structure, by_condition = surrogate.gradients(structures, cotangent)
        with pytest.raises(InvalidCondition, match="which takes none"):
            surrogate.gradient(structures, cotangent, distance_um=2)
    close(structure, direct.gradients(structures, cotangent)["gradient"][:, 0])
    assert by_condition == {}
