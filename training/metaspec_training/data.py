"""Batches of structures and spectra, with exact labels for random translations, rotations and mirror images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from metaspec_simulation import PIXELS
from metaspec_simulation.dataset import STEP, Samples, load
from metaspec_simulation.farfield import shifted_basis
from metaspec_simulation.structures import unpack
from metaspec_simulation.symmetry import Symmetry
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]

_D4 = [Symmetry(bool(k & 1), bool(k & 2), bool(k & 4)) for k in range(8)]


class Spectra(Dataset[Batch]):
    """Structures and spectra of a split as they were simulated.

    An item is a density, float32 (1, 128, 128), and its efficiencies, float32 (2, 2, W).
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> Batch:
        density = unpack(self.samples.packed[item])[None].astype(np.float32)
        return torch.from_numpy(density), torch.from_numpy(self.samples.spectra[item].reshape(2, 2, -1))


class AugmentedSpectra(Spectra):
    """The same, each structure translated by a random vector and mapped by a random element of D4, with exact labels.

    Translating the pattern only moves it over the detectors, and the simulation has told the power in a window at every
    position; D4 permutes the detectors. The draw follows from the seed, the epoch and the sample's number alone, so that a
    resumed run sees what the uninterrupted one would have seen.
    """

    def __init__(self, samples: Samples, seed: int, epoch: int) -> None:
        super().__init__(samples)
        self.seed, self.epoch = seed, epoch
        coarse = samples.harmonic_wavelengths_nm
        spline = CubicSpline(coarse, np.eye(len(coarse)))
        self._interpolation = (STEP * spline(samples.process.wavelengths_nm).T).astype(np.float32)

    def __getitem__(self, item: int) -> Batch:
        rng = np.random.default_rng([self.seed, self.epoch, item])
        row, column = rng.integers(0, PIXELS, size=2)
        symmetry = _D4[rng.integers(8)]
        structure = np.roll(unpack(self.samples.packed[item]), (row, column), axis=(0, 1))
        basis = shifted_basis(np.array([row]), np.array([column]))[0]
        spectra = basis @ self.samples.harmonics[item].astype(np.float32) @ self._interpolation
        density = np.ascontiguousarray(symmetry.apply(structure)[None], np.float32)
        labels = np.ascontiguousarray(spectra[list(symmetry.channels)], np.float32)
        return torch.from_numpy(density), torch.from_numpy(labels.reshape(2, 2, -1))


class SpectraDataModule(LightningDataModule):
    """Training, validation and test batches of a data set.

    Args:
        path: folder of the data set.
        batch_size: structures in a batch.
        seed: of the augmentation and the order of the samples.
        limit: use only so many training structures, for learning curves.
        augment: draw translations and symmetries; off shows every structure as it was simulated.
    """

    def __init__(
        self, path: Path, batch_size: int = 32, seed: int = 0, limit: int | None = None, augment: bool = True
    ) -> None:
        super().__init__()
        self.path, self.batch_size, self.seed, self.limit, self.augment = path, batch_size, seed, limit, augment
        self.samples = load(Path(path))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the current epoch, in an order that follows from seed and epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        samples = self.samples.of("train")
        if self.limit is not None:
            samples = samples.take(np.arange(min(self.limit, len(samples))))
        data = AugmentedSpectra(samples, self.seed, epoch) if self.augment else Spectra(samples)
        order: NDArray[np.int64] = np.random.default_rng([self.seed, epoch]).permutation(len(data))
        return DataLoader(data, self.batch_size, sampler=order.tolist(), drop_last=len(data) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, as simulated."""
        return DataLoader(Spectra(self.samples.of("validation")), 2 * self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split, as simulated."""
        return DataLoader(Spectra(self.samples.of("test")), 2 * self.batch_size)
