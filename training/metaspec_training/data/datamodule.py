"""Training, validation and test batches of one or several data sets, and their provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from metaspec_contract.provenance import Provenance
from metaspec_simulation.dataset import ROW_FIELDS, Samples, count_distinct, load, provenance
from metaspec_training.data.augmentation import Batch, Expansion
from metaspec_training.data.loader import ResumableLoader
from metaspec_training.data.orders import OrderLabels
from metaspec_training.data.packed import Packed, PackedSpectra, packed_size


class SpectraDataModule(LightningDataModule):
    """Training, validation and test batches of one or several data sets.

    Args:
        path: folder of a data set, or a list of them, to train on. Validation and test are those of the first; the
            labels of others may be low-fidelity, of a coarser grid.
        batch_size: structures per batch.
        seed: seed of the augmentation and of the order of the samples.
        limit: number of training structures to use, for learning curves; default: all.
        augment: whether to draw translations and symmetries; if not, every structure is shown as it was simulated.
        positions: positions over the detectors at which each structure is compared; more than 1 needs a network that
            predicts the field.
        orders: whether to compare the field, too, for those structures whose data set holds the orders under the layer; needs
            a network that predicts the field.

    Samples that their data set flags are left out.

    Attributes:
        first: the data set that is validated on, without its train split.
        provenance: the data sets, with the number of structures that are trained on.

    Raises:
        ValueError: a number out of range, no data at a path, or data sets that do not fit together.
    """

    def __init__(
        self,
        path: str | list[str],
        batch_size: int = 32,
        seed: int = 0,
        limit: int | None = None,
        augment: bool = True,
        positions: int = 1,
        orders: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("positions", positions), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"data.seed must not be negative, got {seed}")
        if positions > 1 and not augment:
            raise ValueError("data.positions above 1 needs data.augment")
        if orders and not augment:
            raise ValueError("data.orders needs data.augment")
        self.batch_size, self.seed, self.augment, self.positions = batch_size, seed, augment, positions
        sets = _load_all([path] if isinstance(path, str) else path, orders)
        first = next(iter(sets.values()))
        if positions > 1 and not first.harmonics.size:
            raise ValueError(
                "data.positions above 1 needs data sets that hold harmonics; imported ones do not: set --data.positions 1"
            )
        parts = _training_parts(sets, limit)
        if orders and not any((part.ordered >= 0).any() for part in parts.values()):
            raise ValueError(
                f"data.orders needs a data set that holds the orders under the layer, got {', '.join(parts)}: simulate one "
                "with metaspec-simulate --orders, or leave data.orders out"
            )
        self.first = first = first.take(np.flatnonzero(first.split != "train"))
        sets.clear()  # their samples are in the parts: large ones are not held twice
        known = provenance(parts)
        self.provenance: Provenance = known.model_copy(
            update={"data": tuple(source for source in known.data if source.structures)}
        )
        self._train = join(list(parts.values()))
        cells = [int(source.solver.get("cells", 0)) for source in known.data]  # imported samples state none
        self._low_fidelity = np.repeat([each < cells[0] for each in cells], [len(part) for part in parts.values()])
        self.expansion = Expansion(
            first.process.wavelengths_nm,
            first.harmonic_wavelengths_nm,
            self._train.harmonic_orders,
            OrderLabels(first.process) if orders else None,
        )
        self._packed: dict[str, PackedSpectra] = {}
        distinct = count_distinct(parts.values())
        rank_zero_info(
            f"{len(self._train)} training samples of {distinct} distinct structures, in {len(parts)} data sets."
        )

    def train_samples(self) -> Samples:
        """The samples that are trained on."""
        return self._train

    def samples_with_orders(self) -> Samples:
        """Those of them whose orders are known and whose labels are not low-fidelity."""
        return self._train.take(np.flatnonzero((self._train.ordered >= 0) & ~self._low_fidelity))

    def train_dataloader(self) -> DataLoader[Packed]:
        """Batches of the current epoch, in an order that follows from seed and epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        if "train" not in self._packed:
            draw = (self.seed, epoch) if self.augment else None
            device = self._device(self._train)
            self._packed["train"] = PackedSpectra(self._train, draw, self.positions, self._low_fidelity, device)
        data = self._packed["train"]
        if self.augment:
            data = data.drawn(self.seed, epoch)
        order: Sequence[int] = np.random.default_rng([self.seed, epoch]).permutation(len(data)).tolist()
        return self._loader(data, self.batch_size, order, len(data) > self.batch_size, epoch)

    def val_dataloader(self) -> DataLoader[Packed]:
        """The validation split, as simulated."""
        return self._evaluated("validation")

    def test_dataloader(self) -> DataLoader[Packed]:
        """The test split, as simulated."""
        return self._evaluated("test")

    def _evaluated(self, split: str) -> DataLoader[Packed]:
        if split not in self._packed:
            self._packed[split] = PackedSpectra(self.first.of(split))
        return self._loader(self._packed[split], 2 * self.batch_size)

    def _device(self, samples: Samples) -> torch.device:
        """Where samples lie: on this process's GPU if they fill at most half of its free memory, otherwise in memory."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda" and packed_size(samples) <= torch.cuda.mem_get_info(device)[0] // 2:
            return device
        return torch.device("cpu")

    def _loader(
        self,
        data: PackedSpectra,
        batch_size: int,
        order: Sequence[int] | None = None,
        drop_last: bool = False,
        epoch: int = 0,
    ) -> DataLoader[Packed]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return ResumableLoader(
            data,
            batch_size,
            epoch=epoch,
            sampler=order,
            drop_last=drop_last,
            collate_fn=_as_is,
            pin_memory=on_gpu and data.device.type == "cpu",
            generator=torch.Generator(),  # the loader's own: it would draw from that of dropout
        )

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Batch:
        """Expand a batch on the device."""
        expanded: Batch = self.expansion.to(batch.bits.device)(batch)
        return expanded


def _as_is(batch: Any) -> Any:  # a Packed, not a list of samples
    return batch


_APART = "train on one, then start from its weights (model.weights) on the other"


def _load_all(paths: list[str], orders: bool) -> dict[str, Samples]:
    """Load data sets by folder name; refuse different process, channels, merged greens or harmonics."""
    sets: dict[str, Samples] = {}
    for path in paths:
        name = Path(path).resolve().name
        if name in sets:
            raise ValueError(f"data.path must name different data sets, got {name} twice")
        samples = load(Path(path), orders)
        trusted = np.flatnonzero(samples.flag == 0)
        if len(trusted) < len(samples):
            flagged = len(samples) - len(trusted)
            why = "have an energy error above the bound of their data set"
            rank_zero_info(f"{name}: {flagged} of {len(samples)} samples {why} and are left out.")
            samples = samples.take(trusted)
        sets[name] = samples
    try:
        provenance(sets)
    except ValueError as error:
        raise ValueError(f"data.path: {error}: {_APART}") from None
    (first, ours), *others = sets.items()
    for name, other in others:
        if not np.array_equal(ours.harmonic_wavelengths_nm, other.harmonic_wavelengths_nm):
            described = [
                f"{label} has {len(one.harmonic_wavelengths_nm) or 'no'} wavelengths of harmonics"
                for label, one in ((first, ours), (name, other))
            ]
            raise ValueError(f"data.path: {', '.join(described)}: {_APART}")
    return sets


def _training_parts(sets: dict[str, Samples], limit: int | None) -> dict[str, Samples]:
    """The train splits, the first `limit` samples of them."""
    parts = {name: samples.of("train") for name, samples in sets.items()}
    if not any(map(len, parts.values())):
        raise ValueError(f"data.path: no structures to train on in {', '.join(parts)}")
    if limit is not None:
        for name, part in parts.items():
            parts[name] = part.take(np.arange(min(limit, len(part))))
            limit -= len(parts[name])
    return parts


def join(parts: list[Samples]) -> Samples:
    """All samples of data sets; those with fewer harmonics have zeros for the others."""
    first = parts[0]
    if len(parts) == 1:
        return first
    most = max((part.harmonic_orders for part in parts), key=lambda orders: orders.shape[1])
    parts = [_with_harmonics(part, most) for part in parts]
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ROW_FIELDS}
    before = np.repeat(np.cumsum([0, *(len(part.densities) for part in parts[:-1])]), [len(part) for part in parts])
    joined["grey"] = np.where(joined["grey"] < 0, -1, joined["grey"] + before)
    ends = np.cumsum([0, *(len(part.orders) for part in parts[:-1])])
    joined["ordered"] = np.where(
        joined["ordered"] < 0, -1, joined["ordered"] + np.repeat(ends, [len(part) for part in parts])
    )
    densities = np.concatenate([part.densities for part in parts])
    orders = [part.orders for part in parts if len(part.orders)] or [first.orders]
    return replace(first, harmonic_orders=most, densities=densities, orders=np.concatenate(orders), **joined)


def _with_harmonics(samples: Samples, orders: NDArray[np.int64]) -> Samples:
    """Samples with the harmonics of all orders (2, K), which include theirs."""
    if samples.harmonic_orders.shape == orders.shape:
        return samples
    known = {(m, n): k for k, (m, n) in enumerate(orders.T.tolist())}
    real = np.array([known[m, n] for m, n in samples.harmonic_orders.T.tolist()])
    imaginary = orders.shape[1] - 1 + real[1:]  # the constant has none
    harmonics = np.zeros((len(samples), 2 * orders.shape[1] - 1, samples.harmonics.shape[-1]), np.int16)
    harmonics[:, np.concatenate([real, imaginary])] = samples.harmonics
    return replace(samples, harmonics=harmonics, harmonic_orders=orders)
