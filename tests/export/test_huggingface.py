"""The Hugging Face model repository that an export writes: read back exactly, its card by the Hub's own library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from metaspec_contract.structures import Structure
from metaspec_export.card import model_card
from metaspec_export.huggingface import CARD, CONFIG, WEIGHTS, load, write, written
from metaspec_export.metadata import ExportedMetadata, read
from metaspec_export.source import MeanGreens, Source, read_source
from metaspec_training.fit.checkpoint import load_network, read_checkpoint

safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra huggingface")

Command = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # tracing takes minutes on a busy machine


@pytest.fixture(scope="module")
def hub(published: tuple[Path, str], checkpoint: Path) -> Path:
    """The folder that the command of all these tests wrote beside the models."""
    folder = checkpoint.parent / "hub"
    assert f"Wrote {folder}, a Hugging Face model repository." in published[1]
    return folder


@pytest.fixture(scope="module")
def metadata(published: tuple[Path, str]) -> ExportedMetadata:
    return read(onnx.load(published[0] / "diffractionnet" / "1" / "model.onnx"))


@pytest.fixture(scope="module")
def source(checkpoint: Path, data: Path) -> Source:
    return read_source(checkpoint, [data])


def spectra(network: torch.nn.Module, structures: Structure) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = network(torch.from_numpy(structures[:8, None]).float())
    return result


def test_the_network_that_is_read_back_is_the_same(hub: Path, checkpoint: Path, unseen: Structure) -> None:
    assert sorted(path.name for path in hub.iterdir()) == sorted([CARD, CONFIG, WEIGHTS])
    network, again = load_network(checkpoint), load(hub)
    weights = safetensors.load_file(hub / WEIGHTS)
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in network.state_dict().items())
    assert not again.training
    assert torch.equal(spectra(again, unseen), spectra(network, unseen))
    provenance = read_checkpoint(checkpoint).provenance
    assert provenance is not None
    assert json.loads((hub / CONFIG).read_text())["provenance"] == provenance.model_dump(mode="json")


def test_the_hub_reads_the_card(hub: Path, metadata: ExportedMetadata) -> None:
    library = pytest.importorskip("huggingface_hub")
    card = library.ModelCard.load(hub / CARD)
    assert card.data.license == "apache-2.0"
    assert {"metasurface", "inverse-design"} <= set(card.data.tags)
    assert (card.data.library_name, card.data.pipeline_tag) == ("metaspec-lab", "other")
    assert card.data.datasets == ["narrow-450nm"]
    assert card.data.model_name == "diffractionnet"
    names = {"mae": "mae", "rmse": "rms", "r_squared": "r2"}
    measured = {
        (split, kind): metadata.metrics[split][name] for split in ("validation", "test") for kind, name in names.items()
    }
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == measured
    assert {result.dataset_name for result in card.data.eval_results} == {metadata.evaluated_on}
    assert model_card(metadata) in card.content
    again = library.ModelCard(card.content)  # as the library writes it
    assert again.data.to_dict() == card.data.to_dict()


def test_the_example_of_the_card(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (hub / CARD).read_text().partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(hub))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["spectra"].shape == (1, 2, 2, names["network"].config.process.wavelengths_nm.size)


def test_merged_greens_are_served_as_their_mean(
    source: Source, metadata: ExportedMetadata, tmp_path: Path, unseen: Structure
) -> None:
    merged = replace(source, provenance=source.provenance.model_copy(update={"merged_greens": True}))
    write(tmp_path / "hub", merged, metadata, "mit")
    again = spectra(load(tmp_path / "hub"), unseen)
    assert torch.equal(again, spectra(MeanGreens(source.network), unseen))
    assert torch.equal(again[:, 0, 1], again[:, 1, 0])


def test_nothing_stays_if_publishing_fails(source: Source, metadata: ExportedMetadata, tmp_path: Path) -> None:
    def interrupted() -> None:
        with written(tmp_path / "hub", source, metadata, "mit"):
            assert (tmp_path / "hub" / WEIGHTS).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--huggingface", "HUB"], "--huggingface needs --license, the licence of the weights as the Hub calls it"),
        (["--huggingface", "HUB", "--license", "Apache 2"], "such as apache-2.0, got Apache 2"),
        (["--license", "mit"], "--license is that of --huggingface, which is missing"),
        (["--huggingface", "HUB", "--license", "mit", "--precision", "fp16"], "needs fp32 among --precision, got fp16"),
        (["--huggingface", "TAKEN", "--license", "mit"], "exists already: name a new folder, or an empty one"),
    ],
)
def test_refused_before_work_is_done(
    checkpoint: Path, command: Command, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    places = {"HUB": str(tmp_path / "hub"), "TAKEN": str(tmp_path / "taken")}
    arguments = [places.get(option, option) for option in options]
    result = command(checkpoint, "--repository", tmp_path / "models", "--allow-dirty", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def poison(folder: Path) -> None:
    weights = safetensors.load_file(folder / WEIGHTS)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    safetensors.save_file(weights, folder / WEIGHTS)


def forget(folder: Path) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    del settings["settings"]["width"]
    (folder / CONFIG).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors cannot be read: No such file or directory"),
        (truncate, "is not a network that metaspec-export wrote: "),
        (lambda folder: (folder / CONFIG).write_text("{}"), "is not a network that metaspec-export wrote: KeyError"),
        (lambda folder: (folder / CONFIG).write_text("no JSON"), "is not a network that metaspec-export wrote: "),
        (poison, "has weights that are not finite"),
        (forget, "is not a checkpoint that this version can read: "),
    ],
)
def test_damaged_files(hub: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = shutil.copytree(hub, tmp_path / "hub")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)
