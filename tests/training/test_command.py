"""`metaspec-train`: what it refuses, in one line; its presets; its report; its designs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from metaspec_contract.process import Process
from metaspec_simulation.data.families import SOURCES
from metaspec_simulation.data.recipe import given_recipe
from metaspec_simulation.dataset import Samples
from metaspec_training.cli import main
from metaspec_training.designs import make_designs
from metaspec_training.report.evaluation import (
    distance_to_training,
    errors,
    mean_spectrum,
    nearest_predictor,
    uselessness,
    with_merged_greens,
)
from metaspec_training.report.figures import draw_history

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "training" / "configs"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command ends with, on stderr, and that is all but messages of Lightning."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("metaspec-train: ")
    assert not [other for other in before if "usage" in other or "Traceback" in other or "error" in other]
    return line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--model.learning_rate=-1", "model.learning_rate must be above 0, got -1"),
        ("--model.warm_up=1.5", "model.warm_up is a share of all steps"),
        ("--data.batch_size=0", "data.batch_size must be at least 1, got 0"),
        ("--data.path=nowhere", "is not a MetaSpec data set"),
        ("--model.loss.init_args.w_grad=-3", "w_grad must not be negative, got -3"),
        ("--model.learning_rte=1", "learning_rte"),
        ("--model.weights=nowhere.ckpt", "nowhere.ckpt cannot be read: No such file or directory"),
        ("--ckpt_path=nowhere.ckpt", "Checkpoint file not found: nowhere.ckpt"),
        ("--trainer.devices=0", "devices"),
        ("--trainer.max_epochs=-1", "trainer.max_epochs or trainer.max_steps must be set"),
        ("--trainer.max_epochs=many", "Parser key \"trainer.max_epochs\": Expected a <class 'int'>. Got value: many"),
        ("--trainer.precision=half", "Precision 'half' is invalid"),
        ("--trainer.accelerator=abacus", "invalid accelerator name: `accelerator='abacus'`"),
        ("--trainer.gradient_clip_val=1", "trainer.gradient_clip_val is not used: set model.clip_norm"),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be at least 1"),
        ("--trainer.logger=Nothing", 'Parser key "trainer.logger"'),
        ("--model.config.init_args.width=-32", "model.config.width must be a positive multiple of 16, got -32"),
        ("--model.config.init_args.stem=12", "model.config.stem must be a positive multiple of 8, got 12"),
        ("--model.config.init_args.blocks=-1", "model.config.blocks must be at least 0, got -1"),
        ("--model.config.init_args.spectral_basis=3", "model.config.spectral_basis must be at least 4, got 3"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch must be above 0, got 0"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval must be above 0, got 0"),
        ("--model.config.init_args.witdh=32", "Option 'witdh' is not accepted"),
        ("--model.optimizer=sgd", "Expected a typing.Literal['adamw', 'muon']. Got value: sgd"),
        ("--model.freeze=[encoder]", "model.freeze: the network has no part encoder; its parts are stem, beam, body"),
        ("--model.ramp_steps=0", "model.ramp_steps must be at least 1, got 0"),
        ("--model.loss.init_args.blue_weight=-1", "blue_weight must not be negative, got -1"),
        ("--data.seed=-1", "data.seed must not be negative, got -1"),
        ("--ckpt_path=training/checkpoints/fast.ckpt", "fast.ckpt holds weights, but no training to resume"),
        (
            "--model.weights=training/train.py",
            "train.py is not a checkpoint that this version can read: it holds something",
        ),
    ],
)
def test_settings_that_are_refused(
    setting: str, message: str, fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--config={CONFIGS / 'field.yaml'}", f"--data.path={fine}", "--trainer.precision=32"]
    small = [f"--model.config.init_args.{size}" for size in ("width=32", "blocks=1", "stem=8")]
    said = refusal(capsys, "fit", *settings, *small, f"--trainer.default_root_dir={tmp_path}", setting)
    assert message in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {learning_rte: 1}", "Subcommand 'fit' does not accept option 'model.learning_rte'"),
        (
            b"model: {learning_rate: fast}",
            "Parser key \"model.learning_rate\": Expected a <class 'float'>. Got value: fast",
        ),
        (b"model:\n  loss: [1, 2\n  x: 3", "settings.yaml is not YAML, in line 3: expected ',' or ']', but got ':'"),
        (b"\x80\x81\x82", "settings.yaml is not a file of text in YAML"),
        (b"", "settings.yaml holds no settings"),
        (b"fast training", "settings.yaml holds no settings"),
        (
            b"trainer: {callbacks: [{class_path: nowhere.Callback}]}",
            "Parser key \"trainer.callbacks\": Problem with given class_path 'nowhere.Callback': No module named 'nowhere'",
        ),
    ],
)
def test_files_of_settings_that_are_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_bytes(content)
    assert message in refusal(
        capsys, "fit", f"--config={CONFIGS / 'field.yaml'}", f"--config={tmp_path / 'settings.yaml'}"
    )


def test_a_run_resumes_with_its_own_network_only(
    trained: Path, checkpoint: Path, fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        f"--config={trained / 'config.yaml'}",
        f"--ckpt_path={checkpoint}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    said = refusal(capsys, "fit", *settings, "--model.config.init_args.width=48")
    assert "the network of the checkpoint to resume from has width 32, not 48" in said
    said = refusal(capsys, "fit", *settings, "--model.optimizer=adamw")
    assert "the checkpoint to resume from has model.optimizer muon, not adamw" in said


@pytest.mark.slow
def test_the_script_refuses_in_one_line_too(tmp_path: Path) -> None:
    command = [sys.executable, "training/train.py", "--config=/nowhere.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr == "metaspec-train: Parser key \"config\": File does not exist: '/nowhere.yaml'\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("", "the command must be one of fit, report, weights, designs, convert, got none; see --help"),
        ("train", "the command must be one of fit, report, weights, designs, convert, got train; see --help"),
        ("fit --config /nowhere.yaml", "Parser key \"config\": File does not exist: '/nowhere.yaml'"),
        ("fit --model.foo 3", "unrecognized arguments: --model.foo 3"),
        ("report", "the following arguments are required: run"),
        (
            "report run --split train",
            "Parser key \"split\": Expected a typing.Literal['validation', 'test']. Got value: train",
        ),
        ("weights", "the following arguments are required: run"),
        ("designs", "the following arguments are required: checkpoint, out"),
        ("designs --checkpoint nowhere.ckpt --out x.npy", "nowhere.ckpt cannot be read: No such file or directory"),
    ],
)
def test_arguments_that_are_refused(command: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command.split())
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", f"metaspec-train: {line}\n")


@pytest.mark.parametrize("command", ["fit", "report", "weights", "designs"])
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "metaspec_training", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == f"metaspec-train {version('metaspec-lab')}\n"
    main(["--help"])
    assert "metaspec-train designs" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["field", "fast", "full", "baseline", "fast+finetune", "fast+adapt"])
def test_presets_are_valid(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--config={CONFIGS / name}.yaml" for name in preset.split("+")]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *files, "--print_config"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "class_path: metaspec_training" in printed
    assert "  precision: auto\n" in printed


def test_report(trained: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(trained), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| nearest training structure |" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["counts"], report["evaluated"], report["neighbours"]) == ({"train": 16, "test": 3}, 3, 16)
    assert set(report["errors"]) >= {"network", "mean spectrum", "nearest training structure"}
    assert set(report["mae_by_family"]) <= set(SOURCES)
    assert report["provenance"]["data"][0]["name"] == "fine"
    assert report["merged_greens"] is False
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert f"{report['errors']['network']['mae']:.4f}" in page
    assert report["useless"] is True, "after three epochs of 16 structures"
    warning = uselessness(*(report["errors"][name]["mae"] for name in ("network", "mean spectrum")))
    assert warning is not None
    for text in (printed, page, (tmp_path / "report.md").read_text()):
        assert text.count(warning) == 1
    told = "Trained on 16 structures of fine. Process: Si3N4 on SiO2, period 2 um"
    assert told in page
    assert told in (tmp_path / "report.md").read_text()
    assert "is not the folder of a run" in refusal(capsys, "report", str(tmp_path / "none"))
    mismatch = refusal(capsys, "report", str(trained), "--data", str(other), "--out", str(tmp_path))
    assert "are of different processes: period_um 2.0 against 1.6" in mismatch
    assert str(other) in mismatch


def test_a_report_of_a_checkpoint_without_a_run(fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "mine.ckpt"
    checkpoint.symlink_to(ROOT / "training" / "checkpoints" / "fast.ckpt")
    assert "is a checkpoint without a run: give --data, the data set to" in refusal(capsys, "report", str(checkpoint))
    options = ["report", str(checkpoint), "--data", str(fine)]
    assert "leave out --checkpoint" in refusal(capsys, *options, "--checkpoint", str(checkpoint))
    main(options)
    page = (tmp_path / "mine-report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "<h2>Settings" not in page
    assert json.loads((tmp_path / "mine-report" / "report.json").read_text())["useless"] is False
    assert "useless" not in capsys.readouterr().out + page


def test_a_curve_of_one_point_is_seen(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as log:
        for step in range(3):
            log.add_scalar("train/loss", 1.0, step)
        log.add_scalar("validation/mae", 0.1, 2)
    figure = draw_history(tmp_path)
    assert figure is not None
    terms, error, _ = figure.axes
    assert [line.get_marker() for line in (*terms.lines, *error.lines)] == ["", "o"]


def test_a_report_of_a_part_of_the_data_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(trained), "--out", str(tmp_path), "--limit=2", "--neighbours=4", "--batch_size=1"])
    told = "2 of 3 structures of the test split, nearest ones looked for in 4 of 16 of the train split."
    assert told in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        assert told in (tmp_path / name).read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["counts"], report["evaluated"], report["neighbours"]) == ({"train": 16, "test": 3}, 2, 4)
    assert "limit must be at least 2, got 1" in refusal(capsys, "report", str(trained), "--limit=1")
    assert "device 'gpu' cannot be used here: " in refusal(capsys, "report", str(trained), "--device=gpu")


def test_a_report_says_that_only_the_mean_of_greens_is_known(trained: Path, tmp_path: Path) -> None:
    """And counts no error in the difference of the two, which nobody taught."""
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    best["provenance"]["merged_greens"] = True
    torch.save(best, tmp_path / "merged.ckpt")
    main(["report", str(trained), "--out", str(tmp_path), "--checkpoint", str(tmp_path / "merged.ckpt")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["merged_greens"] is True
    assert "network, mean over 4 symmetries" in report["errors"]  # those that leave green where green is
    assert "Only the mean of G1 and G2 is known" in (tmp_path / "report.html").read_text()
    by_detector = report["errors"]["network"]["mae_by_detector"]
    assert by_detector["G1"] == by_detector["G2"]


def test_trivial_predictors(samples: Samples) -> None:
    training, test = samples.of("train"), samples.of("test")
    np.testing.assert_allclose(mean_spectrum(samples, "train"), training.spectra.mean(axis=0), rtol=1e-5)
    assert errors(test.spectra, test.spectra, test.process).mae == 0
    assert errors(test.spectra, test.spectra, test.process).r2 == 1
    assert uselessness(0.0375, 0.0380) is not None, "on the plateau"
    assert uselessness(0.0323, 0.0380) is None
    nearest = nearest_predictor(training, training.take(np.arange(10)))
    np.testing.assert_array_equal(nearest, training.spectra[:10])
    np.testing.assert_allclose(distance_to_training(training, training.take(np.arange(10))), 0, atol=1e-3)
    many = training.take(np.arange(3000) % (len(training) - 1))  # in several blocks, all but the last structure
    last = training.take(np.array([len(training) - 1]))
    first = many.take(np.arange(len(training) - 1))
    np.testing.assert_array_equal(nearest_predictor(many, last), nearest_predictor(first, last))
    np.testing.assert_allclose(distance_to_training(many, last), distance_to_training(first, last), rtol=1e-3)
    some = samples.of("train", 5)
    assert len(some) == 5
    np.testing.assert_array_equal(some.packed, samples.of("train", 5).packed)
    assert {row.tobytes() for row in some.packed} < {row.tobytes() for row in training.packed}
    merged = with_merged_greens(test.spectra)
    np.testing.assert_array_equal(merged[:, [0, 3]], test.spectra[:, [0, 3]])
    np.testing.assert_allclose(merged[:, 1], test.spectra[:, 1:3].mean(axis=1), rtol=1e-6)


@pytest.fixture
def designs(checkpoint: Path, tmp_path: Path) -> Callable[..., NDArray[np.uint8]]:
    def make(name: str, *more: str) -> NDArray[np.uint8]:
        out = tmp_path / name
        main(["designs", "--checkpoint", str(checkpoint), "--out", str(out), "--count=6", "--steps=3", *more])
        array: NDArray[np.uint8] = np.load(out)
        return array

    return make


def test_designs_are_binary_and_reproducible(
    designs: Callable[..., NDArray[np.uint8]], checkpoint: Path, tmp_path: Path
) -> None:
    found = designs("a.npy")
    assert found.shape == (6, 128, 128)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(designs("b.npy"), found)
    assert not np.array_equal(designs("c.npy", "--seed=1"), found)
    assert given_recipe(Process(), 48, found).given
    with pytest.raises(ValueError, match="must be at least 2, got 1 and 24"):
        make_designs(checkpoint, tmp_path / "d.npy", count=1)


def test_designs_need_the_process_of_the_network(checkpoint: Path, tmp_path: Path) -> None:
    """It comes from the checkpoint, or for one of an earlier version from a file, and never from both sides differently."""
    state = torch.load(checkpoint, weights_only=True)
    del state["provenance"]
    old, out, file = tmp_path / "old.ckpt", tmp_path / "designs.npy", tmp_path / "process.json"
    torch.save(state, old)
    with pytest.raises(ValueError, match=r"old.ckpt does not state its process: give it with --process FILE.json"):
        make_designs(old, out, count=2, steps=2)
    file.write_text(Process().model_dump_json())
    make_designs(old, out, count=2, steps=2, process=file)
    assert len(np.load(out)) == 2
    file.write_text(Process(period_um=1.6).model_dump_json())
    with pytest.raises(ValueError, match=r"process.json are of different processes: period_um 2.0 against 1.6"):
        make_designs(checkpoint, out, count=2, steps=2, process=file)
    file.write_text('{"period_um": 2.0}')
    with pytest.raises(ValueError, match=r"process.json: process must state thickness_um"):
        make_designs(old, out, count=2, steps=2, process=file)
