from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaspec_contract.process import Process
from metaspec_contract.structures import symmetries
from metaspec_simulation.data.families import SOURCES
from metaspec_simulation.dataset import HARMONIC_STEP, Samples, given_recipe, load
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_training.data.datamodule import Batch, Expansion, Packed, PackedSpectra, SpectraDataModule
from metaspec_training.designs import make_designs
from metaspec_training.fit.averaging import MovingAverage
from metaspec_training.fit.live_weights import LossWeights, PlateauAdvice, change_weights
from metaspec_training.fit.loss import AdaptiveSpectralLoss
from metaspec_training.fit.module import SpectraModule, load_network, warm_start
from metaspec_training.fit.optimizer import MuonAdamW
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.report.evaluation import errors, mean_predictor, nearest_predictor

ROOT = Path(__file__).parents[2]
DATA = ROOT / "datasets" / "bayer-600nm"


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load(DATA)


def test_loss_terms_follow_their_formulas() -> None:
    rng = np.random.default_rng(0)
    p, t = (rng.random((3, 2, 2, 9)).astype(np.float32) for _ in range(2))
    terms = AdaptiveSpectralLoss(2, 0.1, 100, 7)(torch.from_numpy(p), torch.from_numpy(t))
    error = p - t
    assert float(terms.mse) == pytest.approx(2 * np.mean(error**2), rel=1e-5)
    ratio = np.clip(error / (np.abs(t) + 1e-4), -10, 10)
    assert float(terms.rel) == pytest.approx(0.1 * np.mean(ratio**2), rel=1e-4)
    assert float(terms.grad) == pytest.approx(100 * np.mean(np.diff(error, axis=-1) ** 2), rel=1e-5)
    assert float(terms.curv) == pytest.approx(7 * np.mean(np.diff(error, 2, axis=-1) ** 2), rel=1e-5)
    assert float(terms.total) == pytest.approx(sum(map(float, terms)), rel=1e-6)
    with pytest.raises(ValueError, match="w_grad must not be negative, got -1"):
        AdaptiveSpectralLoss(w_grad=-1)


def test_the_blue_weight_counts_the_blue_detector_more() -> None:
    p, t = torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 2, 5)
    p[0, 1, 1] = 0.1
    plain, weighted = AdaptiveSpectralLoss()(p, t).mse, AdaptiveSpectralLoss(blue_weight=2)(p, t).mse
    assert float(weighted) == pytest.approx(2 * float(plain))


def expand(samples: Samples, items: range, draw: tuple[int, int] | None, positions: int = 1) -> Batch:
    data = PackedSpectra(samples, draw, positions)
    expansion = Expansion(samples.process.wavelengths_nm, samples.harmonic_wavelengths_nm)
    return expansion(Packed(*(torch.stack(field) for field in zip(*(data[i] for i in items), strict=True))))


def test_batches_as_simulated(samples: Samples) -> None:
    batch = expand(samples, range(4), None)
    np.testing.assert_array_equal(batch.density[:, 0], samples.structures[:4])
    np.testing.assert_array_equal(batch.spectra.flatten(0, 1).flatten(1, 2), samples.spectra[:4])
    assert not batch.shift.any()


def test_augmented_labels_are_those_of_the_moved_structure(samples: Samples) -> None:
    """Every position is a structure moved and mirrored on paper, against harmonics as the simulation's own code has them."""
    draw, positions = (3, 1), 4
    batch = expand(samples, range(5), draw, positions)
    again = expand(samples, range(5), draw, positions)
    other_epoch = expand(samples, range(5), (3, 2), positions)
    for item in range(5):
        packed = PackedSpectra(samples, draw, positions)[item]
        symmetry = list(symmetries())[int(packed.symmetry)]
        for k, (row, column) in enumerate(packed.shift.tolist()):
            moved = symmetry.apply(np.roll(samples.structures[item], (row, column), axis=(0, 1)))
            shown = np.roll(batch.density[item, 0].numpy(), batch.shift[item, k].int().tolist(), axis=(0, 1))
            np.testing.assert_array_equal(shown, moved)
            basis = shifted_basis(np.array([row]), np.array([column]))[0]
            exact = (basis @ (HARMONIC_STEP * samples.harmonics[item]))[list(symmetry.channels)]
            np.testing.assert_allclose(batch.spectra[item, k].flatten(0, 1)[:, ::2], exact, atol=2e-5)
        torch.testing.assert_close(again.spectra[item], batch.spectra[item])
        assert not torch.equal(other_epoch.density[item], batch.density[item])


@pytest.mark.parametrize("merged", [False, True])
def test_imported_samples_are_augmented_by_exact_symmetries_only(samples: Samples, merged: bool) -> None:
    """Without harmonics, and with G1 and G2 known only as their mean: what a draw says must be among the known copies."""
    few = samples.take(np.arange(6))
    spectra = few.spectra.copy()
    if merged:
        spectra[:, 1:3] = spectra[:, 1:3].mean(axis=1, keepdims=True)
    imported = dataclasses.replace(
        few,
        spectra=spectra,
        harmonics=np.zeros((6, 0, 0), np.int16),
        harmonic_wavelengths_nm=np.zeros(0),
        attributes={"merged_greens": merged},
    )
    seen = set()
    for epoch in range(12):
        batch = expand(imported, range(6), (0, epoch))
        for item in range(6):
            density, labels = batch.density[item, 0].numpy(), batch.spectra[item, 0].flatten(0, 1).numpy()
            copies = [(n, s) for n, s in enumerate(symmetries()) if (s.apply(few.structures[item]) == density).all()]
            assert copies
            assert any((spectra[item][list(s.channels)] == labels).all() for _, s in copies)
            if merged:
                assert (labels[1] == labels[2]).all(), "a mean of greens never turns up as red or blue"
            seen.add(copies[0][0])
    assert len(seen) > (6 if merged else 15)


def test_samples_of_a_coarser_grid_are_marked() -> None:
    designs = [str(DATA.with_name(name)) for name in ("designs-600nm", "designs-600nm-coarse")]
    fine = len(load(Path(designs[0])).of("train"))
    data = SpectraDataModule(designs, batch_size=fine + 7, limit=fine + 7)
    (batch,) = data.train_dataloader()
    assert int(batch.coarse.sum()) == 7
    assert not any(batch.coarse.any() for batch in data.val_dataloader())


def test_trivial_predictors(samples: Samples) -> None:
    train, test = samples.of("train"), samples.of("test")
    mean = errors(mean_predictor(train, test), test.spectra)
    assert mean.mae == pytest.approx(np.abs(train.spectra.mean(axis=0) - test.spectra).mean(), rel=1e-5)
    assert errors(test.spectra, test.spectra).mae == 0
    assert errors(test.spectra, test.spectra).r2 == 1
    nearest = nearest_predictor(train, train.take(np.arange(10)))
    np.testing.assert_array_equal(nearest, train.spectra[:10])


SMALL = ["--model.config.init_args.width", "32", "--model.config.init_args.blocks", "1", "--data.limit", "48"]


def training_command(run: Path, launcher: tuple[str, ...] = (sys.executable,), preset: str = "field") -> list[str]:
    settings = ["--config", f"training/configs/{preset}.yaml", "--data.path", str(DATA), "--trainer.precision", "32"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(run)]
    return [*launcher, "training/train.py", *settings, *quiet, "--trainer.limit_val_batches", "1"]


def train(run: Path, *arguments: str, launcher: tuple[str, ...] = (sys.executable,), preset: str = "field") -> str:
    """Train as a user would, a tiny network on few samples; returns what is printed."""
    command = [*training_command(run, launcher, preset), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def folder(run: Path, version: int = 0) -> Path:
    return run / "lightning_logs" / f"version_{version}"


def scalars(run: Path) -> dict[str, list[float]]:
    log = EventAccumulator(str(run))
    log.Reload()
    return {name: [event.value for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(run, *SMALL, "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1", "--data.positions", "2")
    return run


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(trained: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, their average, optimiser and schedule."""

    same = [*SMALL, "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1", "--data.positions", "2"]
    run = tmp_path / "run"
    # A signal would come at any time; a limit on wall time of nothing stops after the first epoch, like a full quota would.
    train(run, *same, "--trainer.min_epochs", "1", "--trainer.max_time", "00:00:00:00")
    stopped = folder(run) / "checkpoints" / "last.ckpt"
    assert torch.load(stopped, weights_only=True)["epoch"] == 0
    train(run, *same, "--ckpt_path", str(stopped))
    whole, resumed = (
        torch.load(where / "checkpoints" / "last.ckpt", weights_only=True)
        for where in (folder(trained), folder(run, 1))
    )
    assert resumed["epoch"] == whole["epoch"] == 2
    assert resumed["global_step"] == whole["global_step"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    assert str(resumed["optimizer_states"]) == str(whole["optimizer_states"])
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]


def test_the_average_of_a_short_run_does_not_remember_its_start(trained: Path, tmp_path: Path) -> None:
    """After six steps, a memory of 200 steps would still be at the first of them."""
    weights = folder(trained) / "checkpoints" / "last.ckpt"
    train(tmp_path, *SMALL, "--model.weights", str(weights), "--trainer.max_epochs", "2", "--data.batch_size", "16")
    start = load_network(weights).state_dict()
    last = torch.load(folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    average, now = (
        {k.removeprefix("network."): v for k, v in last[s].items()} for s in ("state_dict", "current_model_state")
    )
    for name in ("head.0.weight", "head.2.weight", "stem.0.weight"):
        way = float((now[name] - start[name]).norm())
        assert 0 < float((now[name] - average[name]).norm()) < 0.4 * way
    with pytest.raises(ValueError, match="decay must be from 0 to below 1, got 1"):
        MovingAverage(decay=1)


def test_what_is_logged(trained: Path) -> None:
    logged = scalars(folder(trained))
    terms = [logged[f"train/{name}"] for name in ("mse", "rel", "grad", "curv")]
    np.testing.assert_allclose(np.sum(terms, axis=0), logged["train/loss"], rtol=1e-4)
    assert all(norm > 0 for norm in logged["train/gradient_norm"])
    assert set(logged["train/clipped_fraction"]) <= {0.0, 1.0}
    rate = logged["lr-MuonAdamW/pg1"]
    assert rate.index(max(rate)) <= 1
    assert rate[-1] < 0.3 * max(rate), "warm-up, then cosine"
    assert logged["weights/w_grad"] == [100.0] * 3


def test_warm_start_takes_over_what_fits(trained: Path, tmp_path: Path) -> None:
    weights = folder(trained) / "checkpoints" / "last.ckpt"
    network = DiffractionFieldNetConfig(width=32, blocks=2).build()
    left = warm_start(network, weights)
    known = load_network(weights).state_dict()
    assert left
    assert all(name.startswith("body.") for name in left)
    for name, value in network.state_dict().items():
        assert name in left or torch.equal(value, known[name])
    assert not set(left) & set(known)
    splines = DiffractionFieldNetConfig(width=32, blocks=1, beam=True, coarse_head=True, spectral_basis=40)
    assert warm_start(splines.build(), weights) == []
    output = train(tmp_path, *SMALL, "--model.weights", str(weights), "--trainer.max_epochs", "1", "--data.limit", "16")
    assert "has no weights" not in output
    with pytest.raises(ValueError, match=r"nothing in .* fits this network"):
        warm_start(DiffractionNetConfig().build(), weights)


def test_muon_steps_along_the_nearest_orthogonal_matrix() -> None:
    """From zero momentum the step of a kernel has equal singular values; vectors take AdamW's step."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 5, 3)
    kernel, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = MuonAdamW(list(layer.parameters()), lr=0.1, weight_decay=0.0)
    layer(torch.randn(2, 6, 8, 8)).square().sum().backward()
    optimizer.step()
    values = torch.linalg.svdvals((layer.weight.detach() - kernel).flatten(1) / (0.1 * 0.2 * 54**0.5))
    assert values.min() > 0.5, "the iteration of five steps is that coarse, by design"
    assert values.max() < 1.5
    torch.testing.assert_close((layer.bias.detach() - bias).abs(), torch.full((5,), 0.1), atol=1e-4, rtol=0)
    other = MuonAdamW(list(torch.nn.Conv2d(6, 5, 3).parameters()), lr=0.1, weight_decay=0.0)
    other.load_state_dict(optimizer.state_dict())
    momentum = next(iter(optimizer.muon.state.values()))["momentum_buffer"]
    torch.testing.assert_close(next(iter(other.muon.state.values()))["momentum_buffer"], momentum)
    assert {id(group) for group in other.param_groups} >= {id(group) for group in other.muon.param_groups}
    optimizer.zero_grad()
    assert layer.weight.grad is None


def test_live_weights(tmp_path: Path) -> None:
    """A running training takes up a change and refuses a bad file, as seen in its log and its messages."""
    run, printed = folder(tmp_path / "run"), tmp_path / "printed"

    def wait_for(what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not happened():
            assert time.monotonic() < deadline, f"{what}: {printed.read_text()}"
            assert training.poll() is None, printed.read_text()
            time.sleep(0.1)

    def taken_up() -> list[float]:
        return scalars(run).get("weights/w_grad", [])

    with printed.open("w") as output:
        endless = [*training_command(tmp_path / "run"), *SMALL, "--trainer.max_epochs", "100000"]
        training = subprocess.Popen(endless, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for("first epoch", lambda: run.exists() and 100.0 in taken_up())
        command = [sys.executable, "-m", "metaspec_training.cli", "weights", str(run), "--w-grad", "50"]
        message = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert '"w_grad": 50.0' in message
        wait_for("the change", lambda: 50.0 in taken_up())
        (run / "weights.json").write_text('{"w_mse": -1, "w_grad": 70, "w_rel": 0.1, "w_curv": 0, "blue_weight": "x"}')
        wait_for("refusal", lambda: "Loss weights not changed" in printed.read_text())
        epochs = len(taken_up())
        wait_for("an epoch after it", lambda: len(taken_up()) > epochs + 1)
    finally:
        training.kill()
        training.wait()
    logged = scalars(run)
    assert set(logged["weights/w_grad"]) == {100.0, 50.0}
    assert logged["weights/w_grad"][-1] == 50
    assert set(logged["weights/w_mse"]) == {2.0}
    refusal = printed.read_text()
    assert "w_mse: Input should be greater than or equal to 0, got -1" in refusal
    assert "blue_weight" in refusal


def test_weights_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        change_weights(tmp_path, w_grad=1)
    LossWeights.of(AdaptiveSpectralLoss()).write(tmp_path / "weights.json")
    before = (tmp_path / "weights.json").read_text()
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w_grad"):
            change_weights(tmp_path, w_grad=bad)
    assert (tmp_path / "weights.json").read_text() == before
    command = [sys.executable, "-m", "metaspec_training.cli", "weights", str(tmp_path), "--w-grad", "-5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "w_grad: Input should be greater than or equal to 0, got -5" in result.stderr


def test_the_plateau_rule_follows_the_priority(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A loss that never improves again: the improvements that are off come up in the order of their use."""
    module = SpectraModule(DiffractionNetConfig.baseline(), AdaptiveSpectralLoss(), clip_norm=0.5)
    rule = PlateauAdvice(patience=2)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.callback_metrics["validation/loss"] = torch.tensor(1e-3)
    trainer.sanity_checking = False
    with caplog.at_level("INFO"):
        for _ in range(1 + 2 * 7):
            rule.on_validation_epoch_end(trainer, module)
    advice = [record.getMessage() for record in caplog.records if "No improvement" in record.getMessage()]
    words = ["memory_norm", "film_scale", "clipped at 1.0", "detector_heads", "fine_tokens", "curvature"]
    assert len(advice) == len(words)
    assert all(word in message for word, message in zip(words, advice, strict=True))
    assert module.clip_norm == 1.0
    assert module.loss.w_curv == 1000
    trainer.callback_metrics["validation/loss"] = torch.tensor(0.9e-3)
    rule.on_validation_epoch_end(trainer, module)
    assert rule.state_dict()["stalled"] == 0


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """torchrun, gloo, two CPU processes: each sees its half of the samples, both end with the same weights."""
    launcher = (str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--master-port", "29511")
    ddp = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    train(tmp_path, *SMALL, *ddp, "--trainer.max_epochs", "2", "--data.batch_size", "8", launcher=launcher)
    state = torch.load(folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1
    assert state["global_step"] == 6, "48 samples are 6 batches of 8: 3 for each process in an epoch"
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())


def test_compiling_changes_how_not_what() -> None:
    config = DiffractionFieldNetConfig(width=32, blocks=1)
    modules = [SpectraModule(config, AdaptiveSpectralLoss(), compile=compiled) for compiled in (False, True)]
    assert [module.network._compiled_call_impl is not None for module in modules] == [False, True]
    assert modules[0].state_dict().keys() == modules[1].state_dict().keys()


def test_designs_are_binary_and_reproducible(trained: Path, tmp_path: Path) -> None:
    checkpoint = str(folder(trained) / "checkpoints" / "last.ckpt")

    def make(name: str, *more: str) -> np.ndarray:
        command = [sys.executable, "-m", "metaspec_training.cli", "designs", "--checkpoint", checkpoint]
        settings = ["--out", str(tmp_path / name), "--count", "20", "--steps", "4", *more]
        subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
        return np.load(tmp_path / name)

    designs = make("a.npy")
    assert designs.shape == (20, 128, 128)
    assert designs.dtype == np.uint8
    assert set(np.unique(designs)) == {0, 1}
    np.testing.assert_array_equal(make("b.npy"), designs)
    assert not np.array_equal(make("c.npy", "--seed", "1"), designs)
    assert given_recipe(Process(), 48, designs).given
    with pytest.raises(ValueError, match="must be at least 2, got 1 and 24"):
        make_designs(Path(checkpoint), tmp_path / "d.npy", count=1)


def test_report(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaspec_training.cli", "report", str(folder(trained)), "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| nearest training structure |" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["errors"]) >= {"network", "mean spectrum", "nearest training structure"}
    assert set(report["mae_by_family"]) <= set(SOURCES)
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert f"{report['errors']['network']['mae']:.4f}" in page
    missing = subprocess.run([*command[:4], str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "is not the folder of a run" in missing.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("--model.learning_rate", "-1"), "model.learning_rate must be above 0, got -1"),
        (("--model.warm_up", "1.5"), "model.warm_up is a share of all steps"),
        (("--data.batch_size", "0"), "data.batch_size must be at least 1, got 0"),
        (("--data.path", "nowhere"), "is not a MetaSpec data set"),
        (("--model.loss.init_args.w_grad", "-3"), "w_grad must not be negative, got -3"),
        (("--model.learning_rte", "1"), "learning_rte"),
        (("--model.weights", "nowhere.ckpt"), "nowhere.ckpt"),
        (("--trainer.max_epochs", "-1"), "trainer.max_epochs or trainer.max_steps must be set"),
    ],
)
def test_settings_that_are_refused(setting: tuple[str, str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaspec_training.cli", "fit", "--config", "training/configs/field.yaml"]
    rest = ["--data.path", str(DATA), "--trainer.default_root_dir", str(tmp_path), *setting]
    result = subprocess.run([*command, *rest], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint that this version can read"):
        load_network(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match="network"):
        load_network(file)


@pytest.mark.parametrize("preset", ["field", "fast", "full", "baseline"])
def test_presets_are_valid(preset: str) -> None:
    command = [sys.executable, "training/train.py", "--config", f"training/configs/{preset}.yaml", "--print_config"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "class_path: metaspec_training" in result.stdout
