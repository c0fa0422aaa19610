"""Checkpoints: the trained network and its provenance, and its weights as the start of another training."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from metaspec_contract.provenance import Provenance
from metaspec_contract.validation import first_error
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig
from metaspec_training.networks.query import DiffractionNet, DiffractionNetConfig

NETWORK, PROVENANCE = "network", "provenance"
"""Keys of a checkpoint, beside Lightning's: class and settings of the network; what it was trained on."""

_CONFIGS: dict[str, type[NetworkConfig]] = {
    kind.__name__: kind for kind in (DiffractionNetConfig, DiffractionFieldNetConfig)
}


_DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""Errors of torch and of ours for files that are not checkpoints."""


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        network: the network, on the CPU, in evaluation mode.
        provenance: what it was trained on; None for checkpoints written before this was recorded.
    """

    network: nn.Module
    provenance: Provenance | None


def read_checkpoint(path: Path) -> Trained:
    """Read a network and its provenance. No code in the file is run.

    Raises:
        ValueError: the file cannot be read, is not a checkpoint of this version, has weights that are not finite, or a
            malformed provenance or one of another device than the network.
    """
    return rebuild(_contents(path), str(path))


def write_checkpoint(path: Path, config: NetworkConfig, weights: Mapping[str, Tensor], known: Provenance) -> None:
    """Write a checkpoint as `read_checkpoint` reads it: a network and its provenance, but no training to resume.

    Args:
        path: file to write.
        config: settings of the network.
        weights: its weights, by their names in it; of half precision, they take half the space.
        known: what it was trained on.
    """
    state = {NETWORK: (type(config).__name__, config.to_dict()), PROVENANCE: known.model_dump(mode="json")}
    named = {f"network.{name}": weight for name, weight in weights.items()}
    with path.open("wb") as file:  # by its name, torch refuses one that starts with a dot and has no suffix
        torch.save(state | {"state_dict": named}, file)


def rebuild(state: Mapping[str, Any], name: str) -> Trained:
    """The network of a checkpoint's contents, with its weights, and its provenance.

    Args:
        state: contents: class and settings of the network, its weights under `state_dict`, and the provenance if it is known.
        name: name of the checkpoint in messages.

    Raises:
        ValueError: see `read_checkpoint`.
    """
    try:
        kind, settings = state[NETWORK]
        network = _CONFIGS[kind].from_dict(settings).build()
        weights = {key.removeprefix("network."): value for key, value in state["state_dict"].items()}
        network.load_state_dict(weights)
    except _DAMAGED as error:
        raise _unreadable(name, error) from error
    for key, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} has weights that are not finite, in {key}")
    provenance = stored_provenance(state, name)
    device = getattr(network.config, "process", None)
    if provenance is not None and device is not None and (difference := device.difference(provenance.process)):
        raise ValueError(f"the network of {name} and its provenance are of different processes: {difference}")
    return Trained(network.eval(), provenance)


def _contents(path: Path) -> Mapping[str, Any]:
    """What a file of torch holds, read without running code in it.

    Raises:
        ValueError: the file cannot be read, or holds something else than weights and settings.
    """
    try:
        if not saved_by_torch(path):
            raise ValueError("it holds something else than weights and settings")
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except _DAMAGED as error:
        raise _unreadable(str(path), error) from error
    return state


def _unreadable(name: str, error: Exception) -> ValueError:
    first = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's advice to run the code in it is none of ours
        first = "it holds something else than weights and settings"
    return ValueError(f"{name} is not a checkpoint that this version can read: {first}")


def saved_by_torch(path: Path) -> bool:
    """Whether a file starts like those of `torch.save`: a zip archive or, from before torch 1.6, a pickle.

    `torch.load` takes the first bytes of any other file, such as one of text, for instructions to unpickle.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def require_resumable(path: Path) -> None:
    """Refuse a checkpoint that a training cannot resume from.

    Raises:
        ValueError: as `read_checkpoint`, or it holds weights without the state of a training.
    """
    state = _contents(path)
    rebuild(state, str(path))
    if "optimizer_states" not in state:
        raise ValueError(f"{path} holds weights, but no training to resume: start from them with model.weights")


def load_network(path: Path) -> nn.Module:
    """The network of a checkpoint; see `read_checkpoint`."""
    return read_checkpoint(path).network


def stored_provenance(state: Mapping[str, Any], name: str) -> Provenance | None:
    """The provenance in a checkpoint's contents, None if it holds none.

    Args:
        state: contents of the checkpoint.
        name: name of the checkpoint in messages.

    Raises:
        ValueError: it is malformed.
    """
    document = state.get(PROVENANCE)
    if document is None:
        return None
    try:
        return Provenance.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{name} has a malformed provenance: {first_error(error)}") from None


def warm_start(network: nn.Module, source: nn.Module) -> list[str]:
    """Copy the weights of a trained network that have the same name and shape, or that can be made to.

    A field in another number of splines is refitted (`DiffractionFieldNet.with_basis`). A shift becomes the shift of a FiLM
    with scale, and one head four equal ones, which leaves the network's function as it was; the positions of 17 tokens are
    interpolated to 65.

    Returns:
        Names of the weights that `source` does not have, and which keep their initial values.

    Raises:
        ValueError: nothing in it fits.
    """
    if isinstance(source, DiffractionFieldNet) and isinstance(network, DiffractionFieldNet):
        splines = network.config.spectral_basis
        source = source if source.config.spectral_basis == splines else source.with_basis(splines)
    trained, own = source.state_dict(), network.state_dict()
    if isinstance(source, DiffractionNet) and isinstance(network, DiffractionNet):
        trained |= _improved(trained, source.config, network.config)
    fitting = {name: value for name, value in trained.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ValueError(f"no weight of {type(source).__name__} fits this {type(network).__name__}")
    network.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))


def _improved(
    trained: Mapping[str, Tensor], before: DiffractionNetConfig, after: DiffractionNetConfig
) -> dict[str, Tensor]:
    """Weights of a `DiffractionNet` for the improvements that one of other settings has in addition.

    Args:
        trained: weights of the trained network.
        before: its settings.
        after: settings of the new network.
    """
    improved = {}
    if after.film_scale and not before.film_scale:
        for name in ("film.out.weight", "film.out.bias"):
            shift = trained[name]
            improved[name] = torch.cat([torch.zeros_like(shift), shift])  # gamma, beta
    if after.detector_heads and not before.detector_heads:
        for head in range(4):
            for name in ("weight", "bias"):
                improved[f"heads.{head}.0.{name}"] = trained[f"heads.0.0.{name}"]
                improved[f"heads.{head}.3.{name}"] = trained[f"heads.0.3.{name}"][head : head + 1]
    if after.fine_tokens and not before.fine_tokens:
        spatial, pooled = trained["positions"].split([16, 1])
        improved["positions"] = torch.cat([_doubled(spatial.unflatten(0, (4, 4))).flatten(0, 1), pooled])
    return improved


def _doubled(grid: Tensor) -> Tensor:
    """A periodic map (y, x, ...) on twice as many points along both axes, by bilinear interpolation.

    Even points are those of the map: a convolution of stride 2 is centred on every other point.
    """
    for axis in (0, 1):
        between = (grid + grid.roll(-1, axis)) / 2
        grid = torch.stack([grid, between], dim=axis + 1).flatten(axis, axis + 1)
    return grid
