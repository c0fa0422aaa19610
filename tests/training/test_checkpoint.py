"""Checkpoints: the provenance in them, what they are refused for, and the process of the data that reaches the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from metaspec_contract.process import Process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_simulation.dataset import Samples, load, provenance
from metaspec_training.cli import main
from metaspec_training.data.augmentation import Batch
from metaspec_training.data.datamodule import SpectraDataModule
from metaspec_training.fit.checkpoint import load_network, read_checkpoint, warm_start
from metaspec_training.fit.loss import AdaptiveSpectralLoss, merge_greens
from metaspec_training.fit.module import SpectraModule
from metaspec_training.fit.start import with_earlier_data
from metaspec_training.networks.field import DiffractionFieldNet, DiffractionFieldNetConfig
from metaspec_training.networks.propagation import Propagation
from metaspec_training.networks.query import DiffractionNet, DiffractionNetConfig
from metaspec_training.report.evaluation import predict

CHECKPOINTS = Path(__file__).parents[2] / "training" / "checkpoints"
TINY_FIELD = DiffractionFieldNetConfig(stem=8, width=32, blocks=1, wavelength_nodes=20)
TINY_QUERY = DiffractionNetConfig(channels=32, width=32, blocks=1, heads=2)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Path], other: Path) -> Path:
    """The checkpoint of the preset `field`, trained on another process."""
    return train(tmp_path_factory.mktemp("other"), other, "--trainer.max_epochs=1") / "checkpoints" / "last.ckpt"


def test_a_network_gets_the_process_of_the_data(other_run: Path, other: Path) -> None:
    """The preset says nothing of the device: the checkpoint states that of the data, and the network propagates with it."""
    trained, process = read_checkpoint(other_run), load(other).process
    assert trained.provenance == provenance({"other": load(other)}, "field")
    assert trained.provenance is not None
    assert trained.provenance.process == process != Process()
    network = trained.network
    assert isinstance(network, DiffractionFieldNet)
    assert network.process == process
    ours, default = (Propagation(each, 32, network.config.wavelength_nodes) for each in (process, Process()))
    for name, buffer in network.propagation.named_buffers():
        assert torch.equal(buffer, ours.get_buffer(name)), name
    assert not torch.equal(network.propagation.phase.cosine, default.phase.cosine)
    assert network(torch.zeros(1, 1, 128, 128)).shape == (1, 2, 2, 151)


def test_a_query_network_gets_the_wavelengths_of_the_data(samples: Samples, other: Path) -> None:
    known = provenance({"other": load(other)})
    module = SpectraModule(TINY_QUERY, AdaptiveSpectralLoss(), provenance=known)
    assert module(torch.zeros(1, 1, 128, 128)).shape == (1, 2, 2, 151)
    assert DiffractionNet(TINY_QUERY).bias.shape == (4, len(samples.process.wavelengths_nm)), (
        "without data: the default"
    )


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        (
            "field",
            f"--model.config.init_args.process={Process().model_dump_json()}",
            "model.config.process and the data are of different processes: period_um 2.0 against 1.6",
        ),
        (
            "full",
            "--model.config.init_args.wavelengths=301",
            "model.config.wavelengths is 301, but the data have 151 wavelengths: 450 to 750 nm in steps of 2",
        ),
    ],
)
def test_a_network_of_another_process_is_refused(
    preset: str, setting: str, message: str, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", f"--config=training/configs/{preset}.yaml", f"--data.path={other}", setting])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_does_not_resume_on_another_process(
    checkpoint: Path, train: Callable[..., Path], other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train(tmp_path, other, f"--ckpt_path={checkpoint}", "--trainer.max_epochs=4")
    assert exit_.value.code == 2
    expected = "the data and the checkpoint to resume from are of different processes: period_um 1.6 against 2.0"
    assert expected in capsys.readouterr().err


def warm_started(weights: Path, known: Provenance) -> tuple[SpectraModule, str]:
    """A module that starts from weights of other data, and its warning without the path of the weights."""
    with pytest.warns(UserWarning, match="the provenance will not list") as said:
        module = SpectraModule(TINY_FIELD, AdaptiveSpectralLoss(), weights=weights, provenance=known)
    assert module.provenance == known, "the data sets of the weights are not listed"
    return module, str(said[-1].message).replace(str(weights), weights.name)


def test_a_warm_start_from_another_process_says_so(other_run: Path, samples: Samples) -> None:
    module, warning = warm_started(other_run, provenance({"fine": samples}))
    assert warning.startswith("the data and last.ckpt are of different processes: period_um 2.0 against 1.6, ")
    assert warning.endswith(": the provenance will not list what last.ckpt was trained on")
    assert "\n" not in warning
    assert isinstance(module.network, DiffractionFieldNet)
    assert module.network.process == samples.process


@pytest.mark.parametrize(
    ("of_weights", "message"),
    [
        (True, "merged.ckpt knows only the mean of G1 and G2, the data knows each of them"),
        (False, "the data knows only the mean of G1 and G2, merged.ckpt knows each of them"),
    ],
)
def test_a_warm_start_with_greens_merged_on_one_side_only_says_so(
    of_weights: bool, message: str, checkpoint: Path, samples: Samples, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["provenance"]["merged_greens"] = of_weights
    torch.save(state, tmp_path / "merged.ckpt")
    known = provenance({"new": samples}).model_copy(update={"merged_greens": not of_weights})
    _, warning = warm_started(tmp_path / "merged.ckpt", known)
    assert warning == f"{message}: the provenance will not list what merged.ckpt was trained on"


def test_a_warm_start_from_weights_without_provenance_says_so(
    checkpoint: Path, samples: Samples, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["provenance"]
    torch.save(state, tmp_path / "old.ckpt")
    _, warning = warm_started(tmp_path / "old.ckpt", provenance({"new": samples}))
    assert warning == "old.ckpt does not state what it was trained on: the provenance will not list it"


def test_a_warm_start_keeps_the_data_sets_of_its_weights(checkpoint: Path, coarse: Path) -> None:
    known = SpectraDataModule(str(coarse)).provenance
    module = SpectraModule(
        TINY_FIELD, AdaptiveSpectralLoss(), weights=checkpoint, preset="field+finetune", provenance=known
    )
    assert module.provenance is not None
    assert [(source.name, source.structures) for source in module.provenance.data] == [("coarse", 4), ("fine", 16)]
    assert module.provenance.preset == "field+finetune"


def test_of_a_data_set_trained_on_twice_the_larger_part_counts() -> None:
    def made(**counts: int) -> Provenance:
        data = (
            DataSource(name=name, schema_version=2, structures=count, solver={}, made_with="test")
            for name, count in counts.items()
        )
        return Provenance(process=Process(), data=tuple(data))

    joined = with_earlier_data(made(a=5, b=3), made(c=1, b=4, a=2), "weights")
    assert [(source.name, source.structures) for source in joined.data] == [("a", 5), ("b", 4), ("c", 1)]


def test_warm_start_takes_over_what_fits(checkpoint: Path) -> None:
    source = load_network(checkpoint)
    known = source.state_dict()
    network = DiffractionFieldNetConfig(stem=8, width=32, blocks=2).build()
    left = warm_start(network, source)
    assert left
    assert all(name.startswith("body.") for name in left)
    for name, value in network.state_dict().items():
        assert name in left or torch.equal(value, known[name])
    assert not set(left) & set(known)
    splines = DiffractionFieldNetConfig(stem=8, width=32, blocks=1, beam=True, coarse_head=True, spectral_basis=40)
    assert warm_start(splines.build(), source) == []
    with pytest.raises(ValueError, match=r"model.weights: nothing in .*last.ckpt fits this network"):
        SpectraModule(TINY_QUERY, AdaptiveSpectralLoss(), weights=checkpoint)


def test_a_warm_start_keeps_the_function_where_an_improvement_can_start_without_effect() -> None:
    """FiLM's scale and the detector heads, from a network whose FiLM and heads are not those of its initialisation."""
    torch.manual_seed(0)
    off = replace(TINY_QUERY, film_scale=False, detector_heads=False, memory_norm=False, fine_tokens=False)
    source = off.build().eval()
    density = torch.randint(0, 2, (3, 1, 128, 128)).float()
    with torch.no_grad():
        expected = source(density)
        for film_scale, detector_heads in ((True, False), (False, True), (True, True)):
            network = replace(off, film_scale=film_scale, detector_heads=detector_heads).build().eval()
            assert (network(density) - expected).abs().max() > 1e-3
            assert warm_start(network, source) == []
            torch.testing.assert_close(network(density), expected)


def test_a_warm_start_interpolates_the_positions_of_more_tokens() -> None:
    off = replace(TINY_QUERY, fine_tokens=False)
    source, network = off.build(), TINY_QUERY.build()
    assert warm_start(network, source) == ["tokens.weight"], "it reads another map"
    coarse, fine = (n.positions[:-1].reshape(side, side, -1) for n, side in ((source, 4), (network, 8)))
    assert torch.equal(fine[::2, ::2], coarse)
    torch.testing.assert_close(fine[1, 7], (coarse[0, 3] + coarse[0, 0] + coarse[1, 3] + coarse[1, 0]) / 4)
    assert torch.equal(network.positions[-1], source.positions[-1])


def test_a_warm_start_says_that_the_memory_norm_changes_the_function(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    off = replace(TINY_QUERY, memory_norm=False).for_process(Process())
    state["network"] = (type(off).__name__, off.to_dict())
    state["state_dict"] = {f"network.{name}": weight for name, weight in off.build().state_dict().items()}
    torch.save(state, tmp_path / "off.ckpt")
    with pytest.warns(
        UserWarning, match=r"memory_norm.weight: they start from scratch; no start makes memory_norm change"
    ):
        SpectraModule(TINY_QUERY, AdaptiveSpectralLoss(), weights=tmp_path / "off.ckpt")


def test_any_loader_of_batches_trains_a_module(fine: Path, tmp_path: Path) -> None:
    """No data module: the module asks for nothing but batches, and without a provenance it stores none."""
    data = SpectraDataModule(str(fine), batch_size=8)
    batches: list[Batch] = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    module = SpectraModule(TINY_FIELD, AdaptiveSpectralLoss())
    before = module.network.state_dict()["head.2.weight"].clone()
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    loader: DataLoader[Batch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, train_dataloaders=loader, val_dataloaders=loader)
    assert trainer.global_step == 2
    assert "validation/mae" in trainer.callback_metrics
    assert not torch.equal(module.network.state_dict()["head.2.weight"], before)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    assert read_checkpoint(tmp_path / "plain.ckpt").provenance is None


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_where_only_the_mean_of_greens_is_known_only_the_mean_is_compared(samples: Samples) -> None:
    known = provenance({"fine": samples})
    merged = known.model_copy(update={"merged_greens": True})
    density = torch.from_numpy(samples.structures[:2, None]).float()
    for facts, exact in ((merged, True), (known, False)):
        module = SpectraModule(TINY_FIELD, AdaptiveSpectralLoss(), provenance=facts)
        with torch.no_grad():
            spectra = merge_greens(module(density)).unsqueeze(1)
            batch = Batch(density, torch.zeros(2, 1, 2), spectra, torch.zeros(2, dtype=torch.bool))
            assert (float(module.training_step(batch, 0)) == 0) == exact


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_several_positions_need_a_network_that_predicts_the_field(samples: Samples) -> None:
    module = SpectraModule(TINY_QUERY, AdaptiveSpectralLoss())
    batch = Batch(
        torch.zeros(1, 1, 128, 128), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2, 301), torch.zeros(1).bool()
    )
    with pytest.raises(ValueError, match=r"data.positions above 1 needs a network that predicts the field"):
        module.training_step(batch, 0)


@pytest.mark.parametrize(("name", "coarser"), [("field", 282), ("fast", 596)])
def test_the_bundled_checkpoints_state_what_they_were_trained_on(name: str, coarser: int) -> None:
    known = read_checkpoint(CHECKPOINTS / f"{name}.ckpt").provenance
    assert known is not None
    assert (known.process, known.preset, known.merged_greens) == (Process(), name, False)
    assert {source.name: (source.structures, source.solver["cells"]) for source in known.data} == {
        "bayer-600nm-80": (645, 80),
        "designs-600nm-80": (253, 80),
        "bayer-600nm-64": (coarser, 64),
        "bayer-600nm": (2391, 80),
        "bayer-600nm-coarse": (15908, 48),
        "designs-600nm": (204, 80),
        "designs-600nm-coarse": (1158, 48),
    }


@pytest.mark.parametrize("file", sorted(CHECKPOINTS.glob("*.ckpt")), ids=lambda file: file.stem)
def test_each_checkpoint_of_the_repository_predicts(file: Path) -> None:
    """Those in half precision, too: finite spectra of two structures, better than the mean spectrum, and a provenance."""
    trained = read_checkpoint(file)
    assert trained.provenance is not None
    assert trained.provenance.process == Process()
    data = load(CHECKPOINTS.parents[1] / "datasets" / "bayer-600nm").of("test").take(np.arange(2))
    spectra = predict(trained.network, data.structures)
    assert spectra.shape == (2, 4, len(Process().wavelengths_nm))
    assert spectra.dtype == np.float32
    assert np.isfinite(spectra).all()
    assert np.abs(spectra - data.spectra).mean() < 0.02, "the mean spectrum has .038"


def test_files_that_are_no_checkpoint_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    with pytest.raises(ValueError, match=r"x.ckpt cannot be read: No such file or directory"):
        load_network(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint that this version can read"):
        load_network(file)
    for content in (b"some text\n", b"r", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is not a checkpoint that this version can read"):
            load_network(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match="network"):
        load_network(file)
    torch.save(torch.load(checkpoint, weights_only=True) | {"state_dict": [1]}, file)
    with pytest.raises(ValueError, match="is not a checkpoint that this version can read"):
        load_network(file)
    good = torch.load(checkpoint, weights_only=True)
    torch.save(good | {"provenance": good["provenance"] | {"channels": ["R", "B"]}}, file)
    with pytest.raises(ValueError, match=r"malformed provenance: channels must be R, G1, G2, B, got R, B"):
        read_checkpoint(file)
    torch.save(good | {"provenance": good["provenance"] | {"data": []}}, file)
    with pytest.raises(ValueError, match=r"malformed provenance: data: "):
        read_checkpoint(file)
    narrow = Process(period_um=1.6).model_dump(mode="json")
    torch.save(good | {"provenance": good["provenance"] | {"process": narrow}}, file)
    with pytest.raises(ValueError, match=r"x.ckpt and its provenance are of different processes: .*against 1.6"):
        read_checkpoint(file)
    good["state_dict"]["network.head.0.bias"][0] = torch.nan
    torch.save(good, file)
    with pytest.raises(ValueError, match=r"weights that are not finite, in head.0.bias"):
        read_checkpoint(file)
