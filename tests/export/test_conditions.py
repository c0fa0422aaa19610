"""Networks that take conditions: a made-up one with two numbers and a vector, and the distance of a field net."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from metaspec_contract.conditions import check_conditions, spread_conditions
from metaspec_contract.model import parse_metadata
from metaspec_contract.provenance import Provenance
from metaspec_contract.structures import Structure
from metaspec_export.build import Variants, build
from metaspec_export.graph import forward_graph, require_portable
from metaspec_export.inspection import inspect
from metaspec_export.parity import ParityError, check_parity, run, session
from metaspec_export.precision import reduce
from metaspec_export.publish import publish
from metaspec_export.source import Source, read_source
from metaspec_testing.made_up_network import MadeUpNetConfig
from metaspec_testing.triton import python_repository, start_triton
from metaspec_training.fit.checkpoint import load_network
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.layers import conditions_of
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.report.evaluation import predict

Command = Callable[..., "subprocess.CompletedProcess[str]"]
MakeCheckpoint = Callable[..., Path]

TAKEN = [("distance_um", [1]), ("thickness_um", [1]), ("incidence", [2])]
TENSORS = {
    "made_up": ([("structure", [1, 128, 128]), *TAKEN], [("spectra", [5, 31])]),
    "made_up_vjp": (
        [("structure", [1, 128, 128]), ("cotangent", [5, 31]), *TAKEN],
        [
            ("spectra", [5, 31]),
            ("gradient", [1, 128, 128]),
            *((f"gradient_{name}", shape) for name, shape in TAKEN),
        ],
    ),
}


@pytest.fixture(scope="module")
def made_up(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    """A repository of the made-up network over symmetric images: its spread is a fifth channel."""
    known = read_source(checkpoint, [data])
    torch.manual_seed(0)
    source = replace(known, network=MadeUpNetConfig(known.provenance.process).build().eval())
    repository = tmp_path_factory.mktemp("conditions")
    variants = Variants(name="made_up", precisions=("fp32", "fp16"), images=2)
    publish(repository, 1, list(build(source, variants, "test", lambda line: None)))
    return repository, source


def graph_of(repository: Path, name: str) -> onnx.ModelProto:
    return onnx.load(repository / name / "1" / "model.onnx")


def test_two_conditions_and_a_vector_in_files_of_every_variant(made_up: tuple[Path, Source]) -> None:
    repository, source = made_up
    inspected = inspect(repository)
    assert [one.problem for one in inspected] == [None] * 8
    conditions = conditions_of(source.network)
    for one in inspected:
        assert one.metadata is not None
        assert one.metadata.schema_version == 3
        assert one.metadata.conditions == conditions
        assert "distance_um between 1 and 3 um, default 2;" in (one.path.parent / "MODEL_CARD.md").read_text()
        config = text_format.Parse((repository / one.name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        described = json.loads(config.parameters["metaspec"].string_value)
        assert described["conditions"] == [condition.model_dump(mode="json") for condition in conditions]
        inputs, outputs = one.metadata.tensors
        for tensors, expected in ((config.input, inputs), (config.output, outputs)):
            assert {tensor.name: tuple(tensor.dims) for tensor in tensors} == expected
            assert not any(tensor.optional for tensor in tensors if hasattr(tensor, "optional"))  # Triton refuses them
        assert set(config.model_warmup[0].inputs) == set(inputs)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_and_their_free_batch_axis(made_up: tuple[Path, Source], name: str) -> None:
    graph = graph_of(made_up[0], name.replace("made_up", "made_up_symmetric")).graph
    require_portable(graph_of(made_up[0], name))
    for values, expected in zip((graph.input, graph.output), TENSORS[name], strict=True):
        shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]
        assert [value.name for value in values] == [key for key, _ in expected]
        assert shapes == [["N", *dims] for _, dims in expected]


def test_rows_take_their_own_values(made_up: tuple[Path, Source], unseen: Structure) -> None:
    repository, source = made_up
    given = {
        "distance_um": np.array([[1], [3], [2.5]], np.float32),
        "thickness_um": np.array([[0.5], [0.6], [0.7]], np.float32),
        "incidence": np.zeros((3, 2), np.float32),
    }
    given["incidence"][1] = 20
    served = session(graph_of(repository, "made_up").SerializeToString())
    (together,) = run(served, unseen[:3], conditions=given)
    for n in range(3):
        alone = {name: values[n : n + 1] for name, values in given.items()}
        np.testing.assert_allclose(run(served, unseen[n : n + 1], conditions=alone)[0][0], together[n], atol=1e-6)
    default = check_conditions(conditions_of(source.network), {}, 3)
    np.testing.assert_allclose(
        run(served, unseen[:3], conditions=default)[0], predict(source.network, unseen[:3]), atol=1e-6
    )
    assert np.abs(together[1] - run(served, unseen[:3], conditions=default)[0][1]).max() > 0.01


def test_a_graph_that_ignores_a_condition_is_found_out(made_up: tuple[Path, Source], unseen: Structure) -> None:
    repository, source = made_up
    graph = graph_of(repository, "made_up")
    fixed = onnx.numpy_helper.from_array(np.array([[0, 5]], np.float32), "fixed")
    graph.graph.initializer.append(fixed)
    for node in graph.graph.node:
        node.input[:] = ["fixed" if name == "incidence" else name for name in node.input]
    with pytest.raises(ParityError, match="deviates from PyTorch"):
        check_parity(source.network, graph.SerializeToString(), unseen[:4])


@pytest.fixture(scope="module")
def field(trained_on: Provenance, data: Path, command: Command, make_checkpoint: MakeCheckpoint, checkpoint: Path,
          tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiffractionFieldNet]:  # fmt: skip
    """What the command publishes of a field net whose settings state a range of distances."""
    config = DiffractionFieldNetConfig(
        stem=16, width=32, blocks=1, spectral_basis=8, wavelength_nodes=16, process=trained_on.process,
        distance_range_um=(1.0, 3.0),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("field")
    file = make_checkpoint(folder / "last.ckpt", config, trained_on)
    result = command(file, "--repository", folder / "repository", "--data", data, "--allow-dirty")
    assert result.returncode == 0, result.stderr
    network = load_network(file)
    assert isinstance(network, DiffractionFieldNet)
    return folder / "repository", network


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_distance_of_a_field_net(
    field: tuple[Path, DiffractionFieldNet], unseen: Structure, tmp_path: Path
) -> None:
    """Its graphs take it for each row; at the default they predict what they do without; a stock client of Triton sends it."""
    repository, network = field
    assert [one.problem for one in inspect(repository)] == [None] * 2
    metadata = parse_metadata({one.key: one.value for one in graph_of(repository, "diffractionnet").metadata_props})
    assert [str(one) for one in metadata.conditions] == ["distance_um between 1 and 3 um, default 2"]
    served = session(graph_of(repository, "diffractionnet").SerializeToString())
    rows = unseen[:4]
    default = check_conditions(network.conditions, {}, 4)
    without = DiffractionFieldNet(replace(network.config, distance_range_um=None)).eval()
    without.load_state_dict(network.state_dict())
    plain = session(forward_graph(without, 128).SerializeToString())
    assert [value.name for value in plain.get_inputs()] == ["structure"]
    np.testing.assert_allclose(run(served, rows, conditions=default)[0], run(plain, rows)[0], atol=1e-6)
    given = spread_conditions(network.conditions, 4)
    integer = reduce(graph_of(repository, "diffractionnet"), "int8", rows, network.conditions)
    found = run(session(integer.SerializeToString()), rows, conditions=given)[0]
    np.testing.assert_allclose(found, run(served, rows, conditions=given)[0], atol=0.02)
    cotangent = np.random.default_rng(0).standard_normal((4, 4, 31), np.float32)
    gradients = session(graph_of(repository, "diffractionnet_vjp").SerializeToString())
    spectra, _, by_distance = run(gradients, rows, cotangent, conditions=given)
    np.testing.assert_allclose(spectra, run(served, rows, conditions=given)[0], atol=1e-6)
    up, down = (
        predict(network, rows, conditions={"distance_um": given["distance_um"] + np.float32(sign * 0.01)}).astype(float)
        for sign in (1, -1)
    )
    expected = (cotangent * (up - down)).sum(axis=(1, 2)) / 0.02
    np.testing.assert_allclose(by_distance[:, 0], expected, atol=0.02 * np.abs(expected).max())

    feed = {"structure": rows[:, None].astype(np.float32), **given}
    with start_triton(python_repository(repository, tmp_path / "triton"), tmp_path) as triton:
        for client, address in ((tritonclient.http, triton.http), (tritonclient.grpc, triton.grpc)):
            with client.InferenceServerClient(address) as connection:
                tensors = []
                for name, value in feed.items():
                    tensors.append(client.InferInput(name, list(value.shape), "FP32"))
                    tensors[-1].set_data_from_numpy(value)
                answer = connection.infer("diffractionnet", tensors).as_numpy("spectra")
                np.testing.assert_allclose(answer, served.run(None, feed)[0], atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_is_given_the_distance(
    checkpoint: Path, data: Path, command: Command, unseen: Structure, tmp_path: Path
) -> None:
    """Its network was trained at one distance; no weight depends on it."""
    given = ("--data", data, "--no-gradient", "--allow-dirty", "--repository", tmp_path / "repository")
    for name, option in (("plain", ()), ("ranged", ("--distance-um", 1.5, 2.75))):
        result = command(checkpoint, *given, "--name", name, *option)
        assert result.returncode == 0, result.stderr
    plain, ranged = (
        session(graph_of(tmp_path / "repository", name).SerializeToString()) for name in ("plain", "ranged")
    )
    metadata = parse_metadata(
        {one.key: one.value for one in graph_of(tmp_path / "repository", "ranged").metadata_props}
    )
    assert [str(one) for one in metadata.conditions] == ["distance_um between 1.5 and 2.75 um, default 2"]
    default, near = (check_conditions(metadata.conditions, one, 4) for one in ({}, {"distance_um": 1.5}))
    expected = run(plain, unseen[:4])[0]
    np.testing.assert_allclose(run(ranged, unseen[:4], conditions=default)[0], expected, atol=1e-6)
    assert np.abs(run(ranged, unseen[:4], conditions=near)[0] - expected).max() > 1e-3


@pytest.mark.parametrize("distances", [(3, 1), (2.25, 3), (0, 3)])
def test_ranges_that_are_none(
    checkpoint: Path, data: Path, command: Command, tmp_path: Path, distances: tuple[float, float]
) -> None:
    result = command(
        checkpoint, "--data", data, "--repository", tmp_path / "none", "--distance-um", *distances, "--allow-dirty"
    )
    low, high = (f"{one:g}" for one in distances)
    assert result.returncode == 2
    assert "--distance-um: model.config.distance_range_um must ascend, above 0, and hold distance_um" in result.stderr
    assert f"2, got {low} and {high}" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_network_that_knows_one_distance(
    data: Path, trained_on: Provenance, command: Command, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    config = DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2, wavelengths=31, process=trained_on.process)
    file = make_checkpoint(tmp_path / "last.ckpt", config, trained_on)
    result = command(file, "--data", data, "--repository", tmp_path / "none", "--distance-um", 1, 3, "--allow-dirty")
    assert result.returncode == 2
    assert "--distance-um needs a network that predicts the field, DiffractionFieldNet" in result.stderr
