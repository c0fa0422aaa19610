"""A model is held against its metadata before it is served: what does not fit is refused, and the version that works stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.detectors import CHANNELS, SPREAD
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.process import Process
from metaspec_server.engines import OnnxEngine
from metaspec_server.repository import RepositoryError, find_models
from metaspec_testing.conditioned_models import conditioned_model
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model, write_repository

Change = Callable[[], onnx.ModelProto]


def stated(**changes: Any) -> Change:
    """The small model with other metadata."""
    return lambda: small_model(METADATA | changes)


def wavelengths(count: int) -> list[float]:
    return [float(wavelength) for wavelength in np.linspace(400, 700, count)]


def spectra_of(count: int) -> Change:
    """A process of as many wavelengths, over a graph that still has 301."""
    process = Process(wavelength_step_nm=300 / (count - 1))
    return stated(process=process.model_dump(mode="json"), wavelengths_nm=process.wavelengths_nm.tolist())


def renamed(old: str, new: str) -> Change:
    """The small model with another name of a tensor."""

    def make() -> onnx.ModelProto:
        model = small_model()
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        return model

    return make


def small_structures() -> onnx.ModelProto:
    """A model of 64 x 64 pixels: four packed structures would be read as sixteen."""
    return graph(
        [
            helper.make_node("AveragePool", ["structure"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["product"]),
            helper.make_node("Reshape", ["product", "shape"], ["spectra"]),
        ],
        pixels=64,
    )


def where(condition: list[onnx.NodeProto]) -> Change:
    """The mean density as every efficiency, but NaN where a condition on the mean holds."""

    def make() -> onnx.ModelProto:
        return graph(
            [
                helper.make_node("ReduceMean", ["structure", "axes"], ["mean"], keepdims=0),
                helper.make_node("Reshape", ["mean", "row"], ["density"]),
                *condition,
                helper.make_node("Where", ["bad", "nan", "density"], ["value"]),
                helper.make_node("Mul", ["value", "ones"], ["spectra"]),
            ]
        )

    return make


def graph(nodes: list[onnx.NodeProto], pixels: int = 128) -> onnx.ModelProto:
    """A model of these nodes and the constants that they name."""
    constants = {
        "weight": np.zeros((64, 1204), np.float32),
        "shape": np.array([-1, 4, 301]),
        "axes": np.array([1, 2, 3]),
        "row": np.array([-1, 1, 1]),
        "ones": np.ones((1, 4, 301), np.float32),
        "low": np.float32(0.25),
        "high": np.float32(0.75),
        "nan": np.float32(np.nan),
        "far": np.array([10**6]),
        "wrong": np.array([-1, 2, 602]),
        "zero": np.array([0]),
        "end": np.array([1204]),
        "axis": np.array([1]),
    }
    made = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in node.input} - made
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("structure", TensorProto.FLOAT, ["N", 1, pixels, pixels])],
            [helper.make_tensor_value_info("spectra", TensorProto.FLOAT, ["N", 4, 301])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    helper.set_model_props(model, {"metaspec": json.dumps(METADATA)})
    return model


def failing() -> onnx.ModelProto:
    """Raises for every structure that is not empty: an index is out of range where the mean is above a quarter."""
    return graph(
        [
            helper.make_node("ReduceMean", ["structure", "axes"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "low"], ["solid"]),
            helper.make_node("Cast", ["solid"], ["bit"], to=TensorProto.INT64),
            helper.make_node("Mul", ["bit", "far"], ["index"]),
            helper.make_node("Gather", ["ones", "index"], ["spectra"], axis=0),
        ]
    )


def computed_shape() -> onnx.ModelProto:
    """Declares (N, 4, 301), but computes (N, 2, 602)."""
    return graph(
        [
            helper.make_node("ReduceMean", ["structure"], ["mean"], keepdims=0),
            helper.make_node("Less", ["mean", "low"], ["sparse"]),
            helper.make_node("Where", ["sparse", "wrong", "wrong"], ["shape"]),  # so that no optimiser sees the shape
            helper.make_node("Flatten", ["structure"], ["flat"]),
            helper.make_node("Slice", ["flat", "zero", "end", "axis"], ["first"]),
            helper.make_node("Reshape", ["first", "shape"], ["spectra"]),
        ]
    )


def declared_shape() -> onnx.ModelProto:
    """Declares and computes (N, 2, 602)."""
    model = small_model()
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([-1, 2, 602]), "shape"))
    for axis, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], (2, 602), strict=True):
        axis.dim_value = size
    return model


def fixed_batch() -> onnx.ModelProto:
    """The small model for batches of 4 only."""
    model = small_model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
        value.type.tensor_type.shape.dim[0].dim_value = 4
    return model


def merged_greens() -> onnx.ModelProto:
    """The small model with zeros as weights: its greens are equal, and its metadata say that they are merged."""
    model = small_model(METADATA | {"merged_greens": True})
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((64, 1204), np.float32), "weight"))
    return model


def five_channels() -> onnx.ModelProto:
    """The small model with the spread as a fifth channel."""
    model = small_model(METADATA | {"channels": [*CHANNELS, SPREAD]})
    for tensor in model.graph.initializer:
        if tensor.name == "weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((64, 5 * 301), np.float32), "weight"))
        else:
            tensor.CopyFrom(numpy_helper.from_array(np.array([-1, 5, 301]), "shape"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    return model


def silent() -> onnx.ModelProto:
    """The small model without metadata."""
    model = small_model()
    del model.metadata_props[:]
    return model


FULL = [helper.make_node("Greater", ["density", "high"], ["bad"])]
EMPTY = [helper.make_node("Less", ["density", "low"], ["bad"])]
RANDOM = [
    helper.make_node("Greater", ["density", "low"], ["above"]),
    helper.make_node("Less", ["density", "high"], ["below"]),
    helper.make_node("And", ["above", "below"], ["bad"]),
]
OTHER = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750)
PARTIAL = {name: value for name, value in METADATA["process"].items() if name != "thickness_um"}

MISFITS: dict[str, tuple[Change, str]] = {
    "300 wavelengths for 301 outputs": (
        spectra_of(300),
        "output spectra has shape [N, 4, 301], expected [N, 4, 300]: the metadata name 4 channels and 300 wavelengths",
    ),
    "302 wavelengths for 301 outputs": (
        spectra_of(302),
        "output spectra has shape [N, 4, 301], expected [N, 4, 302]: the metadata name 4 channels and 302 wavelengths",
    ),
    "wavelengths that are not the process's": (
        stated(wavelengths_nm=wavelengths(300)),
        "wavelengths_nm are 300 from 400 to 700 nm, but those of the process are 301 from 400 to 700 nm",
    ),
    "5 channels for 4": (
        stated(channels=["R", "G1", "G2", "B", "spread"]),
        "output spectra has shape [N, 4, 301], expected [N, 5, 301]: the metadata name 5 channels",
    ),
    "other channels": (stated(channels=["B", "G1", "G2", "R"]), "channels must be R, G1, G2, B"),
    "descending wavelengths": (stated(wavelengths_nm=wavelengths(301)[::-1]), "wavelengths_nm must ascend"),
    "solid and void exchanged": (
        stated(input={"name": "structure", "solid": 0.0, "void": 1.0}),
        "input: solid must be 1 and void 0, got solid 0 and void 1",
    ),
    "an output not called spectra": (renamed("spectra", "power"), "outputs must be spectra in a model of kind"),
    "an input not called structure": (renamed("structure", "image"), "inputs must be structure in a model of kind"),
    "metadata of another input": (
        stated(input={"name": "image", "solid": 1.0, "void": 0.0}),
        "input: name must be 'structure', got 'image'",
    ),
    "64 x 64 pixels": (small_structures, "input structure has shape [N, 1, 64, 64], expected [N, 1, 128, 128]"),
    "outputs of another shape": (declared_shape, "output spectra has shape [N, 2, 602], expected [N, 4, 301]"),
    "answers of another shape": (computed_shape, "output spectra has shape (3, 2, 602) for 3 structures"),
    "NaN on full structures": (where(FULL), "output spectra is not finite for a structure that is full"),
    "NaN on empty structures": (where(EMPTY), "output spectra is not finite for a structure that is empty"),
    "NaN on random structures": (where(RANDOM), "output spectra is not finite for a structure that is random"),
    "an exception on structures that are not empty": (failing, "ONNX Runtime fails to run it: "),
    "an incomplete process": (stated(process=PARTIAL), "process must state thickness_um"),
    "another kind": (stated(kind="vjp"), "kind is 'vjp' but name is 'diffractionnet'"),
    "the name of another model": (stated(name="other"), "name is 'other', but the model's folder is 'diffractionnet'"),
    "another device than the version it replaces": (
        stated(process=OTHER.model_dump(mode="json"), wavelengths_nm=OTHER.wavelengths_nm.tolist()),
        " and version 1, which it would replace, are of different processes: period_um 1.6 against 2.0",
    ),
    "merged greens that differ": (
        stated(merged_greens=True),
        "merged_greens is true, but G1 and G2 in output spectra differ by up to",
    ),
    "merged greens, unlike the version it replaces": (
        merged_greens,
        " knows only the mean of G1 and G2, version 1, which it would replace, knows each of them",
    ),
    "more channels than the version it replaces": (
        five_channels,
        " has the channels R, G1, G2, B, spread, version 1, which it would replace, has R, G1, G2, B",
    ),
    "a fixed batch": (fixed_batch, "expected [N, fixed, ...]"),
    "no metadata": (silent, 'no "metaspec" entry in its metadata_props'),
    "a schema of the future": (stated(schema_version=4), "schema_version"),
}


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"), small_model())


@pytest.fixture(scope="module")
def serving(working: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(working), "--poll-interval", "0") as server:
        yield server


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_model_that_does_not_fit_is_refused_and_the_working_version_stays(
    serving: RunningServer, working: Path, misfit: str
) -> None:
    make, reason = MISFITS[misfit]
    version = 2 + list(MISFITS).index(misfit)
    write_repository(working, make(), version, folder=DEFAULT_MODEL)
    answer = serving.post(f"/v2/repository/models/{DEFAULT_MODEL}/load")
    assert answer.status_code == 400
    assert str(working / DEFAULT_MODEL / str(version) / "model.onnx") in answer.json()["error"]
    assert reason in answer.json()["error"]
    shutil.rmtree(working / DEFAULT_MODEL / str(version))  # or the next test tries it again
    body = serving.post("/predict", json={"structures": np.eye(128).tolist()}).raise_for_status().json()
    assert body["version"] == "1"
    assert serving.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("max_batch", [1, 2])
def test_small_batches_are_tried_with_every_kind_of_structure(tmp_path: Path, max_batch: int) -> None:
    (file,) = find_models(write_repository(tmp_path, where(RANDOM)()))[DEFAULT_MODEL]
    with pytest.raises(RepositoryError, match="not finite for a structure that is random"):
        OnnxEngine(file, max_batch=max_batch)


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    model = small_gradient_model()
    share = next(tensor for tensor in model.graph.initializer if tensor.name == "share")
    share.CopyFrom(numpy_helper.from_array(np.full(1, np.inf, np.float32), "share"))
    (file,) = find_models(write_repository(tmp_path, model))[gradient_model(DEFAULT_MODEL)]
    with pytest.raises(RepositoryError, match="output gradient is not finite"):
        OnnxEngine(file)


@pytest.mark.parametrize("schema", [1, 2])
def test_metadata_of_both_schemas_are_read(tmp_path: Path, schema: int) -> None:
    (file,) = find_models(write_repository(tmp_path, small_model(METADATA | {"schema_version": schema})))[DEFAULT_MODEL]
    assert OnnxEngine(file).about.metadata.schema_version == schema


def test_a_model_is_tried_over_the_range_of_its_conditions(tmp_path: Path) -> None:
    """One whose logits overflow at short distances: infinity minus itself."""
    model = conditioned_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "distance_um_weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((1, 1204), 3e38, np.float32), "distance_um_weight"))
    product = next(node for node in model.graph.node if node.output[0] == "distance_um_product")
    product.output[0] = "far"
    place = list(model.graph.node).index(product) + 1
    model.graph.node.insert(place, helper.make_node("Sub", ["far", "far"], ["distance_um_product"]))
    ((file,),) = find_models(write_repository(tmp_path, model)).values()
    message = "output spectra is not finite for a structure that is .*, at distance_um 1, at incidence "
    with pytest.raises(RepositoryError, match=message):
        OnnxEngine(file)
