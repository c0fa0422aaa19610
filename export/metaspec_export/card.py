"""The model card: what a published model is, how accurate it is and what it is not for, from its own metadata."""

from __future__ import annotations

from typing import Any

from metaspec_contract.detectors import SPREAD
from metaspec_contract.provenance import DataSource
from metaspec_export.metadata import ExportedMetadata

_ARCHITECTURES = {"DiffractionNet": "Wavelength-query decoder", "DiffractionFieldNet": "Field decoder"}
"""Architectures in words, by class of the network."""

MERGED_GREENS = "The training data held only the mean of G1 and G2: both channels are that mean."


def model_card(metadata: ExportedMetadata) -> str:
    """Model card in Markdown, made of the metadata in the model file (after Mitchell et al., "Model Cards", 2019)."""
    process, training = metadata.process, metadata.training
    architecture = _ARCHITECTURES.get(training.network, "Network")
    preset = f", preset {training.preset}" if training.preset else ""
    wavelengths = metadata.wavelengths_nm
    warning = f"\n**{metadata.warning}**\n" if metadata.warning else ""
    merged = f"\n{MERGED_GREENS}\n" if metadata.merged_greens else ""
    return f"""# {metadata.name}
{warning}
{architecture} ({training.network}{preset}), {training.parameters / 1e6:.1f} million parameters, {metadata.precision}.
{_computes(metadata)}

## Device

Period {process.period_um} um, {process.thickness_um} um of {process.solid.name} in vacuum on {process.substrate.name},
detectors {process.distance_um} um below; {len(wavelengths)} wavelengths from {wavelengths[0]:g} to {wavelengths[-1]:g} nm.
Other devices need data and a model of their own.

## Data

{_data(training.data)}
{merged}
Splits are by orbit: no translation, rotation or mirror image of a structure is in two of them.

## Errors

On {metadata.evaluated_on}. Efficiencies lie between 0 and 1; the loss has weights 2, 0.1 and 100; green is G1 + G2.

{_errors(metadata)}
{_trivial(metadata)}
The labels have errors of their own, see `docs/simulation.md`.
{_tolerance(metadata.tolerance)}

## What it is not for

The network knows structures like those of its data sets. On others, and on grey ones during an optimisation where these sets
hold none, errors are larger than stated. An optimiser finds such structures: check a final design with the solver.

Source revision {metadata.source_revision}.
SHA-256 of the trained network {metadata.network_sha256}, of the weights in this file {metadata.weights_sha256}.
"""


def _computes(metadata: ExportedMetadata) -> str:
    """Inputs and outputs in words."""
    channels, wavelengths = metadata.spectra_shape
    detectors = [channel for channel in metadata.channels if channel != SPREAD]
    text = f"""From a structure, (N, 1, 128, 128) with 1 = solid, to the efficiencies of the detectors {", ".join(detectors)},
(N, {channels}, {wavelengths})."""
    if metadata.conditions:
        taken = "; ".join(map(str, metadata.conditions))
        text += f" It takes conditions for each structure: {taken}. Errors are those at the defaults."
    if metadata.kind == "vjp":
        text += """ With a cotangent of the shape of the efficiencies, also to the gradient of their sum weighted by
the cotangent, of the shape of the structure."""
        if metadata.conditions:
            text += " Likewise to the gradients with respect to the conditions."
    return text + (_spread(metadata) if SPREAD in metadata.channels else "")


def _spread(metadata: ExportedMetadata) -> str:
    """The channel after the detectors in words."""
    quantiles = metadata.metrics["validation"][SPREAD]["quantiles"]
    half, most = (f"{quantiles[share]:.4f}" for share in ("0.5", "0.99"))
    return f"""

The network is run on {metadata.forward_passes} symmetric images of the structure, whose exact spectra are the same but for the
order of the detectors. The efficiencies are the mean of these predictions. A fifth channel, "{SPREAD}", is the root mean
square of their deviation from that mean, over images and detectors: the larger it is, the less reliable they are. Its mean over
wavelengths is below {half} for half of the structures of the validation split, and below {most} for 99 % of them. An error
that all images share does not show in it."""


def _data(sources: list[DataSource | dict[str, Any]]) -> str:
    """One line for each data set."""
    lines = []
    for source in sources:
        one = source.model_dump() if isinstance(source, DataSource) else source
        if not one["structures"]:
            lines.append(f"- {one['name']}: the data are not known")
            continue
        grid = f" with {one['solver']['cells']} cells per period" if "cells" in one["solver"] else ""
        lines.append(
            f"- {one['name']}: {one['structures']} training structures, labelled by {one['solver']['name']}{grid}"
        )
    return "\n".join(lines)


def _errors(metadata: ExportedMetadata) -> str:
    """Errors by split as a table."""
    detectors = [channel for channel in metadata.channels if channel != SPREAD]
    head = ["split", "structures", "MAE", "rms", *(f"MAE {d}" for d in detectors), "colour efficiency", "R2", "loss"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for split, measured in metadata.metrics.items():
        by_detector = [f"{measured['mae_by_detector'][d]:.4f}" for d in detectors]
        count, of = measured["count"], measured["of"]
        cells = [
            split,
            f"{count}" if count == of else f"{count} of {of}",
            f"{measured['mae']:.4f}",
            f"{measured['rms']:.4f}",
            *by_detector,
        ]
        colours = measured["colour_efficiency"]
        cells += ["" if colours is None else f"{colours:.4f}", f"{measured['r2']:.3f}", f"{measured['loss']:.2e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _trivial(metadata: ExportedMetadata) -> str:
    """The error of the mean spectrum in a sentence."""
    trivial = metadata.metrics["test"].get("mean_spectrum_mae")
    if trivial is None:
        return ""
    return f"\nThe mean spectrum of the training data has a MAE of {trivial:.4f} on the test split.\n"


def _tolerance(tolerance: dict[str, Any]) -> str:
    text = f"Its efficiencies differ by at most {tolerance['measured']:.1e} from those of {tolerance['against']}"
    if "gradient" in tolerance:
        text += f", its gradient by {tolerance['gradient']['measured']:.1e} of its size"
    return f"{text}."
