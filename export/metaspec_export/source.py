"""What is exported: a trained network, what it was trained on, and the data set that errors are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_contract.provenance import Provenance
from metaspec_simulation.dataset import Samples, load, provenance
from metaspec_training.fit.checkpoint import read_checkpoint
from metaspec_training.fit.loss import merge_greens
from metaspec_training.networks.field import DiffractionFieldNet
from metaspec_training.networks.layers import conditions_of
from metaspec_training.report.evaluation import mean_spectrum

COMPARED = 64
"""Structures of a split that graphs are compared on, and that int8 is calibrated on."""

LIMIT = 2000
"""Structures of a split that errors are measured on by default, at most."""

DATASETS = Path("datasets")
"""Folder in which a checkpoint's data sets are looked for."""


@dataclass(frozen=True)
class Source:
    """A trained network that agrees with its provenance and with the data that it is measured on.

    Attributes:
        checkpoint: file of the network.
        network: the network, in evaluation mode.
        provenance: what it was trained on.
        samples: samples of a data set that errors are measured on, graphs are compared on and int8 is calibrated on. Of large
            data sets, it has not all of them.
        counts: number of structures in the data set, by split.
        mean_spectrum: mean of the spectra of its train split, float32 (4, W); None if that is empty.
        evaluated_on: name of the data set.
        from_data: whether the checkpoint has no provenance, so that it was taken from the data sets given.
    """

    checkpoint: Path
    network: nn.Module
    provenance: Provenance
    samples: Samples
    counts: dict[str, int]
    mean_spectrum: NDArray[np.float32] | None
    evaluated_on: str
    from_data: bool

    @property
    def served(self) -> nn.Module:
        """The network as it is served: G1 and G2 averaged where only their mean was taught."""
        return MeanGreens(self.network) if self.provenance.merged_greens else self.network


class MeanGreens(nn.Module):
    """A network with both greens replaced by their mean: (B, 1, 128, 128) to (B, 2, 2, wavelengths)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.conditions = conditions_of(network)

    def forward(self, density: Tensor, **conditions: Tensor) -> Tensor:
        """Spectra whose second and third channel are equal."""
        return merge_greens(self.network(density, **conditions))


def read_source(
    checkpoint: Path,
    data: Sequence[Path] = (),
    limit: int = LIMIT,
    distance_range_um: tuple[float, float] | None = None,
) -> Source:
    """Read a checkpoint and a data set to measure it on.

    Args:
        checkpoint: checkpoint of a training.
        data: data sets of the device that the network was trained for, the one to measure errors on first. By default that is
            the first one it was trained on, under `DATASETS`. A checkpoint without provenance needs all it was trained on.
        limit: largest number of structures of the validation and the test split to keep.
        distance_range_um: smallest and largest distance of the detectors that the network is to take as a condition; by default
            as its settings say.

    Raises:
        ValueError: a file cannot be read, a data set is missing, network, provenance and data contradict each other, or the
            network takes no distance, or not this range.
    """
    trained = read_checkpoint(checkpoint)
    if distance_range_um is not None:
        trained = replace(trained, network=_with_distance(trained.network, checkpoint, distance_range_um))
    sets = _load(_paths(checkpoint, trained.provenance, data))
    known = trained.provenance
    if known is None:
        known = provenance({path.resolve().name: samples for path, samples in sets.items()})
        origin = f"data set {next(iter(sets))}"
    else:
        origin = f"checkpoint {checkpoint}"
        for path, samples in sets.items():
            known.require_same_device(provenance({path.name: samples}), origin, f"data set {path}")
    _check_network(trained.network, known, checkpoint, origin)
    first = next(iter(sets))
    samples = sets[first]
    limits = {"train": COMPARED, "validation": limit, "test": limit}
    counts = {split: len(samples.rows(split)) for split in limits}
    return Source(
        checkpoint,
        trained.network,
        known,
        samples=samples.take(np.concatenate([samples.rows(split, most) for split, most in limits.items()])),
        counts=counts,
        mean_spectrum=mean_spectrum(samples, "train") if counts["train"] else None,
        evaluated_on=first.resolve().name,
        from_data=trained.provenance is None,
    )


def _with_distance(network: nn.Module, checkpoint: Path, range_um: tuple[float, float]) -> DiffractionFieldNet:
    if not isinstance(network, DiffractionFieldNet):
        raise ValueError(
            f"--distance-um needs a network that predicts the field, DiffractionFieldNet, and {checkpoint} is of "
            f"{type(network).__name__}, which knows one distance"
        )
    try:
        return network.with_distance_range(*range_um)
    except ValueError as error:
        raise ValueError(f"--distance-um: {error}") from None


def _paths(checkpoint: Path, known: Provenance | None, data: Sequence[Path]) -> list[Path]:
    if data:
        return list(data)
    if known is None:
        raise ValueError(
            f"checkpoint {checkpoint} does not record what it was trained on: name every data set that it was trained on by "
            "--data, the one to measure errors on first"
        )
    path = DATASETS / known.data[0].name
    if not path.is_dir():
        raise ValueError(
            f"no data set at {path}, the first that checkpoint {checkpoint} was trained on: say by --data where a data set "
            "of this device lies, to measure errors on"
        )
    return [path]


def _load(paths: Sequence[Path]) -> dict[Path, Samples]:
    names = [path.resolve().name for path in paths]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--data names several data sets called {', '.join(repeated)}: give each of them once")
    return {path: load(path) for path in paths}


def _check_network(network: nn.Module, known: Provenance, checkpoint: Path, origin: str) -> None:
    """Hold the network's own device, and the number of its outputs, against the provenance."""
    process, wavelengths = known.process, known.process.wavelengths_nm
    if isinstance(network, DiffractionFieldNet) and (
        difference := (network.config.process or Process()).difference(process)
    ):
        raise ValueError(
            f"the network of {checkpoint} propagates light in another process than that of {origin}: {difference}"
        )
    with torch.inference_mode():
        outputs = network(torch.zeros(1, 1, *process.structure_shape)).shape[-1]
    if outputs != len(wavelengths):
        raise ValueError(
            f"the network of {checkpoint} predicts {outputs} wavelengths, but the process of {origin} has "
            f"{len(wavelengths)}, from {wavelengths[0]:g} to {wavelengths[-1]:g} nm"
        )
