"""Batches of structures and spectra. What travels to the device is packed; it is unpacked, moved and labelled there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from metaspec_contract.structures import PIXELS, Symmetry
from metaspec_simulation.dataset import HARMONIC_STEP, Samples, load
from metaspec_training.networks.translation import Translation

_UNKNOWN = np.zeros((0, 0), np.int16)
_D4 = [Symmetry(bool(k & 1), bool(k & 2), bool(k & 4)) for k in range(8)]


class Packed(NamedTuple):
    """A batch as it is stored.

    Attributes:
        structure: bit-packed, uint8 (B, 2048).
        spectra: float32 (B, 4, W).
        harmonics: int16 (B, 81, V), or (B, 0, 0) where they are not known.
        symmetry: number of an element of D4, (B,).
        shift: pixels along rows and columns to move the structure by, before the symmetry is applied, (B, K, 2). The
            first of the K positions is where the network sees it.
        coarse: whether it was simulated on a coarser grid than the data set that is validated on, bool (B,).
    """

    structure: Tensor
    spectra: Tensor
    harmonics: Tensor
    symmetry: Tensor
    shift: Tensor
    coarse: Tensor


class Batch(NamedTuple):
    """A batch as a network is trained on it.

    Attributes:
        density: float32 (B, 1, 128, 128).
        shift: K positions relative to where the density lies, in pixels, (B, K, 2); the first is (0, 0).
        spectra: what is simulated at these positions, float32 (B, K, 2, 2, W).
        coarse: whether it was simulated on a coarser grid than the data set that is validated on, bool (B,).
    """

    density: Tensor
    shift: Tensor
    spectra: Tensor
    coarse: Tensor


class PackedSpectra(Dataset[Packed]):
    """The samples of a split, each with a draw of positions and a symmetry.

    The draw follows from the seed, the epoch and the sample's number alone, so that a resumed run sees what the
    uninterrupted one would have seen. Where harmonics are unknown, positions are multiples of half a period.

    Args:
        samples: of one split.
        draw: seed and epoch; None shows every structure as it was simulated.
        positions: K, at how many positions over the detectors each structure is judged.
        coarse: which samples are of a coarser grid, bool (N,); none by default.
    """

    def __init__(
        self,
        samples: Samples,
        draw: tuple[int, int] | None = None,
        positions: int = 1,
        coarse: NDArray[np.bool_] | None = None,
    ) -> None:
        self.samples, self.draw, self.positions = samples, draw, positions
        self.coarse = np.zeros(len(samples), bool) if coarse is None else coarse
        self.step = 1 if samples.harmonics.size else PIXELS // 2
        # With only the mean of G1 and G2 known, what turns green into red or blue has no labels.
        merged = bool(samples.attributes.get("merged_greens"))
        shifts = [(r, c) for r in range(0, PIXELS, self.step) for c in range(0, PIXELS, self.step)] if merged else []
        self.kept = [
            (d4, shift) for d4 in range(8) for shift in shifts if set(_shifted(_D4[d4], shift).channels[1:3]) == {1, 2}
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> Packed:
        symmetry, shift = 0, np.zeros((self.positions, 2), np.int64)
        if self.draw is not None:
            rng = np.random.default_rng([*self.draw, item])
            shift = self.step * rng.integers(0, PIXELS // self.step, size=(self.positions, 2))
            symmetry = int(rng.integers(8))
            if self.kept:
                symmetry, only = self.kept[rng.integers(len(self.kept))]
                shift = np.array([only])
        return Packed(
            torch.from_numpy(self.samples.packed[item]),
            torch.from_numpy(self.samples.spectra[item]),
            torch.from_numpy(
                self.samples.harmonics[item] if self.draw else _UNKNOWN
            ),  # as simulated: the spectra themselves
            torch.tensor(symmetry),
            torch.from_numpy(shift),
            torch.tensor(bool(self.coarse[item])),
        )


def _shifted(symmetry: Symmetry, shift: tuple[int, int]) -> Symmetry:
    """The same symmetry after a shift by multiples of half a period."""
    row, column = (shift[1], shift[0]) if symmetry.transpose else shift
    return Symmetry(symmetry.transpose, symmetry.flip_rows, symmetry.flip_columns, row > 0, column > 0)


class Expansion(nn.Module):
    """Turns a packed batch into densities and labels, on whatever device it lies."""

    bits: Tensor
    channels: Tensor
    interpolation: Tensor

    def __init__(self, wavelengths_nm: NDArray[np.float64], harmonic_wavelengths_nm: NDArray[np.float64]) -> None:
        super().__init__()
        self.translation = Translation()
        coarse = harmonic_wavelengths_nm
        spline = HARMONIC_STEP * CubicSpline(coarse, np.eye(len(coarse)))(wavelengths_nm).T if len(coarse) else [[]]
        self.register_buffer("bits", torch.arange(7, -1, -1, dtype=torch.uint8), persistent=False)
        self.register_buffer("channels", torch.tensor([s.channels for s in _D4]), persistent=False)
        self.register_buffer("interpolation", torch.tensor(np.array(spline), dtype=torch.float32), persistent=False)

    def forward(self, batch: Packed) -> Batch:
        density = ((batch.structure.unsqueeze(-1) >> self.bits) & 1).reshape(-1, PIXELS, PIXELS)
        density = torch.stack(
            [self._move(*one) for one in zip(density, batch.shift[:, 0], batch.symmetry, strict=True)]
        )
        if batch.harmonics.shape[1]:
            spectra = self.translation(batch.harmonics.float() @ self.interpolation, batch.shift.float())
        else:  # half-period shifts only permute
            rows, columns = (batch.shift // (PIXELS // 2)).unbind(-1)
            quadrant = torch.arange(4, device=rows.device)
            moved = ((quadrant // 2 - rows.unsqueeze(-1)) % 2) * 2 + (quadrant % 2 - columns.unsqueeze(-1)) % 2
            spectra = batch.spectra.unsqueeze(1).expand(-1, rows.shape[1], -1, -1)
            spectra = spectra.gather(2, moved.unsqueeze(-1).expand_as(spectra))
        channels = self.channels[batch.symmetry][:, None, :, None].expand_as(spectra)
        spectra = spectra.gather(2, channels).unflatten(2, (2, 2))
        relative = torch.stack(
            [self._turn(*one) for one in zip(batch.shift - batch.shift[:, :1], batch.symmetry, strict=True)]
        )
        return Batch(density.unsqueeze(1).float(), relative.float(), spectra, batch.coarse)

    @staticmethod
    def _move(density: Tensor, shift: Tensor, symmetry: Tensor) -> Tensor:
        element = _D4[int(symmetry)]
        density = density.roll((int(shift[0]), int(shift[1])), (0, 1))
        if element.transpose:
            density = density.T
        flipped = [axis for axis, flip in enumerate((element.flip_rows, element.flip_columns)) if flip]
        return density.flip(flipped) if flipped else density

    @staticmethod
    def _turn(shift: Tensor, symmetry: Tensor) -> Tensor:
        """What becomes of translations (K, 2) when everything is mapped by a symmetry."""
        element = _D4[int(symmetry)]
        if element.transpose:
            shift = shift.flip(-1)
        sign = torch.tensor([-1 if element.flip_rows else 1, -1 if element.flip_columns else 1], device=shift.device)
        return shift * sign


@dataclass(frozen=True)
class _Joined:
    """Samples of several data sets of one process."""

    parts: list[Samples]

    def of(self, split: str) -> Samples:
        return _join([part.of(split) for part in self.parts])

    def coarse(self, split: str) -> NDArray[np.bool_]:
        """Which samples of a split were simulated on a coarser grid than those of the first part."""
        finest = _cells(self.parts[0])
        return np.concatenate([np.full(len(part.of(split)), _cells(part) < finest) for part in self.parts])


def _cells(samples: Samples) -> int:
    """Cells per period of the grid; 0 where nobody says, as for imported samples."""
    return int(samples.attributes["solver"].get("cells", 0))


def _join(parts: list[Samples]) -> Samples:
    first = parts[0]
    if len(parts) == 1:
        return first
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("packed", "spectra", "harmonics", "family", "split", "energy_error")
    }
    return Samples(
        process=first.process,
        harmonic_wavelengths_nm=first.harmonic_wavelengths_nm,
        attributes=first.attributes,
        **joined,
    )


class SpectraDataModule(LightningDataModule):
    """Training, validation and test batches of one or several data sets.

    Args:
        path: folder of a data set, or a list of them, to train on. Validation and test are those of the first; others may
            be of a coarser grid.
        batch_size: structures in a batch.
        seed: of the augmentation and the order of the samples.
        limit: use only so many training structures, for learning curves.
        augment: draw translations and symmetries; off shows every structure as it was simulated.
        positions: at how many positions over the detectors each structure is judged; more than 1 needs a network that
            predicts the field.

    Raises:
        ValueError: a number out of range, no data at a path, or data sets of different processes.
    """

    def __init__(
        self,
        path: str | list[str],
        batch_size: int = 32,
        seed: int = 0,
        limit: int | None = None,
        augment: bool = True,
        positions: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("positions", positions), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if positions > 1 and not augment:
            raise ValueError("data.positions above 1 needs data.augment")
        self.batch_size, self.seed, self.limit, self.augment = batch_size, seed, limit, augment
        self.positions = positions
        paths = [path] if isinstance(path, str) else path
        sets = [load(Path(one)) for one in paths]
        if any(one.process != sets[0].process for one in sets):
            raise ValueError(f"data.path names data sets of different processes: {', '.join(paths)}")
        if any(one.harmonics.shape[1] != sets[0].harmonics.shape[1] for one in sets):
            raise ValueError(
                "data.path joins simulated and imported data sets; train on one, then warm-start on the other"
            )
        self.first, self._all = sets[0], _Joined(sets)
        if positions > 1 and not self.first.harmonics.size:
            raise ValueError("data.positions above 1 needs data sets that hold harmonics; imported ones do not")
        self.expansion = Expansion(self.first.process.wavelengths_nm, self.first.harmonic_wavelengths_nm)

    @property
    def merged_greens(self) -> bool:
        """Whether only the mean of G1 and G2 is known."""
        return bool(self.first.attributes.get("merged_greens"))

    def train_samples(self) -> Samples:
        """What is trained on."""
        samples = self._all.of("train")
        return samples if self.limit is None else samples.take(np.arange(min(self.limit, len(samples))))

    def train_dataloader(self) -> DataLoader[Packed]:
        """Batches of the current epoch, in an order that follows from seed and epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        samples = self.train_samples()
        coarse = self._all.coarse("train")[: len(samples)]
        data = PackedSpectra(samples, (self.seed, epoch) if self.augment else None, self.positions, coarse)
        order: Sequence[int] = np.random.default_rng([self.seed, epoch]).permutation(len(data)).tolist()
        return DataLoader(data, self.batch_size, sampler=order, drop_last=len(data) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Packed]:
        """The validation split, as simulated."""
        return DataLoader(PackedSpectra(self.first.of("validation")), 2 * self.batch_size)

    def test_dataloader(self) -> DataLoader[Packed]:
        """The test split, as simulated."""
        return DataLoader(PackedSpectra(self.first.of("test")), 2 * self.batch_size)

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Batch:
        """Unpack on the device."""
        expanded: Batch = self.expansion.to(batch.structure.device)(batch)
        return expanded
