"""The network of a user's own code: its weights find their places by name, by map or by guess, and no code is run."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from metaspec_contract.process import Process
from metaspec_contract.structures import symmetries
from metaspec_simulation import Solver
from metaspec_simulation.cli import main as simulate
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.dataset import load, provenance
from metaspec_training.cli import main
from metaspec_training.convert import read_weights
from metaspec_training.fit.checkpoint import read_checkpoint, warm_start
from metaspec_training.networks.query import DiffractionNet, DiffractionNetConfig
from metaspec_training.weight_matching import match_weights

SIZE: dict[str, Any] = {"channels": 32, "width": 32, "blocks": 2, "heads": 2}
BASELINE: dict[str, Any] = {
    "memory_norm": False,
    "film_scale": False,
    "detector_heads": False,
    "decoder_dropout": 0.03,
    "fine_tokens": False,
}
RENAMED = {
    r"encoder\.stem\.": "backbone.conv_in.",
    r"encoder\.stages\.(\d)\.(\d)\.first\.": r"backbone.stage\1.block\2.conv1.",
    r"encoder\.stages\.(\d)\.(\d)\.first_norm\.": r"backbone.stage\1.block\2.norm1.",
    r"encoder\.stages\.(\d)\.(\d)\.second\.": r"backbone.stage\1.block\2.conv2.",
    r"encoder\.stages\.(\d)\.(\d)\.second_norm\.": r"backbone.stage\1.block\2.norm2.",
    r"encoder\.stages\.(\d)\.(\d)\.skip\.": r"backbone.stage\1.block\2.shortcut.",
    r"encoder\.mixing\.weight": "backbone.fourier.w",
    r"encoder\.mixing\.norm\.": "backbone.fourier.gn.",
    r"tokens\.": "to_tokens.",
    r"global_token\.": "pooled.",
    r"positions": "position_embedding",
    r"memory_norm\.": "kv_norm.",
    r"queries\.linear\.": "wavelengths.0.",
    r"film\.hidden\.": "film.mlp.",
    r"film\.out\.": "film.head.",
    r"decoder\.(\d)\.query_norm\.": r"layers.\1.ln_q.",
    r"decoder\.(\d)\.(query|key|value)\.": r"layers.\1.attn.\2.",
    r"decoder\.(\d)\.attention_out\.": r"layers.\1.attn.out_proj.",
    r"decoder\.(\d)\.conv_norm\.": r"layers.\1.ln_conv.",
    r"decoder\.(\d)\.depthwise\.": r"layers.\1.dw.",
    r"decoder\.(\d)\.pointwise\.": r"layers.\1.pw.",
    r"decoder\.(\d)\.feed_norm\.": r"layers.\1.ln_ff.",
    r"decoder\.(\d)\.feed\.": r"layers.\1.mlp.",
    r"norm\.": "ln_out.",
    r"heads\.": "out.",
    r"bias": "channel_bias",
}
"""Names in the network here, and in another implementation."""


def other_name(name: str) -> str:
    (renamed,) = {re.sub(f"^{ours}", theirs, name) for ours, theirs in RENAMED.items() if re.match(ours, name)}
    return renamed


@pytest.fixture(scope="module", params=["baseline", "full"])
def network(request: pytest.FixtureRequest) -> DiffractionNet:
    torch.manual_seed(1)
    switches = BASELINE if request.param == "baseline" else {}
    network = DiffractionNetConfig(**SIZE, **switches).build().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # no two alike: a mistake changes the function
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network


@pytest.fixture
def config(network: DiffractionNet, tmp_path: Path) -> Path:
    """A training configuration of the network's size."""
    file = tmp_path / "small.yaml"
    switches = {name: getattr(network.config, name) for name in (*SIZE, *BASELINE)}
    kind = "metaspec_training.networks.query.DiffractionNetConfig"
    file.write_text(yaml.safe_dump({"model": {"config": {"class_path": kind, "init_args": switches}}}))
    return file


def as_others_write(network: DiffractionNet) -> dict[str, Tensor]:
    """The weights under other names, in another order, with the Fourier weights complex and the projections packed."""
    named = {other_name(name): weight for name, weight in network.state_dict().items()}
    named["backbone.fourier.w"] = torch.view_as_complex(named["backbone.fourier.w"])
    named["position_embedding"] = named["position_embedding"].unsqueeze(0)
    named["channel_bias"] = named["channel_bias"].unflatten(0, (2, 2))
    for block in range(network.config.blocks):
        for leaf in ("weight", "bias"):
            parts = [named.pop(f"layers.{block}.attn.{part}.{leaf}") for part in ("query", "key", "value")]
            named[f"layers.{block}.attn.in_proj_{leaf}"] = torch.cat(parts)

    def place(name: str) -> tuple[int, ...]:
        tops = ["wavelengths", "position_embedding", "film", "backbone", "layers"]  # the others come last
        top = name.split(".")[0]
        block = int(name.split(".")[1]) if top == "layers" else 0
        inner = ["ln_q", "in_proj", "out_proj", "ln_conv", "dw", "pw", "ln_ff", "mlp"]
        parts = ["conv_in", "stage0", "stage1", "fourier", "stage2", "stage3"] if top == "backbone" else inner
        part = next((n for n, text in enumerate(parts) if text in name), 0)
        conv_first = 1 if ".norm" in name else 2 if ".shortcut" in name else 0
        block_of_stage = int(name.split(".block")[1][0]) if ".block" in name else 0
        return (tops.index(top) if top in tops else len(tops), block, part, block_of_stage, conv_first)

    return {name: named[name] for name in sorted(named, key=place)}


def spectra_of(network: torch.nn.Module) -> Tensor:
    density = torch.rand(2, 1, 128, 128, generator=torch.Generator().manual_seed(0)).round()
    with torch.inference_mode():
        spectra: Tensor = network(density)
    return spectra


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["convert", *map(str, arguments)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("metaspec-train: ")
        return line

    return run


def converted(*arguments: object) -> None:
    main(["convert", *map(str, arguments)])


def test_by_guess(
    network: DiffractionNet,
    config: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All weights but two norms of one shape, in different places, which are told apart by a map."""
    file, out = tmp_path / "mine.pt", tmp_path / "mine.ckpt"
    weights = {f"module._orig_mod.{name}": weight for name, weight in as_others_write(network).items()}
    torch.save({"epoch": 49, "model_state_dict": weights, "optimizer": {"state": {}}}, file)
    options: tuple[object, ...] = (file, "--config", config, "--process", "default", "--out", out)
    by_map = ""
    if network.config.memory_norm:
        assert (
            "4 of the network here: memory_norm.weight, memory_norm.bias, norm.weight, norm.bias; "
            "4 in the file: kv_norm.weight, kv_norm.bias, ln_out.weight, ln_out.bias."
        ) in refused(*options)
        (tmp_path / "map.json").write_text('{"ln_out": "norm"}')
        options, by_map = (*options, "--map", tmp_path / "map.json"), "2 by map, "
    converted(*options, "--dry-run")
    assert not out.exists()
    printed = capsys.readouterr().out
    count = len(network.state_dict())
    assert re.search(rf"{count} of {count} weights have a partner: {by_map}\d+ by guess, \d+ by order\.", printed)
    assert re.search(r"encoder\.mixing\.weight +64x16x9x2 +backbone\.fourier\.w +64x16x9x2 +guess\n", printed)
    assert printed.endswith("Nothing was written.\n")
    converted(*options)
    trained = read_checkpoint(out)
    assert torch.equal(spectra_of(trained.network), spectra_of(network))
    assert trained.provenance is not None
    assert (trained.provenance.process, trained.provenance.preset) == (Process(), "small")
    assert (trained.provenance.data[0].name, trained.provenance.data[0].structures) == ("mine", 0)
    other = DiffractionNetConfig(**SIZE).build()
    assert "encoder.stem.0.weight" not in warm_start(other, trained.network)


def test_by_name_and_by_map(network: DiffractionNet, config: Path, tmp_path: Path, capsys: Any) -> None:
    """What has our names needs no map; of the rest, layers and single weights are named, and one is left out."""
    weights = {
        name if name.startswith("encoder.stages") else other_name(name): weight
        for name, weight in network.state_dict().items()
    }
    parts: dict[str, str | None] = {
        "backbone.conv_in": "encoder.stem",
        "backbone.fourier.w": "encoder.mixing.weight",
        "backbone.fourier.gn": "encoder.mixing.norm",
        "to_tokens": "tokens",
        "pooled": "global_token",
        "position_embedding": "positions",
        "wavelengths.0": "queries.linear",
        "film.mlp": "film.hidden",
        "film.head": "film.out",
        "ln_out": "norm",
        "out": "heads",
        "channel_bias": "bias",
        "steps": None,
    }
    if "kv_norm.weight" in weights:
        parts["kv_norm"] = "memory_norm"
    for ours, theirs in (
        ("query_norm", "ln_q"),
        ("query", "attn.query"),
        ("key", "attn.key"),
        ("value", "attn.value"),
        ("attention_out", "attn.out_proj"),
        ("conv_norm", "ln_conv"),
        ("depthwise", "dw"),
        ("pointwise", "pw"),
        ("feed_norm", "ln_ff"),
        ("feed", "mlp"),
    ):
        parts |= {f"layers.{block}.{theirs}": f"decoder.{block}.{ours}" for block in range(2)}
    torch.save(weights | {"steps": torch.tensor(7)}, tmp_path / "mine.pt")
    (tmp_path / "map.json").write_text(json.dumps(parts))
    out = tmp_path / "new" / "mine.ckpt"
    options = ("--config", config, "--process", "default", "--merged-greens", "--map", tmp_path / "map.json")
    converted(tmp_path / "mine.pt", *options, "--out", out)
    counts = re.search(r"partner: (\d+) by name, (\d+) by map\.", capsys.readouterr().out)
    assert counts is not None
    assert int(counts[1]) + int(counts[2]) == len(network.state_dict())
    trained = read_checkpoint(out)
    assert torch.equal(spectra_of(trained.network), spectra_of(network))
    assert trained.provenance is not None
    assert trained.provenance.merged_greens


def test_a_lightning_checkpoint_tried_on_its_data(
    network: DiffractionNet, config: Path, fine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {f"model.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "mine.ckpt")
    out = tmp_path / "ours.ckpt"
    converted(tmp_path / "mine.ckpt", "--config", config, "--data", fine, "--out", out)
    printed = capsys.readouterr().out
    assert f"{len(weights)} by name." in printed
    error = re.search(r"Mean absolute error on 3 structures of .*fine: (0\.\d+); that of the mean spectrum", printed)
    assert error is not None
    trained, samples = read_checkpoint(out), load(fine)
    assert trained.provenance == provenance({"fine": samples}, "small")
    some = samples.of("validation")
    with torch.inference_mode():
        predicted = trained.network(torch.from_numpy(some.structures[:, None]).float()).flatten(1, 2).numpy()
    assert float(error[1]) == pytest.approx(abs(predicted - some.spectra).mean(), abs=1e-4)


def test_what_does_not_fit_is_refused_or_starts_from_scratch(
    network: DiffractionNet, config: Path, tmp_path: Path, refused: Callable[..., str], capsys: Any
) -> None:
    weights = network.state_dict()
    del weights["norm.weight"]
    file, out = tmp_path / "mine.pt", tmp_path / "mine.ckpt"
    torch.save(weights | {"extra": torch.zeros(3, 3)}, file)
    options = (file, "--config", config, "--process", "default", "--out", out)
    line = refused(*options)
    assert "weights without a partner: 1 of the network here: norm.weight; 1 in the file: extra. Name them" in line
    assert not out.exists()
    capsys.readouterr()
    converted(*options, "--partial")
    assert re.search(r"norm\.weight +32 +- +nothing\n", capsys.readouterr().out)
    kept = read_checkpoint(out).network.state_dict()
    assert torch.equal(kept.pop("norm.weight"), torch.ones(32))
    assert all(torch.equal(weight, weights[name]) for name, weight in kept.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nothing": "norm"}, "the map names nothing, but there is no such weight"),
        ({"norm.weight": "nowhere"}, "the map takes norm.weight to nowhere, but the network has no such weight"),
        ({"norm.weight": "bias"}, "the map takes norm.weight, (32,), to bias, which is (4, 301)"),
        (
            {"tokens.bias": "norm.bias", "norm.bias": "norm.bias"},
            "the map takes both tokens.bias and norm.bias to norm.bias",
        ),
        (["norm"], "must be a JSON object of names to names or null"),
        ('{"norm": null, "norm": "bias"}', "map.json: norm is named more than once"),
        ("norm: bias", "map.json is not JSON: Expecting value: line 1 column 1"),
    ],
)
def test_a_map_that_cannot_be(given: Any, message: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    network = DiffractionNetConfig(**SIZE).build()
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    kind = "metaspec_training.networks.query.DiffractionNetConfig"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"model": {"config": {"class_path": kind, "init_args": SIZE}}}))
    (tmp_path / "map.json").write_text(given if isinstance(given, str) else json.dumps(given))
    options = ("--config", tmp_path / "small.yaml", "--process", "default", "--map", tmp_path / "map.json", "--dry-run")
    assert message in refused(tmp_path / "mine.pt", *options)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.victim, "harm")


def test_no_code_in_a_file_is_run(tmp_path: Path, refused: Callable[..., str]) -> None:
    options = ("--preset", "baseline", "--process", "default", "--out", tmp_path / "out.ckpt")
    victim, file = tmp_path / "victim", tmp_path / "mine.pt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": Malicious(victim)}, file)
    assert "holds more than tensors and plain values, which is not read because it could run code" in refused(
        file, *options
    )
    file.write_bytes(pickle.dumps(Malicious(victim)))
    assert "could run code" in refused(file, *options)
    assert not victim.exists()
    assert not (tmp_path / "out.ckpt").exists()


def test_files_that_hold_no_weights(tmp_path: Path, refused: Callable[..., str]) -> None:
    options = ("--preset", "baseline", "--process", "default", "--out", tmp_path / "out.ckpt")
    file = tmp_path / "mine.pt"
    assert "mine.pt cannot be read: No such file or directory" in refused(file, *options)
    torch.save({"epoch": 3}, file)
    assert "holds no state dict" in refused(file, *options)
    torch.save({"weight": torch.full((3,), torch.nan)}, file)
    assert "has weights that are not finite, in weight" in refused(file, *options)
    torch.save({"module.weight": torch.zeros(3), "model.weight": torch.zeros(3)}, file)
    assert "holds weight more than once, under different prefixes" in refused(file, *options)
    torch.save({"weight": torch.zeros(3).to_sparse()}, file)
    assert "must hold plain tensors, got a sparse, quantised or empty one in weight" in refused(file, *options)
    torch.save({"weight": torch.zeros(3)}, file)
    assert "is the file with your weights" in refused(file, *options[:-1], file)
    assert "is a folder, expected a file" in refused(file, *options[:-1], tmp_path)
    assert "no weight fits: is it another network, or of another size?" in refused(file, *options)
    for content in (b"", b"hello world\n", b'{"weight": [0]}', b"model:\n  width: 32\n", b"1 2 3\n"):
        file.write_bytes(content)
        reason = "it is neither one of torch.save nor named .safetensors"
        assert refused(file, *options).endswith(f"mine.pt is not a file of weights: {reason}")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no regular file" in refused(tmp_path / "pipe", *options)
    file.write_bytes(b"PK\x03\x04 no archive")
    assert "mine.pt" in refused(file, *options)
    assert "one of the arguments --data --process is required" in refused(file, *options[:2])
    assert "give --out FILE" in refused(file, *options[:4])


def test_packed_projections_and_prefixes(tmp_path: Path) -> None:
    torch.save({"net": {"model.module.attn.in_proj_bias": torch.arange(6.0)}}, tmp_path / "mine.pt")
    weights = read_weights(tmp_path / "mine.pt")
    assert {name: weight.tolist() for name, weight in weights.items()} == {
        "attn.in_proj.query.bias": [0, 1],
        "attn.in_proj.key.bias": [2, 3],
        "attn.in_proj.value.bias": [4, 5],
    }


def test_a_guess_needs_one_possible_place() -> None:
    """Of two layers of one shape in different parts, none is guessed; a layer of its own shape is."""
    ours = {"a.one.weight": (3, 3), "b.two.weight": (3, 3), "b.three.weight": (2, 3)}
    theirs = {"x.weight": (3, 3), "y.weight": (2, 3)}
    found = {match.ours: match.theirs for match in match_weights(ours, theirs)}
    assert found == {"a.one.weight": None, "b.two.weight": None, "b.three.weight": "y.weight", None: "x.weight"}


def commands(section: str) -> list[list[str]]:
    """Commands of one section of docs/own-data.md, in order."""
    text = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [shlex.split(line) for line in body.splitlines() if line.startswith("    ")]


@pytest.mark.slow
def test_the_commands_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command in docs/own-data.md, from the raw files to the converted checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    rng, solver = np.random.default_rng(0), Solver(Process(), cells=48)
    drawn = [random_structure(rng, "random_field") for _ in range(3)]
    spectra = [solver.simulate(structure).spectra for structure in drawn]
    images = list(symmetries())[:2]  # exact copies, which need no simulation
    np.save("raw/binary_dataset_128_1.npy", [255 * image.apply(one) for image in images for one in drawn])
    np.save("raw/spectra_latest_1.npy", [-one[list(image.channels)] for image in images for one in spectra])
    torch.manual_seed(2)
    weights = as_others_write(DiffractionNetConfig.baseline().build())
    torch.save({"model": weights, "epoch": 49}, "mine.pt")
    ran = 0
    for command in [
        line for section in ("Raw files", "Import", "Convert your checkpoint") for line in commands(section)
    ]:
        program, *arguments = command
        if program == "echo":
            text, arrow, file = arguments
            assert arrow == ">"
            Path(file).write_text(text)
            json.loads(text)
        elif program == "metaspec-simulate":
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                simulate()
            assert not ended.value.code, (command, capsys.readouterr())
        else:
            assert program == "metaspec-train"
            main(arguments)
        ran += 1
    assert ran == 9
    assert (Path("datasets/mine/import.png").exists(), Path("rows.json").exists()) == (True, True)
    trained = read_checkpoint(Path("mine.ckpt"))
    assert trained.provenance == provenance({"mine": load(Path("datasets/mine"))}, "baseline")
