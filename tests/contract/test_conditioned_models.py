"""The small model with conditions, which tests of other components serve, does what its metadata say."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from metaspec_contract.conditions import ConditionValue, check_conditions
from metaspec_contract.model import check_answers, parse_metadata, probes
from metaspec_testing.conditioned_models import CONDITIONS, conditioned_gradient_model, conditioned_model
from metaspec_testing.small_models import small_model


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_it_answers_its_probes_and_is_the_small_model_at_the_defaults() -> None:
    for model in (conditioned_model(), conditioned_gradient_model()):
        metadata = parse_metadata({entry.key: entry.value for entry in model.metadata_props})
        served, names = session(model), list(metadata.tensors[1])
        assert [value.name for value in served.get_outputs()] == names
        check_answers(metadata, dict(zip(names, served.run(names, probes(metadata, 8)), strict=True)), 8)
    structure = {"structure": np.random.default_rng(0).random((2, 1, 128, 128), np.float32)}
    (plain,) = session(small_model()).run(None, structure)
    (same,) = session(conditioned_model()).run(None, structure | check_conditions(CONDITIONS, {}, 2))
    (other,) = session(conditioned_model()).run(None, structure | check_conditions(CONDITIONS, {"distance_um": 1.5}, 2))
    np.testing.assert_allclose(same, plain, atol=1e-6)
    assert np.abs(other - plain).max() > 0.01


def test_its_gradients_are_those_of_its_spectra() -> None:
    generator, step = np.random.default_rng(0), 0.05
    structure = {"structure": generator.random((3, 1, 128, 128), np.float32)}
    given: dict[str, ConditionValue] = {"distance_um": [1.5, 2, 2.75], "incidence": [[1, 2], [-5, 3], [0, 10]]}
    cotangent = generator.standard_normal((3, 4, 301), np.float32)
    served = session(conditioned_gradient_model())
    values = check_conditions(CONDITIONS, given, 3)
    outputs = [value.name for value in served.get_outputs()]
    found = dict(zip(outputs, served.run(None, structure | values | {"cotangent": cotangent}), strict=True))
    forward = session(conditioned_model())
    for condition in CONDITIONS:
        for component in range(condition.size):
            sums = []
            for sign in (1, -1):
                moved = values[condition.name].copy()
                moved[:, component] += sign * step
                (spectra,) = forward.run(None, structure | values | {condition.name: moved})
                sums.append((cotangent.astype(np.float64) * spectra).sum(axis=(1, 2)))
            expected = (sums[0] - sums[1]) / (2 * step)
            np.testing.assert_allclose(found[condition.gradient][:, component], expected, rtol=2e-2, atol=2e-3)
