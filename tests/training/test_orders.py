"""Training on the field: orders of predicted fields, labels that move with their structures, and what is learnt of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from metaspec_contract.process import Process
from metaspec_contract.structures import Symmetry
from metaspec_simulation import Solver
from metaspec_simulation.data.labels import ORDER_STEP, labels, pack_orders
from metaspec_simulation.dataset import load
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.data.orders import OrderLabels
from metaspec_training.fit.alignment import field_phase
from metaspec_training.fit.checkpoint import read_checkpoint
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.orders import FieldOrders
from metaspec_training.networks.propagation import GRID, Propagation, common_phase
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.networks.symmetric import D4

PROCESS, CELLS = Process(), 32  # a cell of the grid is four pixels
TINY = DiffractionFieldNetConfig(width=32, blocks=1, stem=8, wavelength_nodes=20)


def test_orders_of_a_predicted_field() -> None:
    basis = 8
    maps = torch.randn(3, 8 * basis, GRID, GRID, generator=torch.Generator().manual_seed(0))
    real, imaginary = Propagation(PROCESS, basis, 301).orders(maps)
    phase = common_phase(PROCESS, PROCESS.wavelengths_nm)
    orders = (real + 1j * imaginary).numpy() * np.exp(1j * phase)[:, None, None]
    expected = np.stack([pack_orders(one[:, :, ::20], PROCESS) for one in orders])
    found = FieldOrders(PROCESS, basis)(maps).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, ORDER_STEP * expected, atol=0.51 * ORDER_STEP)


@pytest.mark.parametrize(
    ("element", "shift"), [*((n, (0, 0)) for n in range(8)), (0, (4, 24)), (3, (20, 100)), (6, (8, 52))]
)
def test_labels_move_as_the_structures_do(element: int, shift: tuple[int, int], solved: dict[str, Any]) -> None:
    """The solver's own orders of the moved structure."""
    solver, structure, orders = solved["solver"], solved["structure"], solved["orders"]
    symmetry: Symmetry = D4[element]
    moved = symmetry.apply(np.roll(structure, shift, axis=(0, 1)))
    expected = ORDER_STEP * packed(solver, moved).astype(np.float32)
    stored = torch.from_numpy(orders)[None]
    found = OrderLabels(PROCESS)(stored, torch.tensor([element]), torch.tensor([shift]))[0].numpy()
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, atol=2 * ORDER_STEP)


def packed(solver: Solver, structure: Any) -> Any:
    """Orders of a structure as a data set keeps them."""
    simulation, orders = solver.simulate_with_orders(structure)
    return labels(solver.process, simulation, orders)["orders"]


@pytest.fixture(scope="module")
def solved() -> dict[str, Any]:
    """A structure without any symmetry, and its orders."""
    solver = Solver(PROCESS, cells=CELLS, decay=0.1)
    structure = np.zeros((128, 128), np.uint8)
    structure[8:40, 12:92], structure[60:100, 100:120], structure[52:60, 20:44] = 1, 1, 1
    return {"solver": solver, "structure": structure, "orders": packed(solver, structure)}


def test_batches_of_sets_with_and_without_orders(fine: Path, with_orders: Path) -> None:
    data = SpectraDataModule([str(fine), str(with_orders)], batch_size=24, orders=True)
    (packed,) = data.train_dataloader()
    batch = data.on_after_batch_transfer(packed, 0)
    assert len(packed.ordered) == 8
    samples = data.train_samples()
    assert batch.orders is not None
    assert batch.orders.shape[0] == 8
    np.testing.assert_array_equal(np.flatnonzero(samples.ordered >= 0), np.arange(16, 24))
    np.testing.assert_array_equal(samples.orders, load(with_orders, orders=True).orders)
    power = (ORDER_STEP * packed.orders.float()).square().sum(dim=(1, 2, 3, 4))
    np.testing.assert_allclose(batch.orders.square().sum(dim=(1, 2, 3, 4)), power, rtol=1e-4)
    assert not any(len(packed.ordered) for packed in data.val_dataloader()), "labels of training only"


def test_the_field_is_learnt(with_orders: Path, fine: Path) -> None:
    torch.manual_seed(0)
    module = SpectraModule(TINY, AdaptiveSpectralLoss(w_orders=1.0), learning_rate=3e-3)
    data = SpectraDataModule([str(fine), str(with_orders)], batch_size=8, positions=2, orders=True)

    def power_of_the_error() -> float:
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert isinstance(module.network, DiffractionFieldNet)
        assert batch.orders is not None
        with torch.no_grad():
            found = module.network.orders_of(module.network.maps(batch.density[batch.ordered]))
        return float((found - batch.orders).square().sum(dim=(0, 2, 3, 4)).mean() / len(found))

    before = power_of_the_error()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=12, enable_progress_bar=False, **options)
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["train/orders"]) > 0
    assert power_of_the_error() < 0.7 * before


def test_a_field_turned_by_one_phase_keeps_its_spectra() -> None:
    torch.manual_seed(0)
    network = replace(TINY, coarse_head=True).build().double().eval()
    assert network.coarse_head is not None
    torch.nn.init.normal_(network.coarse_head.weight, std=0.1)
    density, low = torch.rand(3, 1, 128, 128).double(), torch.tensor([True, False, True])
    before, field = network(density, low), network.orders_of(network.maps(density, low))
    network.turn_field(np.full(301, 2.0))
    after, turned = network(density, low), network.orders_of(network.maps(density, low))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    expected = torch.complex(*field.unbind(3)) * np.exp(2j)
    torch.testing.assert_close(torch.complex(*turned.unbind(3)), expected, rtol=1e-6, atol=1e-6)


def test_a_phase_that_was_never_learnt_is_found_and_turned_back(with_orders: Path) -> None:
    torch.manual_seed(0)
    network, samples = replace(TINY, spectral_basis=32).build().eval(), load(with_orders, orders=True)
    density = torch.from_numpy(samples.structures[:, None]).float()
    network.turn_field(field_phase(network, samples).phase)
    aligned, spectra = field_phase(network, samples), network(density)
    assert aligned.agreement > 0.95
    x = (PROCESS.wavelengths_nm - 550) / 150
    network.turn_field(-3.3 + 0.6 * x - 0.2 * x**2)  # as spectra leave it
    found = field_phase(network, samples)
    assert not found.learnt
    assert found.before > 1.5 * found.after
    network.turn_field(found.phase)
    assert field_phase(network, samples).before == pytest.approx(found.after, rel=1e-3)
    assert found.after == pytest.approx(aligned.after, rel=1e-2)
    torch.testing.assert_close(network(density), spectra, rtol=0, atol=1e-5)


def test_weights_of_spectra_alone_are_trained_on_orders(
    train: Callable[..., Path], checkpoint: Path, fine: Path, with_orders: Path, tmp_path: Path
) -> None:
    samples = load(with_orders, orders=True)
    before = read_checkpoint(checkpoint).network
    assert isinstance(before, DiffractionFieldNet)
    assert not field_phase(before, samples).learnt
    sets = [f"--data.path+={with_orders}", "--data.orders=true", "--trainer.max_epochs=1"]
    run = train(tmp_path, f"[{fine}]", f"--model.weights={checkpoint}", "--model.learning_rate=1e-6", *sets)
    after = read_checkpoint(run / "checkpoints" / "last.ckpt").network
    assert isinstance(after, DiffractionFieldNet)
    assert field_phase(after, samples).agreement > 0.9
    density = torch.from_numpy(samples.structures[:, None]).float()
    torch.testing.assert_close(after(density), before(density), rtol=0, atol=1e-3)


def test_a_phase_of_samples_without_orders(fine: Path) -> None:
    with pytest.raises(ValueError, match="the phase of the field needs binary samples that hold the orders"):
        field_phase(TINY.build(), load(fine, orders=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": False}, r"data\.orders needs data\.augment"),
        ({}, r"data\.orders needs a data set that holds the orders under the layer, got fine: simulate one with"),
    ],
)
def test_orders_that_cannot_be_had(fine: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectraDataModule(str(fine), orders=True, **settings)


def test_orders_of_a_network_without_a_field(with_orders: Path, fine: Path) -> None:
    module = SpectraModule(DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2), AdaptiveSpectralLoss())
    data = SpectraDataModule([str(fine), str(with_orders)], batch_size=24, orders=True)
    (packed,) = data.train_dataloader()
    with pytest.raises(ValueError, match=r"data\.orders needs a network that predicts the field: DiffractionFieldNet"):
        module.training_step(data.on_after_batch_transfer(packed, 0), 0)
