"""The model card: what a published model is, how good it is and what it is not for, from its own metadata."""

from __future__ import annotations

from typing import Any

from metaspec_contract.detectors import SPREAD


def _spread(metadata: dict[str, Any]) -> str:
    """What the channel after the detectors is."""
    quantiles = metadata["metrics"]["validation"][SPREAD]["quantiles"]
    half, most = (f"{quantiles[share]:.4f}" for share in ("0.5", "0.99"))
    return f"""

The network is run on {metadata["forward_passes"]} symmetric images of the structure; exact spectra would be the same, but for
the order of the detectors. The efficiencies are the mean of these predictions. A fifth channel, "{SPREAD}", is the root mean
square, over images and detectors, of their deviation from it: the larger it is, the less they are to trust. Its mean over
wavelengths is below {half} for half of the structures of the validation split, and below {most} for 99 % of them. An error
that all images share does not show in it."""


def model_card(metadata: dict[str, Any]) -> str:
    """Markdown for people, of the JSON that travels in the model file (after Mitchell et al., "Model Cards", 2019)."""
    process, training, tolerance = metadata["process"], metadata["training"], metadata["tolerance"]
    channels, wavelengths = metadata["channels"], metadata["wavelengths_nm"]
    detectors = [channel for channel in channels if channel != SPREAD]
    head = ["split", "structures", "MAE", "rms", *(f"MAE {d}" for d in detectors), "colour efficiency", "R2", "loss"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for split, measured in metadata["metrics"].items():
        by_detector = [f"{measured['mae_by_detector'][d]:.4f}" for d in detectors]
        cells = [split, str(measured["count"]), f"{measured['mae']:.4f}", f"{measured['rms']:.4f}", *by_detector]
        cells += [f"{measured['colour_efficiency']:.4f}", f"{measured['r2']:.3f}", f"{measured['loss']:.2e}"]
        lines.append("| " + " | ".join(cells) + " |")
    errors = "\n".join(lines)
    exact = f"Its efficiencies differ by at most {tolerance['measured']:.1e} from those of {tolerance['against']}"
    if "gradient" in tolerance:
        exact += f", its gradient by {tolerance['gradient']['measured']:.1e} of its size"
    computes = f"""From a structure, (N, 1, 128, 128) with 1 = solid, to the efficiencies of the detectors
{", ".join(detectors)} at {len(wavelengths)} wavelengths from {wavelengths[0]:g} to {wavelengths[-1]:g} nm,
(N, {len(channels)}, {len(wavelengths)})."""
    if metadata["kind"] == "vjp":
        computes += """ With a cotangent of the shape of the efficiencies, to the
gradient of their sum weighted by the cotangent, of the shape of the structure."""
    if SPREAD in channels:
        computes += _spread(metadata)
    data = "\n".join(
        f"- {part['name']}: {part['structures']} structures to train on, labelled by {part['solver']['name']}"
        + (f" with {part['solver']['cells']} cells a period" if "cells" in part["solver"] else "")
        for part in training["data"]
    )
    return f"""# {metadata["name"]}

{training["network"]}, {training["parameters"] / 1e6:.1f} million parameters, {metadata["precision"]}.
{computes}

## Device

Period {process["period_um"]} um, {process["thickness_um"]} um of {process["solid"]["name"]} in vacuum on
{process["substrate"]["name"]}, detectors {process["distance_um"]} um below. Other devices need data and a model of their own.

## Data

{data}

Splits are by orbit: no translation, rotation or mirror image of a structure is in two of them.

## Errors

On {training["data"][0]["name"]}. Efficiencies lie between 0 and 1; the loss has weights 2, 0.1 and 100; green counts G1 + G2.

{errors}

The labels have errors of their own, see `docs/simulation.md`.
{exact}.

## What it is not for

It is trained on binary structures like those of its data set. On others, and on grey ones in the course of an optimisation,
errors are larger than stated. An optimiser finds such places: check a final design with the solver.

Source revision {metadata["source_revision"]}; SHA-256 of the weights {metadata["weights_sha256"]}.
"""
