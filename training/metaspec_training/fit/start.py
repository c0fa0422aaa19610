"""Where a training starts: from the weights of another one, with parts that keep them."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from metaspec_contract.provenance import Provenance
from metaspec_training.fit.checkpoint import read_checkpoint, warm_start


def start_from(network: nn.Module, weights: Path, provenance: Provenance | None) -> tuple[set[str], Provenance | None]:
    """Load the weights of a checkpoint that fit, and add its data sets to the provenance; warn of what is left out.

    Args:
        network: network that is trained.
        weights: checkpoint to start from.
        provenance: provenance of the data to train on, None if it is not known.

    Returns:
        Names of the weights that start from scratch, and the provenance of both trainings.

    Raises:
        ValueError: the checkpoint cannot be read, or nothing in it fits.
    """
    trained = read_checkpoint(weights)
    try:
        missing = warm_start(network, trained.network)
    except ValueError as error:
        raise ValueError(f"model.weights: nothing in {weights} fits this network: {error}") from None
    if missing:
        normalised = "; no start makes memory_norm change nothing" if "memory_norm.weight" in missing else ""
        rank_zero_warn(f"{weights} has no weights for {', '.join(missing)}: they start from scratch{normalised}")
    if provenance is not None and trained.provenance is None:
        rank_zero_warn(f"{weights} does not state what it was trained on: the provenance will not list it")
    elif provenance is not None and trained.provenance is not None:
        try:
            provenance = with_earlier_data(provenance, trained.provenance, str(weights))
        except ValueError as error:
            rank_zero_warn(f"{error}: the provenance will not list what {weights} was trained on")
    return set(missing), provenance


def freeze_parts(network: nn.Module, parts: list[str], fresh: set[str]) -> list[nn.Module]:
    """Take parts of a network out of training.

    Args:
        network: network that is trained.
        parts: names of its submodules or parameters.
        fresh: names of weights that start from scratch.

    Returns:
        The submodules among them.

    Raises:
        ValueError: the network has no such part, one would stay random, or nothing is left to train.
    """
    frozen = []
    for part in parts:
        named = {name: p for name, p in network.named_parameters() if name == part or name.startswith(f"{part}.")}
        if not named:
            known = [name for name, child in network.named_children() if next(child.parameters(), None) is not None]
            raise ValueError(f"model.freeze: the network has no part {part}; its parts are {', '.join(known)}")
        if unfilled := sorted(fresh & named.keys()):
            raise ValueError(f"model.freeze: {part} would stay random: model.weights states no {unfilled[0]}")
        for parameter in named.values():
            parameter.requires_grad_(False)
        frozen += [module for name, module in network.named_modules() if name == part]
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("model.freeze leaves nothing to train")
    return frozen


def with_earlier_data(provenance: Provenance, earlier: Provenance, weights: str) -> Provenance:
    """A provenance with the data sets of the weights that training started from.

    All data sets of a provenance are of its process and greens, so data sets of other ones cannot be added.

    Args:
        provenance: provenance of the data; its data sets come first.
        earlier: provenance of the weights. Of a data set in both, the larger number of structures is kept.
        weights: name of the weights in messages.

    Raises:
        ValueError: the processes differ, or greens are merged on one side only; both sides are named.
    """
    provenance.require_same_device(earlier, "the data", weights)
    before = {source.name: source for source in earlier.data}
    data = [
        max(source, before.pop(source.name, source), key=lambda each: each.structures) for source in provenance.data
    ]
    return provenance.model_copy(update={"data": (*data, *before.values())})
