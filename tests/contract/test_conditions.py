"""Conditions: what users may give for them, and what metadata of models with conditions say."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from metaspec_contract.conditions import Condition, ConditionValue, InvalidCondition, check_conditions
from metaspec_contract.model import (
    METADATA_KEY,
    ModelMetadata,
    ModelMismatch,
    TensorSpec,
    check_answers,
    check_same_device,
    check_tensors,
    gradient_model,
    parse_metadata,
    probes,
)
from metaspec_contract.process import Process
from metaspec_contract.source import Evaluation, SourceInfo
from metaspec_contract.spectra import Spectra
from metaspec_contract.validation import first_error
from metaspec_testing.small_models import METADATA

DISTANCE = Condition(name="distance_um", unit="um", low=1.0, high=3.0, default=2.5)
INCIDENCE = Condition(name="incidence", unit="degrees", low=-20, high=20, default=(0, 0), size=2)
BOTH = (DISTANCE, INCIDENCE)
DOCUMENT = METADATA | {"schema_version": 3, "conditions": [one.model_dump(mode="json") for one in BOTH]}
VJP = DOCUMENT | {"name": gradient_model(METADATA["name"]), "kind": "vjp"}


def parse(document: dict[str, Any]) -> ModelMetadata:
    return parse_metadata({METADATA_KEY: json.dumps(document)})


@pytest.mark.parametrize(
    ("given", "distance", "incidence"),
    [
        ({}, [2.5, 2.5], [[0, 0], [0, 0]]),
        ({"distance_um": None, "incidence": None}, [2.5, 2.5], [[0, 0], [0, 0]]),
        ({"distance_um": 1.25}, [1.25, 1.25], [[0, 0], [0, 0]]),
        ({"distance_um": 2}, [2, 2], [[0, 0], [0, 0]]),
        ({"distance_um": [1.25, 2]}, [1.25, 2], [[0, 0], [0, 0]]),
        ({"distance_um": np.array([[1.0], [3.0]], np.float16)}, [1, 3], [[0, 0], [0, 0]]),
        ({"incidence": (5, -20)}, [2.5, 2.5], [[5, -20], [5, -20]]),  # a vector for all rows, not one value for each
        ({"incidence": [[1, 2], [3, 4]], "distance_um": np.float64(3)}, [3, 3], [[1, 2], [3, 4]]),
    ],
)
def test_what_users_give(given: dict[str, ConditionValue], distance: list[float], incidence: list[list[float]]) -> None:
    values = check_conditions(BOTH, given, 2)
    assert list(values) == ["distance_um", "incidence"]
    for value, expected in zip(values.values(), (np.array(distance)[:, None], incidence), strict=True):
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        assert value.flags.writeable
        np.testing.assert_array_equal(value, expected)


def test_an_empty_batch() -> None:
    values = check_conditions(BOTH, {"distance_um": np.zeros(0), "incidence": (1, 1)}, 0)
    assert {name: value.shape for name, value in values.items()} == {"distance_um": (0, 1), "incidence": (0, 2)}


def test_both_ends_of_a_range_that_float32_rounds() -> None:
    thickness = Condition(name="thickness_um", unit="um", low=0.3, high=0.7, default=0.6)
    assert float(np.float32(0.7)) < 0.7
    for ends in ([0.3, 0.7], np.array([0.3, 0.7], np.float32)):
        np.testing.assert_array_equal(thickness.check(ends, 2)[:, 0], np.array([0.3, 0.7], np.float32))
    with pytest.raises(InvalidCondition):
        thickness.check(np.nextafter(np.float32(0.7), np.float32(1)), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"angle": 3},
            "angle is no condition of this model, which takes distance_um between 1 and 3 um, default 2.5; incid",
        ),
        ({"distance_um": 3.5}, "distance_um must lie between 1 and 3 um, got 3.5"),
        ({"distance_um": [2, 0.5]}, "distance_um must lie between 1 and 3 um, got 0.5 at structure 1"),
        ({"distance_um": np.nan}, "distance_um must lie between 1 and 3 um, got nan"),
        ({"distance_um": [2, np.inf]}, "distance_um must lie between 1 and 3 um, got inf at structure 1"),
        ({"distance_um": 1e300}, "distance_um must lie between 1 and 3 um, got 1e+300"),
        (
            {"distance_um": [2, 2, 2]},
            "distance_um must be a number, or (2,): one for each structure, got an array (3,)",
        ),
        ({"distance_um": [2]}, "distance_um must be a number, or (2,): one for each structure, got an array (1,)"),
        (
            {"distance_um": [[2, 2]]},
            "distance_um must be a number, or (2,): one for each structure, got an array (1, 2)",
        ),
        ({"distance_um": "2"}, "distance_um must be numbers between 1 and 3 um, got <U1"),
        ({"distance_um": True}, "distance_um must be numbers between 1 and 3 um, got bool"),
        ({"distance_um": 2j}, "distance_um must be numbers between 1 and 3 um, got complex128"),
        ({"distance_um": [[2], [1, 2]]}, "distance_um must be an array: "),
        ({"distance_um": np.ma.masked_less([1.0, 2.0], 2)}, "distance_um must be given everywhere, got a masked array"),
        ({"incidence": 3}, "incidence must be (2,), or (2, 2) for each structure, got an array ()"),
        ({"incidence": [[1, 2]]}, "incidence must be (2,), or (2, 2) for each structure, got an array (1, 2)"),
        ({"incidence": (0, 25)}, "incidence must lie between -20 and 20 degrees, got 25"),
        ({"incidence": [[1, 2], [3, -21]]}, "incidence must lie between -20 and 20 degrees, got -21 at structure 1"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidCondition) as caught:
        check_conditions(BOTH, given, 2)
    assert str(caught.value).startswith(message)
    assert caught.value.name == next(iter(given))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.name) == (str(caught.value), caught.value.name)


def test_a_model_without_conditions() -> None:
    assert check_conditions((), {}, 3) == {}
    with pytest.raises(InvalidCondition, match=r"^distance_um is no condition of this model, which takes none$"):
        check_conditions((), {"distance_um": 2}, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Distance"}, "name must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got 'Distance'"),
        ({"name": "a b"}, "name must be 1 to 64 of .*, got 'a b'"),
        ({"name": "structure"}, "name must not be that of another tensor or argument, got 'structure'"),
        ({"name": "gradient_distance_um"}, "name must not be that of another .*"),
        ({"name": "version"}, "name must not be that of another .*"),
        ({"name": "packed"}, "name must not be that of another .*"),
        ({"low": 3.0}, "low must be below high, got 3 and 3"),
        ({"high": float("inf")}, "high: Input should be a finite number"),
        ({"default": 0.5}, "default must lie between 1 and 3 um, got 0.5"),
        ({"default": [2.5]}, "default must be a number for size 1, got 1 numbers"),
        ({"size": 2}, "default must be 2 numbers for size 2, got 2.5"),
        ({"size": 2, "default": [1, 2, 3]}, "default must be 2 numbers for size 2, got 3 numbers"),
        ({"size": 0}, "size: Input should be greater .*"),
    ],
)
def test_conditions_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Condition.model_validate(DISTANCE.model_dump() | changes)
    assert re.match(message, first_error(caught.value))


def test_metadata() -> None:
    metadata = parse(DOCUMENT)
    assert metadata.conditions == BOTH
    assert metadata.tensors == (
        {"structure": (1, 128, 128), "distance_um": (1,), "incidence": (2,)},
        {"spectra": (4, 301)},
    )
    assert parse(VJP).tensors == (
        {"structure": (1, 128, 128), "cotangent": (4, 301), "distance_um": (1,), "incidence": (2,)},
        {"spectra": (4, 301), "gradient": (1, 128, 128), "gradient_distance_um": (1,), "gradient_incidence": (2,)},
    )
    dumped = metadata.model_dump(mode="json")
    assert dumped["conditions"] == DOCUMENT["conditions"]
    assert parse(dumped) == metadata
    assert json.loads(metadata.model_dump_json(include={"conditions"})) == {"conditions": DOCUMENT["conditions"]}


def test_metadata_without_conditions_are_as_before() -> None:
    for document in (METADATA, METADATA | {"conditions": []}, METADATA | {"schema_version": 3}):
        metadata = parse(document)
        assert metadata.conditions == ()
        assert "conditions" not in metadata.model_dump(mode="json")
        assert json.loads(metadata.model_dump_json(include={"name", "conditions"})) == {"name": "diffractionnet"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version must be 3 in a model with conditions, got 2"),
        ({"conditions": [DISTANCE.model_dump()] * 2}, "conditions must have different names, got distance_um twice"),
        (
            {"conditions": [DISTANCE.model_dump() | {"default": 2.0}]},
            "condition distance_um has the default 2.0, but the process has 2.5",
        ),
        ({"conditions": [DISTANCE.model_dump() | {"low": 4}]}, "conditions.0: low must be below high, got 4 and 3"),
        ({"conditions": [{"name": "angle"}]}, "conditions.0.unit: Field required"),
    ],
)
def test_metadata_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelMismatch) as caught:
        parse(DOCUMENT | changes)
    assert str(caught.value) == f"metadata: {message}"


def specs(expected: dict[str, tuple[int, ...]]) -> list[TensorSpec]:
    return [TensorSpec(name, np.dtype(np.float32), shape) for name, shape in expected.items()]


def test_tensors_are_held_against_the_conditions() -> None:
    metadata = parse(VJP)
    inputs, outputs = metadata.tensors
    check_tensors(metadata, specs(inputs), specs(outputs))
    missing = {name: shape for name, shape in inputs.items() if name != "incidence"}
    with pytest.raises(
        ModelMismatch, match="inputs must be structure, cotangent, distance_um, incidence in a model of"
    ):
        check_tensors(metadata, specs(missing), specs(outputs))
    with pytest.raises(
        ModelMismatch, match=r"^input incidence has shape \[N\], expected \[N, 2\]: .* condition of 2 values"
    ):
        check_tensors(metadata, specs(inputs | {"incidence": ()}), specs(outputs))
    with pytest.raises(
        ModelMismatch, match=r"^output gradient_distance_um has shape \[N, 2\], expected \[N, 1\]: .* 1 value in"
    ):
        check_tensors(metadata, specs(inputs), specs(outputs | {"gradient_distance_um": (2,)}))


def test_probes_cover_the_range_with_both_ends() -> None:
    values = probes(parse(VJP), 8)
    assert {name: array.shape for name, array in values.items() if array.ndim == 2} == {
        "distance_um": (8, 1),
        "incidence": (8, 2),
    }
    for condition in BOTH:
        given = values[condition.name]
        np.testing.assert_array_equal(given.min(axis=0), condition.low)
        np.testing.assert_array_equal(given.max(axis=0), condition.high)
        assert check_conditions(BOTH, {condition.name: given}, 8)
    assert not np.array_equal(values["incidence"][:, 0], values["incidence"][:, 1])
    for name in ("structure", "cotangent"):  # as those of a model without conditions
        without = probes(parse({**VJP, "conditions": []}), 8)
        np.testing.assert_array_equal(values[name], without[name])


def test_answers_are_held_against_the_conditions() -> None:
    metadata = parse(VJP)
    answers = {name: np.zeros((8, *shape), np.float32) for name, shape in metadata.tensors[1].items()}
    check_answers(metadata, answers, 8)
    values = probes(metadata, 8)
    answers["gradient_incidence"][4, 1] = np.nan
    with pytest.raises(ModelMismatch) as caught:
        check_answers(metadata, answers, 8)
    distance, incidence = values["distance_um"][4, 0], values["incidence"][4]
    assert str(caught.value) == (
        "output gradient_incidence is not finite for a structure that is full, "
        f"at distance_um {distance:g}, at incidence {incidence[0]:g}, {incidence[1]:g}"
    )
    del answers["gradient_distance_um"]
    with pytest.raises(ModelMismatch, match=r"^output gradient_distance_um is missing"):
        check_answers(metadata, answers, 8)


def test_a_gradient_model_takes_what_its_forward_model_takes() -> None:
    forward, gradient = parse(DOCUMENT), parse(VJP)
    plain, plain_gradient = parse(METADATA), parse(VJP | {"conditions": []})
    for one, other in ((gradient, forward), (forward, gradient), (plain, gradient), (forward, plain), (plain, forward)):
        check_same_device(
            one, other, "one", "other"
        )  # the gradient is published first, and a version may add conditions
    message = "^forward takes distance_um between 1 and 3 um, default 2.5, gradient takes no distance_um$"
    with pytest.raises(ModelMismatch, match=message):
        check_same_device(plain_gradient, forward, "gradient", "forward")
    with pytest.raises(ModelMismatch, match=message):
        check_same_device(forward, plain_gradient, "forward", "gradient")
    narrow = parse(VJP | {"conditions": [DISTANCE.model_dump() | {"high": 2.5}, DOCUMENT["conditions"][1]]})
    with pytest.raises(
        ModelMismatch, match=r"^forward takes .* 1 and 3 um, default 2.5, gradient takes .* 1 and 2.5 um, def"
    ):
        check_same_device(narrow, forward, "gradient", "forward")


def test_a_source_says_what_it_takes() -> None:
    process = Process()
    info = SourceInfo("one", "1", process, process.wavelengths_nm, ("R", "G1", "G2", "B"), False, conditions=BOTH)
    assert "distance_um between 1 and 3 um, default 2.5; incidence between -20 and 20 degrees, default (0, 0)" in repr(
        info
    )
    assert "distance_um between" in info._repr_html_()
    assert "between" not in repr(SourceInfo("one", "1", process, process.wavelengths_nm, ("R",), False))


def test_an_evaluation_is_three_values_with_the_gradients_of_conditions() -> None:
    spectra = Spectra(np.zeros((1, 4, 301), np.float32), Process().wavelengths_nm)
    evaluation = Evaluation(
        np.zeros(1), np.zeros((1, 128, 128), np.float32), spectra, {"distance_um": np.ones(1, np.float32)}
    )
    value, _, found = evaluation
    assert (value, found) == (np.zeros(1), spectra)
    assert list(evaluation.conditions) == list(pickle.loads(pickle.dumps(evaluation)).conditions) == ["distance_um"]
    assert Evaluation(value, evaluation.gradient, spectra).conditions == {}
