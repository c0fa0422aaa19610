"""From a trained network to verified models that are ready to be published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from metaspec_contract.conditions import spread_conditions
from metaspec_contract.model import DEFAULT_MODEL, ModelMismatch
from metaspec_contract.provenance import require_same_device
from metaspec_export import tensorrt, triton_config
from metaspec_export.card import model_card
from metaspec_export.graph import forward_graph, gradient_graph, require_portable
from metaspec_export.half_weights import halve, require_close
from metaspec_export.inspection import newest_metadata, require_answers
from metaspec_export.metadata import ExportedMetadata, attach, common_facts, images_of, measure
from metaspec_export.parity import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    check_gradient_parity,
    check_parity,
    is_gradient,
    run,
    session,
    spectra_of,
)
from metaspec_export.precision import TOLERANCES, Precision, deviation, reduce, require_within
from metaspec_export.publish import Publication, model_name
from metaspec_export.source import COMPARED, Source
from metaspec_simulation.dataset import Samples
from metaspec_training.networks.layers import conditions_of
from metaspec_training.networks.symmetric import SymmetricNetwork

Report = Callable[[str], None]


@dataclass(frozen=True)
class Variants:
    """Which models to make of a network.

    Attributes:
        name: name of the network in the repository.
        precisions: precisions of the models.
        gradient: whether to make the gradient models, too.
        images: number of symmetric images of the models over images; None leaves these models out.
        engines: whether to build TensorRT engines.
        half_weights: whether to store weights in float16, to be computed with in float32.
    """

    name: str = DEFAULT_MODEL
    precisions: Sequence[Precision] = ("fp32",)
    gradient: bool = True
    images: int | None = None
    engines: bool = False
    half_weights: bool = False

    @property
    def names(self) -> list[str]:
        """Names of all models.

        Raises:
            ValueError: `name` cannot be one.
        """
        return [
            model_name(precision, gradient, symmetric, self.name)
            for symmetric, gradient in self.graphs
            for precision in self.precisions
        ]

    @property
    def graphs(self) -> list[tuple[bool, bool]]:
        """Graphs to trace, (symmetric, gradient): gradients first, so that whoever sees a model finds its gradient."""
        symmetric = (False,) if self.images is None else (False, True)
        return [(one, gradient) for one in symmetric for gradient in ((True, False) if self.gradient else (False,))]


def build(source: Source, variants: Variants, revision: str, report: Report) -> Iterator[Publication]:
    """Trace, verify, reduce and measure all models of a network.

    Args:
        source: network, provenance and data.
        variants: models to make.
        revision: revision of the code, for the metadata.
        report: called with a line of progress.

    Raises:
        ValueError: models over symmetric images are not possible, or a server would refuse a model.
        OperatorError: a graph has operators that not every engine runs.
        ParityError: a graph deviates from the network.
        DeviationError: a reduced precision deviates too much.
        HalfWeightsError: weights stored in half precision change the spectra too much.
        TensorRTUnavailable: engines cannot be built.
    """
    networks: dict[bool, nn.Module] = {False: source.served}
    warning: str | None = None
    if variants.images is not None:
        networks[True] = _symmetric(source, variants.images)
    for symmetric, gradient in variants.graphs:
        network = networks[symmetric]
        traced = model_name("fp32", gradient, symmetric, variants.name)
        report(f"Tracing {traced}{', about a minute' if gradient else ''} ...")
        graph, tolerance = _trace(network, source.samples, gradient, report)
        # The rest is small, and rounding it costs more: biases, normalisations, and heads, which set the phases of the field.
        matrices = {
            f"network.{weight}"
            for weight, values in network.named_parameters()
            if values.dim() > 1 and "head" not in weight
        }
        halved = matrices if variants.half_weights else set()
        facts = common_facts(source, images_of(network), revision) | {"kind": "vjp" if gradient else "forward"}
        for precision in variants.precisions:
            name = model_name(precision, gradient, symmetric, variants.name)
            facts |= {"name": name, "precision": precision, "tolerance": tolerance}
            model, measured = _in_precision(graph, precision, source, halved, report)
            metadata = attach(model, facts | measured)
            _require_served(model, metadata)
            warning = warning or metadata.warning
            yield _publication(model, metadata, variants.engines, report)
    if warning is not None:
        report(warning)


def require_same_device_as_published(source: Source, repository: Path, names: Sequence[str]) -> None:
    """Refuse to replace a model by one of another device: its clients would not notice.

    Args:
        source: network and provenance.
        repository: model repository.
        names: names of the models to publish.

    Raises:
        ValueError: the newest version of one of them is of another device.
    """
    for name in names:
        if (published := newest_metadata(repository, name)) is not None:
            try:
                require_same_device(
                    source.provenance, published, f"checkpoint {source.checkpoint}", f"{repository / name}"
                )
            except ValueError as error:
                raise ValueError(f"{error}; publish it under another --name") from None


def _symmetric(source: Source, images: int) -> SymmetricNetwork:
    if source.provenance.merged_greens:
        raise ValueError(
            f"--symmetric: {source.checkpoint} was trained on the mean of G1 and G2 only, and mirror images exchange "
            "greens with red and blue: its predictions for images cannot be averaged"
        )
    return SymmetricNetwork(source.network, images)


def _trace(
    network: nn.Module, samples: Samples, gradient: bool, report: Report
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The float32 graph, compared with PyTorch, and its tolerance."""
    compared = samples.of("test", COMPARED).structures
    trace = gradient_graph if gradient else forward_graph
    graph = trace(network, samples.process.pixels)
    require_portable(graph)
    if not gradient:
        difference = check_parity(network, graph.SerializeToString(), compared)
        report(f"ONNX Runtime agrees with PyTorch to {difference:.1e} on {len(compared)} test structures.")
        return graph, _tolerance(difference)
    parity = check_gradient_parity(network, graph.SerializeToString(), compared[:16])
    report(
        f"The gradient agrees with torch.autograd to {parity.autograd:.1e}, with finite differences to "
        f"{parity.finite_differences:.1e} of its largest element."
    )
    measured = {"measured": parity.autograd, "finite_differences": parity.finite_differences}
    return graph, _tolerance(parity.spectra) | {"gradient": {"allowed": GRADIENT_TOLERANCE, **measured}}


def _tolerance(difference: float) -> dict[str, Any]:
    return {"allowed": TOLERANCE, "measured": difference, "against": f"torch {torch.__version__}"}


def _in_precision(
    graph: onnx.ModelProto, precision: Precision, source: Source, halved: set[str], report: Report
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph in a precision, with the weights of some names stored in half, within its tolerance, and what was measured."""
    samples, conditions = source.samples, conditions_of(source.network)
    model = reduce(graph, precision, samples.of("train").structures, conditions)
    if halved and precision == "fp32":
        model = _with_half_weights(model, halved, source, report)
    elif halved:  # the smallest change can move an integer to the next one: what counts is the deviation below
        model = halve(model, halved)
    served = session(model.SerializeToString())
    if precision == "fp32":
        return model, {"metrics": measure(served, source)}
    validation = samples.of("validation", COMPARED).structures
    cotangent = None
    if is_gradient(served):
        shape = (len(validation), *served.get_outputs()[0].shape[1:])
        cotangent = np.random.default_rng(0).standard_normal(shape, np.float32)
    exact = session(graph.SerializeToString())
    given = spread_conditions(conditions, len(validation))
    got, expected = (tuple(run(one, validation, cotangent, conditions=given)) for one in (served, exact))
    found = deviation(got, expected, samples.process)
    require_within(found, precision)
    report(
        f"{precision} deviates from fp32 by {found.mean_abs:.1e} in the mean, {found.max_abs:.1e} at most"
        + (f", the gradient by {100 * found.gradient:.2g} %." if found.gradient is not None else ".")
    )
    allowed = TOLERANCES[precision]
    tolerance: dict[str, Any] = {"allowed": allowed.max_abs, "measured": found.max_abs, "against": "fp32"}
    if found.gradient is not None:
        tolerance["gradient"] = {"allowed": allowed.gradient, "measured": found.gradient}
    return model, {
        "metrics": measure(served, source),
        "tolerance": tolerance,
        "deviation": asdict(found),
    }


def _with_half_weights(model: onnx.ModelProto, names: set[str], source: Source, report: Report) -> onnx.ModelProto:
    """The graph with weights stored in half precision, held against what it was on validation structures."""
    stored, structures = halve(model, names), source.samples.of("validation", COMPARED).structures
    given = spread_conditions(conditions_of(source.network), len(structures))
    spectra = [spectra_of(session(one.SerializeToString()), structures, given) for one in (model, stored)]
    change = float(np.abs(spectra[0] - spectra[1]).max())
    require_close(change)
    report(f"Weights stored in half precision change an efficiency by {change:.1e} at most.")
    return stored


def _require_served(model: onnx.ModelProto, metadata: ExportedMetadata) -> None:
    """Refuse what a server would refuse when it loads the model."""
    try:
        require_answers(session(model.SerializeToString()), metadata)
    except ModelMismatch as error:
        raise ModelMismatch(f"{metadata.name} refused, as a server would: {error}") from None


def _publication(model: onnx.ModelProto, metadata: ExportedMetadata, engines: bool, report: Report) -> Publication:
    """The files of a model's version."""
    graph, wanted = model.SerializeToString(), triton_config.signature(metadata)
    files = {"model.onnx": graph, "MODEL_CARD.md": model_card(metadata).encode()}
    if metadata.precision != "int8":
        files["tensorrt.json"] = triton_config.to_json(triton_config.tensorrt_options(wanted))
        if engines:
            report(f"Building TensorRT engines of {metadata.name} ...")
            files |= tensorrt.build_engines(graph, wanted)
    return Publication(metadata.name, triton_config.config_pbtxt(metadata, metadata.precision), files)
