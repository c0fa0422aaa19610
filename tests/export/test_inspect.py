"""`metaspec-export inspect`: what a server would refuse is named with file and field, and the exit status is 1."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.model import METADATA_KEY
from metaspec_contract.process import Process
from metaspec_export.metadata import weights_sha256
from metaspec_testing.small_models import METADATA, small_gradient_model, small_model, write_repository

Edit = Callable[[onnx.ModelProto], None]
Command = Callable[..., subprocess.CompletedProcess[str]]


def described(model: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    """The model with other metadata, complete with the hash of its weights."""
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"weights_sha256": weights_sha256(model)} | changes)
    return model


def renamed(old: str, new: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return edit


def of_64_pixels(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.ints[:] = [8, 8]


def of_a_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def with_result(*nodes: onnx.NodeProto, **constants: Any) -> Edit:
    """Add to the spectra what nodes compute, as "extra", from the structure and constants."""

    def edit(model: onnx.ModelProto) -> None:
        renamed("spectra", "sound")(model)
        model.graph.output[0].name = "spectra"
        model.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
        model.graph.node.extend([*nodes, helper.make_node("Add", ["sound", "extra"], ["spectra"])])

    return edit


NAN_IF_FULL = with_result(
    helper.make_node("GlobalAveragePool", ["structure"], ["pooled_whole"]),
    helper.make_node("Reshape", ["pooled_whole", "axes"], ["mean"]),
    helper.make_node("Sub", ["limit", "mean"], ["rest"]),
    helper.make_node("Sqrt", ["rest"], ["extra"]),
    axes=[-1, 1, 1],
    limit=np.float32(0.9),
)
FAILS_UNLESS_EMPTY = with_result(
    helper.make_node("ReduceMax", ["structure"], ["largest"], keepdims=0),
    helper.make_node("Cast", ["largest"], ["index"], to=TensorProto.INT64),
    helper.make_node("Gather", ["table", "index"], ["extra"]),
    table=np.zeros(1, np.float32),
)


def of_another_shape(model: onnx.ModelProto) -> None:
    """Declares (N, 4, 301) and returns (N, 301, 4), in a way that no engine foresees."""
    graph = model.graph
    renamed("shape", "computed")(model)
    constants = {"swapped": np.array([-1, 301, 4]), "zero": np.zeros(1, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["structure"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
            helper.make_node("Cast", ["nothing"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["swapped", "whole"], ["computed"]),
            *nodes,
        ]
    )


def nothing(model: onnx.ModelProto) -> None:
    pass


WAVELENGTHS = METADATA["wavelengths_nm"]
WIDE = Process(wavelength_max_nm=701).model_dump(mode="json")


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (
            nothing,
            {"wavelengths_nm": WAVELENGTHS[:300]},
            "wavelengths_nm are 300 from 400 to 699 nm, but those of the process are 301",
        ),
        (
            nothing,
            {"wavelengths_nm": [*WAVELENGTHS, 701.0], "process": WIDE},
            "output spectra has shape [N, 4, 301], expected [N, 4, 302]",
        ),
        (nothing, {"channels": ["R", "G1", "G2", "B", "spread"]}, "has shape [N, 4, 301], expected [N, 5, 301]"),
        (nothing, {"wavelengths_nm": WAVELENGTHS[::-1]}, "wavelengths_nm must ascend"),
        (nothing, {"input": {"name": "structure", "solid": 0.0, "void": 1.0}}, "solid must be 1 and void 0"),
        (nothing, {"name": "other"}, "metadata: name is 'other', but the model's folder is 'diffractionnet'"),
        (nothing, {"process": {"period_um": 2.0}}, "process must state thickness_um"),
        (nothing, {"merged_greens": True}, "merged_greens is true, but G1 and G2 in output spectra differ"),
        (nothing, {"weights_sha256": "0" * 64}, "SHA-256 differs"),
        (renamed("spectra", "out"), {}, "outputs must be spectra in a model of kind 'forward', got out"),
        (renamed("structure", "in"), {}, "inputs must be structure in a model of kind 'forward', got in"),
        (of_64_pixels, {}, "input structure has shape [N, 1, 64, 64], expected [N, 1, 128, 128]"),
        (of_a_fixed_batch, {}, "input structure has shape [1, 1, 128, 128], expected a free batch axis"),
        (of_another_shape, {}, "output spectra has shape (1, 301, 4) for 1 structures, expected (1, 4, 301)"),
        (NAN_IF_FULL, {}, "output spectra is not finite for a structure that is full"),
        (FAILS_UNLESS_EMPTY, {}, "it fails on 8 structures"),
    ],
)
def test_what_a_server_would_refuse_is_named(
    tmp_path: Path, command: Command, edit: Edit, changes: dict[str, Any], message: str
) -> None:
    model = small_model()
    edit(model)
    write_repository(tmp_path, described(model, **changes), folder="diffractionnet")
    write_repository(tmp_path, described(small_gradient_model()))
    result = command("inspect", tmp_path)
    assert result.returncode == 1, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "model.onnx: " in line]
    assert line.startswith(f"{tmp_path / 'diffractionnet' / '1' / 'model.onnx'}: ")
    assert message in line
    assert (result.stdout.count("BROKEN"), result.stdout.count("intact")) == (1, 2)  # one in the legend


def test_sound_models(tmp_path: Path, command: Command) -> None:
    write_repository(tmp_path, small_model())  # without a hash of its weights
    write_repository(tmp_path, described(small_gradient_model()))
    result = command("inspect", tmp_path)
    assert result.returncode == 0, result.stdout
    assert (result.stdout.count("intact"), result.stdout.count("no hash")) == (2, 1)  # one in the legend
    assert "CPU" in result.stdout


def test_models_of_one_name_are_of_one_device(tmp_path: Path, command: Command) -> None:
    moved = Process(distance_um=3).model_dump(mode="json")
    write_repository(tmp_path, described(small_model()))
    write_repository(tmp_path, described(small_model(), process=moved), version=2)
    write_repository(tmp_path, described(small_gradient_model(), process=moved))
    result = command("inspect", tmp_path)
    assert result.returncode == 1
    for name, version in (("diffractionnet", 2), ("diffractionnet_vjp", 1)):
        line = (
            f"model.onnx: {name} {version} and diffractionnet 1 are of different processes: distance_um 3.0 against 2.5"
        )
        assert line in result.stdout


def test_damaged_files_and_folders_without_models(tmp_path: Path, command: Command) -> None:
    write_repository(tmp_path / "one", small_model())
    file = tmp_path / "one" / "diffractionnet" / "1" / "model.onnx"
    file.write_bytes(b"no onnx")
    result = command("inspect", tmp_path / "one")
    assert result.returncode == 1
    assert f"{file}: cannot be read" in result.stdout
    model = small_model()
    del model.metadata_props[:]
    onnx.save(model, file)
    result = command("inspect", tmp_path / "one")
    assert result.returncode == 1
    assert f'{file}: no "{METADATA_KEY}" entry in its metadata_props' in result.stdout
    (tmp_path / "empty").mkdir()
    result = command("inspect", tmp_path / "empty")
    assert result.returncode == 2
    assert "no model here" in result.stderr
