"""Conditions through the client: values of each row, by our server over HTTP and gRPC, against ONNX Runtime alone."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import AsyncSurrogate, InvalidCondition, InvalidStructure, MetaSpecError, ServerError, Spectra, Surrogate
from metaspec_contract.structures import pack
from metaspec_testing.conditioned_models import CONDITIONED_METADATA, CONDITIONS
from metaspec_testing.direct import Direct
from metaspec_testing.scripted import METADATA, good, scripted
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected

DOCS = Path(__file__).parents[2] / "docs" / "client.md"
ROWS = 23  # in requests of 5


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, conditioned: RunningServer) -> str:
    return conditioned.url if request.param == "http" else f"grpc://{conditioned.grpc_address}"


@pytest.fixture
def surrogate(url: str) -> Iterator[Surrogate]:
    with Surrogate(url, batch_size=5, progress=False) as surrogate:
        yield surrogate


def drawn(count: int = ROWS, seed: int = 1) -> tuple[Array, dict[str, Array]]:
    """Structures, and values of both conditions for each."""
    rng = np.random.default_rng(seed)
    structures = rng.integers(0, 2, (count, 128, 128), np.uint8)
    return structures, {"distance_um": rng.uniform(1, 3, count), "incidence": rng.uniform(-20, 20, (count, 2))}


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_values_of_each_row(surrogate: Surrogate, direct: Direct) -> None:
    structures, conditions = drawn()
    close(surrogate.predict(structures, **conditions).values, direct.spectra(structures, **conditions))
    mixed: dict[str, Any] = {"distance_um": 1.25, "incidence": conditions["incidence"].tolist()}
    close(surrogate.predict(structures, **mixed).values, direct.spectra(structures, **mixed))
    for_all: dict[str, Any] = {"distance_um": conditions["distance_um"][:, None], "incidence": (5, -7)}
    close(surrogate.predict(structures, **for_all).values, direct.spectra(structures, **for_all))
    close(surrogate.predict(structures[0], distance_um=3).values, direct.spectra(structures[:1], distance_um=3))
    assert surrogate.predict(structures[:0], distance_um=[]).values.shape == (0, 4, 301)


def test_defaults(surrogate: Surrogate, direct: Direct) -> None:
    structures, _ = drawn()
    same: list[dict[str, Any]] = [{}, {"distance_um": None}, {"distance_um": 2.5, "incidence": (0, 0)}]
    for conditions in same:
        close(surrogate.predict(structures, **conditions).values, direct.spectra(structures))


def test_packed_and_grey_structures(surrogate: Surrogate, direct: Direct) -> None:
    structures, conditions = drawn()
    expected = direct.spectra(structures, **conditions)
    close(surrogate.predict(pack(structures), **conditions).values, expected)
    grey = structures * np.float32(0.5)
    close(surrogate.predict(grey, **conditions).values, direct.spectra(grey, **conditions))


def test_gradients(surrogate: Surrogate, direct: Direct) -> None:
    structures, conditions = drawn()
    cotangent = np.random.default_rng(2).normal(size=(ROWS, 4, 301))
    expected = direct.gradients(structures, cotangent, **conditions)
    structure, by_condition = surrogate.gradients(structures, cotangent, **conditions)
    close(structure, expected["gradient"][:, 0])
    assert {name: (array.shape, str(array.dtype)) for name, array in by_condition.items()} == {
        "distance_um": ((ROWS,), "float32"),
        "incidence": ((ROWS, 2), "float32"),
    }
    close(by_condition["distance_um"], expected["gradient_distance_um"][:, 0])
    close(by_condition["incidence"], expected["gradient_incidence"])
    np.testing.assert_array_equal(surrogate.gradient(structures, cotangent, **conditions), structure)


def test_several_cotangents_of_each_structure(surrogate: Surrogate, direct: Direct) -> None:
    structures, conditions = drawn(4)
    cotangent = np.random.default_rng(3).normal(size=(4, 3, 4, 301))
    repeated = {name: np.repeat(values, 3, axis=0) for name, values in conditions.items()}
    expected = direct.gradients(np.repeat(structures, 3, axis=0), cotangent.reshape(12, 4, 301), **repeated)
    structure, by_condition = surrogate.gradients(structures, cotangent, **conditions)
    close(structure, expected["gradient"].reshape(4, 3, 128, 128))
    close(by_condition["distance_um"], expected["gradient_distance_um"].reshape(4, 3))
    close(by_condition["incidence"], expected["gradient_incidence"].reshape(4, 3, 2))


def blue(spectra: Spectra) -> tuple[Array, Array]:
    """The mean square of channel B, and its derivative."""
    values = spectra.channel("B")
    cotangent = np.zeros_like(spectra.values)
    cotangent[:, 3] = 2 * values / values.shape[1]
    return (values**2).mean(axis=1), cotangent


def test_an_objective_against_difference_quotients(surrogate: Surrogate) -> None:
    structures, conditions = drawn(3)
    conditions = {name: 0.9 * values + 0.1 * values.mean() for name, values in conditions.items()}  # off the ends
    evaluation = surrogate.predict_and_gradient(structures, blue, **conditions)
    for name, step in (("distance_um", 0.02), ("incidence", np.array([0.1, 0])), ("incidence", np.array([0, 0.1]))):
        more, less = (
            blue(surrogate.predict(structures, **conditions | {name: conditions[name] + sign * step}))[0]
            for sign in (1, -1)
        )
        slope = (evaluation.conditions[name] * step).reshape(3, -1).sum(axis=1)
        np.testing.assert_allclose(slope, (more - less) / 2, rtol=2e-2, atol=1e-6)


async def test_asyncio(url: str, direct: Direct) -> None:
    structures, conditions = drawn()
    cotangent = np.random.default_rng(4).normal(size=(4, 301))
    expected = direct.gradients(structures, np.broadcast_to(cotangent, (ROWS, 4, 301)), **conditions)
    async with AsyncSurrogate(url, batch_size=5, progress=False) as surrogate:
        assert (await surrogate.metadata()).conditions == CONDITIONS
        close((await surrogate.predict(structures, **conditions)).values, direct.spectra(structures, **conditions))
        structure, by_condition = await surrogate.gradients(structures, cotangent, **conditions)
        close(structure, expected["gradient"][:, 0])
        close(by_condition["incidence"], expected["gradient_incidence"])
        np.testing.assert_array_equal(await surrogate.gradient(structures, cotangent, **conditions), structure)
        evaluation = await surrogate.predict_and_gradient(structures[:2], blue, distance_um=1.25)
        assert evaluation.conditions["incidence"].shape == (2, 2)


def test_the_description(surrogate: Surrogate) -> None:
    info = surrogate.metadata()
    assert info.conditions == CONDITIONS
    assert "distance_um between 1 and 3 um, default 2.5" in repr(info)


WRONG = [
    ({"distance_um": 3.5}, "distance_um must lie between 1 and 3 um, got 3.5$"),
    ({"distance_um": [2, 2, 0.5]}, "distance_um must lie between 1 and 3 um, got 0.5 at structure 2$"),
    ({"distance_um": [2, 2]}, r"distance_um must be a number, or \(3,\): one for each structure, got an array \(2,\)$"),
    ({"incidence": 3}, r"incidence must be \(2,\), or \(3, 2\) for each structure, got an array \(\)$"),
    ({"distance_um": "far"}, "distance_um must be numbers between 1 and 3 um, got "),
    (
        {"thickness_um": 0.6},
        "thickness_um is no condition of this model, which takes distance_um between 1 and 3 um, default 2.5; incidence",
    ),
]


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
@pytest.mark.parametrize(("conditions", "message"), WRONG)
async def test_what_is_refused_before_anything_is_sent(
    conditioned: RunningServer, client: Any, conditions: dict[str, Any], message: str
) -> None:
    structures, cotangent = np.zeros((3, 128, 128), np.uint8), np.zeros((4, 301))
    surrogate = client(conditioned.url)
    calls: list[Callable[[], Any]] = [
        lambda: surrogate.predict(structures, **conditions),
        lambda: surrogate.gradient(structures, cotangent, **conditions),
        lambda: surrogate.predict_and_gradient(structures, blue, **conditions),
    ]
    for call in calls:
        with pytest.raises(InvalidCondition, match=f"^{message}") as caught:
            await given(call())
        assert isinstance(caught.value, MetaSpecError)
        assert caught.value.name == next(iter(conditions))
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.name) == (str(caught.value), caught.value.name)
    assert surrogate.sent == (0, 0)
    await given(surrogate.close())


async def given(answer: Any) -> Any:
    """A result of either client."""
    return await answer if inspect.isawaitable(answer) else answer


def test_structures_are_checked_first(surrogate: Surrogate) -> None:
    with pytest.raises(InvalidStructure):
        surrogate.predict(np.zeros((64, 64)), distance_um=7)


def test_models_without_conditions(server: RunningServer, structures: Array, expected: Expected) -> None:
    with Surrogate(server.url) as surrogate:
        assert surrogate.metadata().conditions == ()
        with pytest.raises(InvalidCondition, match=r"^distance_um is no condition of this model, which takes none$"):
            surrogate.predict(structures, distance_um=1)
        assert surrogate.sent == (0, 0)
        evaluation = surrogate.predict_and_gradient(structures, blue)
        assert evaluation.conditions == {}
        close(evaluation.spectra.values, expected(structures))
        assert surrogate.gradients(structures, np.zeros((4, 301))).conditions == {}


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
async def test_a_new_version_that_requires_a_condition(client: Any) -> None:
    """A bare Triton refuses requests without it: the next call asks for the description again."""
    inputs = [{"name": one.name, "datatype": "FP32", "shape": [-1, one.size]} for one in CONDITIONS]
    newer = METADATA | {"inputs": [*METADATA["inputs"], *inputs], "parameters": CONDITIONED_METADATA}
    with scripted((400, {}, b'{"error": "expected 3 inputs but got 1 inputs"}'), good(1)) as server:
        surrogate = client(server.url)
        assert (await given(surrogate.metadata())).conditions == ()
        server.describe = lambda path: newer if path.endswith("diffractionnet") else {"extensions": []}
        with pytest.raises(ServerError, match="expected 3 inputs"):
            await given(surrogate.predict(np.zeros((128, 128))))
        assert len(await given(surrogate.predict(np.zeros((128, 128)), distance_um=1.25))) == 1
        assert (await given(surrogate.metadata())).conditions == CONDITIONS
        await given(surrogate.close())


def test_the_documentation(conditioned: RunningServer, direct: Direct, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", conditioned.url), names)
    assert capsys.readouterr().out.splitlines() == [
        *map(str, CONDITIONS),
        "distance_um must lie between 1 and 3 um, got 4 at structure 2",
        "(3, 128, 128) (3,)",
        "(3,)",
        "torch.Size([3, 128, 128]) torch.Size([])",
        "() (5, 4, 301)",
    ]
    structures = names["structures"]
    close(names["each"].values, direct.spectra(structures, distance_um=[1.25, 2, 2.5]))
    names["surrogate"].close()
