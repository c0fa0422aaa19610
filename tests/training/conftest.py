"""Tiny data sets of the real solver, and one small training that several tests look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  (its messages go to the stderr of its import, which must not be that of a test)
import numpy as np
import pytest
import torch
import zarr

from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.data.families import SPLITS
from metaspec_simulation.data.recipe import Recipe
from metaspec_simulation.data.store import whole_chunks
from metaspec_simulation.dataset import Samples, load, open_dataset, write_samples
from metaspec_training.cli import main

CELLS = 24  # the coarsest grid: only what is made of the labels matters here
CONFIGS = Path(__file__).parents[2] / "training" / "configs"
OTHER = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=2)
SMALL = [f"--model.config.init_args.{size}" for size in ("width=32", "blocks=1", "stem=8", "wavelength_nodes=20")]
THREE_EPOCHS = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--data.positions=2"]


def simulate(path: Path, process: Process, train: int, others: int) -> Path:
    """A data set on a coarse grid: `train` structures to train on, `others` each to validate and to test on."""
    recipe = Recipe(process, seed=0, cells=CELLS, decay=0.1, energy_bound=1.0)  # none is flagged
    count = train + 2 * others
    group = open_dataset(path, recipe, count)
    solver = Solver(process, cells=CELLS, decay=0.1)
    write_samples(group, recipe, solver, 0, count, lambda: None)
    group["split"][:] = np.repeat(
        [SPLITS.index(name) for name in ("train", "validation", "test")], [train, others, others]
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are fastest on one thread, by far where the other cores are in use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 structures to train on, 3 each to validate and to test on."""
    return simulate(tmp_path_factory.mktemp("data") / "fine", Process(), train=16, others=3)


@pytest.fixture(scope="session")
def coarse(fine: Path) -> Path:
    """4 of them, said to be of a coarser grid."""
    copy = shutil.copytree(fine, fine.with_name("coarse"))
    group: Any = zarr.open_group(copy)
    group.attrs["solver"] |= {"cells": CELLS - 4}
    group["complete"][4:] = 0
    return copy


@pytest.fixture(scope="session")
def with_orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 structures to train on whose orders are known."""
    path = tmp_path_factory.mktemp("data") / "with_orders"
    recipe = Recipe(Process(), seed=3, cells=CELLS, decay=0.1, energy_bound=1.0, orders=True)
    group = open_dataset(path, recipe, 8)
    write_samples(group, recipe, Solver(Process(), cells=CELLS, decay=0.1), 0, 8, lambda: None)
    with whole_chunks():
        group["split"][:] = 0
    return path


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 structures of another process to train on."""
    return simulate(tmp_path_factory.mktemp("data") / "other", OTHER, train=8, others=2)


@pytest.fixture(scope="session")
def samples(fine: Path) -> Samples:
    return load(fine)


def fit(run: Path, data: Path, *arguments: str, preset: str = "field") -> Path:
    """Train a tiny network by the command; returns the folder of the newest run in `run`."""
    settings = [f"--config={CONFIGS / preset}.yaml", f"--data.path={data}", "--data.batch_size=8", "--data.positions=1"]
    trainer = ["--trainer.precision=32", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main(["fit", *settings, *trainer, f"--trainer.default_root_dir={run}", *SMALL, *arguments])
    return max((run / "lightning_logs").iterdir(), key=lambda folder: int(folder.name.removeprefix("version_")))


@pytest.fixture(scope="session")
def train() -> Callable[..., Path]:
    return fit


@pytest.fixture(scope="session")
def three_epochs() -> list[str]:
    """Settings of the run in `trained`."""
    return THREE_EPOCHS


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, fine: Path) -> Path:
    """Folder of a finished run of three epochs."""
    return fit(tmp_path_factory.mktemp("runs"), fine, *THREE_EPOCHS)


@pytest.fixture(scope="session")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "last.ckpt"
