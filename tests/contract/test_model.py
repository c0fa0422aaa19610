from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_contract.model import (
    COTANGENT,
    GRADIENT,
    METADATA_KEY,
    SPECTRA,
    STRUCTURE,
    ModelMetadata,
    ModelMismatch,
    TensorSpec,
    check_answers,
    check_folder,
    check_same_device,
    check_tensors,
    forward_model,
    gradient_model,
    is_gradient_model,
    parse_metadata,
    probes,
)
from metaspec_contract.process import Process
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model

WAVELENGTHS: list[float] = METADATA["wavelengths_nm"]
PROCESS: dict[str, Any] = METADATA["process"]
VJP = METADATA | {"name": gradient_model(METADATA["name"]), "kind": "vjp"}


def parse(document: object) -> ModelMetadata:
    return parse_metadata({METADATA_KEY: document if isinstance(document, str) else json.dumps(document)})


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in METADATA.items() if key != name}


def specs(expected: dict[str, tuple[int, ...]], dtype: str = "f4") -> list[TensorSpec]:
    return [TensorSpec(name, np.dtype(dtype), shape) for name, shape in expected.items()]


def answers(metadata: ModelMetadata, rows: int) -> dict[str, NDArray[np.float32]]:
    return {name: np.zeros((rows, *shape), np.float32) for name, shape in metadata.tensors[1].items()}


def test_metadata() -> None:
    metadata = parse(METADATA)
    assert metadata.process == Process()
    assert metadata.spectra_shape == (4, 301)
    assert metadata.forward_passes == 1
    assert metadata.training is None
    assert not metadata.merged_greens
    assert metadata.tensors == ({STRUCTURE: (1, 128, 128)}, {SPECTRA: (4, 301)})
    spread = parse(METADATA | {"channels": [*CHANNELS, SPREAD], "forward_passes": 4})
    assert spread.tensors[1] == {SPECTRA: (5, 301)}
    assert parse(VJP).tensors == (
        {STRUCTURE: (1, 128, 128), COTANGENT: (4, 301)},
        {SPECTRA: (4, 301), GRADIENT: (1, 128, 128)},
    )


def test_another_process() -> None:
    process = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=2)
    document = {"process": process.model_dump(mode="json"), "wavelengths_nm": process.wavelengths_nm.tolist()}
    assert parse(METADATA | document).spectra_shape == (4, 151)


def test_more_fields_are_passed_on() -> None:
    extra = {
        "metrics": {"mae": 0.006},
        "input": METADATA["input"] | {"order": "rows first"},
        "training": {"network": "Net", "parameters": 7, "data": [{"name": "old"}], "epochs": 3},
    }
    found = parse(METADATA | extra).model_dump(mode="json")
    assert found | extra | {"training": found["training"]} == found
    assert found["training"] == extra["training"] | {"preset": ""}
    assert parse(found) == parse(METADATA | extra)


def test_numbers_of_json() -> None:
    whole = METADATA | {"wavelengths_nm": list(range(400, 701)), "input": METADATA["input"] | {"solid": 1, "void": 0}}
    assert parse(whole) == parse(METADATA)
    rounded = [wavelength + 1e-7 for wavelength in WAVELENGTHS]
    assert parse(METADATA | {"wavelengths_nm": rounded}).wavelengths_nm == rounded


RANGE = "but those of the process are 301 from 400 to 700 nm"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        # wavelengths
        (METADATA | {"wavelengths_nm": WAVELENGTHS[:-1]}, f"wavelengths_nm are 300 from 400 to 699 nm, {RANGE}"),
        (METADATA | {"wavelengths_nm": [*WAVELENGTHS, 701]}, f"wavelengths_nm are 302 from 400 to 701 nm, {RANGE}"),
        (METADATA | {"wavelengths_nm": WAVELENGTHS[::-1]}, "wavelengths_nm must ascend, got 699 after 700"),
        (METADATA | {"wavelengths_nm": [400.0, 400.0]}, "wavelengths_nm must ascend, got 400 after 400"),
        (METADATA | {"wavelengths_nm": [400.0]}, "wavelengths_nm: .* at least 2 items .*"),
        (METADATA | {"wavelengths_nm": [400.0, float("nan")]}, r"wavelengths_nm\.1: Input should be .*"),
        (
            METADATA | {"wavelengths_nm": np.linspace(450, 750, 301).tolist()},
            f"wavelengths_nm are 301 from 450 to 750 nm, {RANGE}: number 1 is 450 against 400",
        ),
        (
            METADATA | {"wavelengths_nm": [*WAVELENGTHS[:7], 407.25, *WAVELENGTHS[8:]]},
            f"wavelengths_nm are 301 from 400 to 700 nm, {RANGE}: number 8 is 407.25 against 407",
        ),
        (METADATA | {"wavelengths_nm": list(range(1_000_000))}, f"wavelengths_nm are 1000000 from .*, {RANGE}"),
        (
            METADATA | {"process": PROCESS | {"wavelength_step_nm": 2}},
            "wavelengths_nm are 301 .* 151 from 400 to 700 nm",
        ),
        # channels
        (METADATA | {"channels": ["R", "G1", "G2", "B", "IR"]}, "channels must be R, G1, G2, B, .*, got R, .*, IR"),
        (METADATA | {"channels": ["B", "G1", "G2", "R"]}, "channels must be .*, or these and spread, got B, G1, G2, R"),
        (METADATA | {"channels": ["R", "G", "B"]}, "channels must be .*, got R, G, B"),
        # input
        (
            METADATA | {"input": {"name": "structure", "solid": 0, "void": 1}},
            "input: solid must be 1 and void 0, got solid 0 and void 1",
        ),
        (
            METADATA | {"input": {"name": "structure", "solid": 1, "void": -1}},
            "input: solid must be 1 and void 0, got solid 1 and void -1",
        ),
        (
            METADATA | {"input": {"name": "pattern", "solid": 1, "void": 0}},
            "input: name must be 'structure', got 'pattern'",
        ),
        (METADATA | {"input": {"name": "structure", "solid": 1}}, r"input\.void: Field required"),
        # name and kind
        (
            METADATA | {"kind": "vjp"},
            "kind is 'vjp' but name is 'diffractionnet': names of gradient models end in _vjp",
        ),
        (METADATA | {"name": VJP["name"]}, "kind is 'forward' but name is 'diffractionnet_vjp': .*"),
        (METADATA | {"kind": "inverse"}, "kind: Input should be 'forward' or 'vjp', got 'inverse'"),
        # process
        (METADATA | {"process": {"period_um": 2.0}}, "process must state thickness_um, distance_um, .*"),
        (METADATA | {"process": PROCESS | {"tilt": 3}}, r"process\.tilt: unknown field"),
        (METADATA | {"process": PROCESS | {"period_um": -2}}, r"process\.period_um: .* greater than 0, got -2"),
        (METADATA | {"process": PROCESS | {"wavelength_max_nm": float("inf")}}, r"process\.wavelength_max_nm: .*"),
        (METADATA | {"process": PROCESS | {"wavelength_step_nm": 1e-9}}, "process: wavelength_step_nm must give .*"),
        (METADATA | {"process": None}, "process: Input should be .*, got None"),
        # others
        (METADATA | {"schema_version": 4}, "schema_version: Input should be 1, 2 or 3, got 4"),
        (METADATA | {"forward_passes": 0}, "forward_passes: Input should be .* 1, got 0"),
        (METADATA | {"units": {"spectra": 1}}, r"units\.spectra: Input should be a valid string, got 1"),
        (METADATA | {"training": {"network": "Net"}}, r"training\.parameters: Field required"),
        *((without(name), f"{name}: Field required") for name in METADATA),
        # not even JSON
        ("", "Invalid JSON: .*"),
        ("{", "Invalid JSON: .*"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded .*"),
        ("null", "Input should be an object, got None"),
        ("[]", "Input should be an object, got a value of type list"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_metadata_that_are_refused(document: object, message: str) -> None:
    with pytest.raises(ModelMismatch) as caught:
        parse(document)
    assert re.fullmatch(f"metadata: {message}", str(caught.value))


def test_no_metadata() -> None:
    with pytest.raises(
        ModelMismatch, match=r'^no "metaspec" entry in its metadata_props: export it with metaspec-export$'
    ):
        parse_metadata({"other": "{}"})


def test_the_small_models_fit_their_metadata() -> None:
    for model in (small_model(), small_gradient_model()):
        metadata = parse_metadata({entry.key: entry.value for entry in model.metadata_props})
        graph = [
            [
                TensorSpec(
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
                    tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]),
                )
                for value in values
            ]
            for values in (model.graph.input, model.graph.output)
        ]
        check_tensors(metadata, *graph)


def test_tensors_in_any_order() -> None:
    metadata = parse(VJP)
    inputs, outputs = (specs(expected) for expected in metadata.tensors)
    check_tensors(metadata, inputs[::-1], outputs[::-1])


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({}, None, "inputs must be structure in a model of kind 'forward', got none"),
        ({"pattern": (1, 128, 128)}, None, "inputs must be structure .*, got pattern"),
        ({STRUCTURE: (1, 128, 128), "angle": ()}, None, "inputs must be structure .*, got structure, angle"),
        (None, {"efficiency": (4, 301)}, "outputs must be spectra .*, got efficiency"),
        (None, {SPECTRA: (4, 301), GRADIENT: (1, 128, 128)}, "outputs must be spectra .*, got spectra, gradient"),
        (
            {STRUCTURE: (1, 64, 64)},
            None,
            r"input structure has shape \[N, 1, 64, 64\], expected \[N, 1, 128, 128\]: .* 128 x 128 pixels",
        ),
        ({STRUCTURE: (128, 128)}, None, r"input structure has shape \[N, 128, 128\], expected .*"),
        (
            None,
            {SPECTRA: (4, 300)},
            r"output spectra has shape \[N, 4, 300\], expected \[N, 4, 301\]: "
            "the metadata name 4 channels and 301 wavelengths",
        ),
        (None, {SPECTRA: (5, 301)}, r"output spectra has shape \[N, 5, 301\], .*"),
        (None, {SPECTRA: (2, 2, 301)}, r"output spectra has shape \[N, 2, 2, 301\], .*"),
        (None, {SPECTRA: ()}, r"output spectra has shape \[N\], .*"),
    ],
)
def test_tensors_that_do_not_fit(
    inputs: dict[str, tuple[int, ...]] | None, outputs: dict[str, tuple[int, ...]] | None, message: str
) -> None:
    metadata = parse(METADATA)
    expected = metadata.tensors
    found = [expected[0] if inputs is None else inputs, expected[1] if outputs is None else outputs]
    with pytest.raises(ModelMismatch) as caught:
        check_tensors(metadata, specs(found[0]), specs(found[1]))
    assert re.fullmatch(message, str(caught.value))


@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f8"])
def test_tensors_of_another_dtype(dtype: str) -> None:
    """Clients read float32 only."""
    metadata, name = parse(METADATA), np.dtype(dtype).name
    inputs, outputs = metadata.tensors
    with pytest.raises(ModelMismatch, match=f"^input structure has dtype {name}, expected float32$"):
        check_tensors(metadata, specs(inputs, dtype), specs(outputs))
    with pytest.raises(ModelMismatch, match=f"^output spectra has dtype {name}, expected float32$"):
        check_tensors(metadata, specs(inputs), specs(outputs, dtype))


def test_greens_that_are_not_merged() -> None:
    metadata = parse(METADATA | {"merged_greens": True})
    found = answers(metadata, 3)
    found[SPECTRA][:, 2] = found[SPECTRA][:, 1]
    check_answers(metadata, found, 3)
    found[SPECTRA][2, 2, 5] += 0.01
    with pytest.raises(
        ModelMismatch, match=r"merged_greens is true, but G1 and G2 in output spectra differ by up to 0\.01"
    ):
        check_answers(metadata, found, 3)


def test_a_tensor() -> None:
    spec = TensorSpec("structure", np.dtype("f4"), (1, 128, 128))
    assert (spec.size, spec.packed_bytes) == (16384, 2048)
    assert TensorSpec("angle", np.dtype("f4"), (3, 3)).packed_bytes == 2
    assert TensorSpec("angle", np.dtype("f4"), ()).size == 1


@pytest.mark.parametrize("document", [METADATA, VJP])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_answers_that_fit(document: dict[str, Any], rows: int) -> None:
    metadata = parse(document)
    check_answers(metadata, answers(metadata, rows) | {"another": np.array(["x"])}, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop(GRADIENT), "output gradient is missing from its answer"),
        (
            lambda found: found.update(spectra=np.zeros((5, 4, 300), np.float32)),
            r"output spectra has shape \(5, 4, 300\) for 6 structures, expected \(6, 4, 301\)",
        ),
        (
            lambda found: found.update(spectra=found[SPECTRA][:5]),
            r"output spectra has shape \(5, 4, 301\) for 6 structures, .*",
        ),
        (
            lambda found: found.update(spectra=found[SPECTRA].astype(complex)),
            "output spectra has dtype complex128, expected float32",
        ),
        (
            lambda found: found[SPECTRA].__setitem__((3, 1, 7), np.nan),
            "output spectra is not finite for a structure that is empty",
        ),
        (
            lambda found: found[SPECTRA].__setitem__((1, 0, 0), -np.inf),
            "output spectra is not finite for a structure that is full",
        ),
        (
            lambda found: found[GRADIENT].__setitem__((5, 0, 0, 0), np.inf),
            "output gradient is not finite for a structure that is random",
        ),
    ],
)
def test_answers_that_do_not_fit(change: Callable[[dict[str, Any]], object], message: str) -> None:
    metadata = parse(VJP)
    found = answers(metadata, 6)
    change(found)
    with pytest.raises(ModelMismatch) as caught:
        check_answers(metadata, found, 6)
    assert re.fullmatch(message, str(caught.value))


@pytest.mark.parametrize("dtype", [None, np.dtype(np.float16)])
def test_probes(dtype: np.dtype[Any] | None) -> None:
    found = probes(parse(VJP), 7, dtype)
    structure, cotangent = found[STRUCTURE], found[COTANGENT]
    assert (structure.shape, cotangent.shape) == ((7, 1, 128, 128), (7, 4, 301))
    assert structure.dtype == cotangent.dtype == (dtype or np.float32)
    assert [float(one.mean()) for one in structure[[0, 3, 6, 1, 4]]] == [0, 0, 0, 1, 1]
    assert 0.4 < structure[2].mean() < 0.6
    assert (structure[2] != structure[5]).any()
    assert np.isfinite(cotangent).all()
    assert probes(parse(METADATA), 3).keys() == {STRUCTURE}


def test_names_of_gradient_models() -> None:
    assert is_gradient_model(gradient_model("net"))
    assert not is_gradient_model("net")


BUNDLED = sorted((Path(__file__).parents[2] / "server" / "models").glob("*/*/model.onnx"))


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.parts[-3])
def test_bundled_models(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    metadata = parse_metadata({entry.key: entry.value for entry in model.metadata_props})
    assert metadata.name == path.parts[-3]


def test_a_gradient_model_and_its_forward_model() -> None:
    assert forward_model(gradient_model("router")) == forward_model("router") == "router"


def test_a_folder_of_another_name() -> None:
    check_folder(parse(METADATA), "diffractionnet")
    with pytest.raises(ModelMismatch, match=r"name is 'diffractionnet', but the model's folder is 'router'$"):
        check_folder(parse(METADATA), "router")


def test_models_of_one_device_agree() -> None:
    metadata = parse(METADATA)
    renamed = {"solid": PROCESS["solid"] | {"name": "Si3N4", "source": "elsewhere"}}
    for other in (VJP, METADATA | {"process": PROCESS | renamed}, METADATA | {"units": {}, "forward_passes": 4}):
        check_same_device(metadata, parse(other), "one", "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"process": PROCESS | {"distance_um": 3.0}},
            "one and other are of different processes: distance_um 2.5 against 3.0",
        ),
        ({"merged_greens": True}, "other knows only the mean of G1 and G2, one knows each of them"),
        ({"channels": [*CHANNELS, SPREAD]}, "one has the channels R, G1, G2, B, other has R, G1, G2, B, spread"),
    ],
)
def test_models_of_different_devices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelMismatch) as caught:
        check_same_device(parse(METADATA), parse(METADATA | changes), "one", "other")
    assert str(caught.value) == f"{message}; publish it under another name"
