"""A network as a Hugging Face model repository: weights as safetensors, settings as JSON, model card. Needs safetensors.

The metadata of the card are those that the Hub specifies in "Model Cards" (huggingface.co/docs/hub/model-cards): YAML above the
text, with the measured errors as `model-index`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from metaspec_contract.files import write_bytes, write_json, write_text
from metaspec_contract.provenance import DataSource
from metaspec_export.card import model_card
from metaspec_export.metadata import ExportedMetadata
from metaspec_export.precision import Precision
from metaspec_export.source import MeanGreens, Source
from metaspec_simulation.data.store import is_vacant, new_folder
from metaspec_training.fit.checkpoint import NETWORK, PROVENANCE, rebuild

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

_METRICS = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r_squared": "explained share of the variance",
}
_MEASURED = {"mae": "mae", "rmse": "rms", "r_squared": "r2"}  # by their names in `ExportedMetadata.metrics`
_TAGS = ["metasurface", "photonics", "nanophotonics", "inverse-design", "surrogate-model", "colour-router"]

_USE = """
## Use

```python
import torch
from metaspec_export.huggingface import load  # pip install "metaspec-lab[huggingface]"

network = load("FOLDER")  # of these files
spectra = network(torch.zeros(1, 1, {pixels}, {pixels}))  # structure, 1 = solid, to (1, 2, 2, {wavelengths})
```

`metaspec-export` makes the models that MetaSpec's server serves, with their gradients, from the checkpoint.
"""


def require_possible(folder: Path, licence: str | None, precisions: Sequence[Precision]) -> None:
    """Refuse what could not be written, before work is done.

    Args:
        folder: folder of the repository.
        licence: licence of the weights.
        precisions: precisions of the export: the card states the errors in fp32.

    Raises:
        FileExistsError: there is a file, or a folder that is not empty.
        ValueError: there is no licence or no fp32, or safetensors is not installed.
    """
    if not is_vacant(folder):
        raise FileExistsError(f"--huggingface {folder} exists already: name a new folder, or an empty one")
    if not licence or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise ValueError(
            f"--huggingface needs --license, the licence of the weights as the Hub calls it, such as apache-2.0, got {licence}"
        )
    if "fp32" not in precisions:
        raise ValueError(f"--huggingface needs fp32 among --precision, got {', '.join(precisions)}")
    _safetensors()


@contextmanager
def written(folder: Path, source: Source, metadata: ExportedMetadata, licence: str) -> Iterator[None]:
    """The repository of `write`, which is removed again if the block fails."""
    write(folder, source, metadata, licence)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write(folder: Path, source: Source, metadata: ExportedMetadata, licence: str) -> None:
    """Write the repository; the folder appears whole or not at all.

    Args:
        folder: folder, new or empty.
        source: network and provenance.
        metadata: metadata of its fp32 model, with the errors that were measured.
        licence: licence of the weights, as the Hub calls it, such as "apache-2.0".
    """
    network = source.network
    config: Any = network.config
    settings = {
        "library_name": "metaspec-lab",
        "library_version": version("metaspec-lab"),
        "architectures": [type(network).__name__],
        NETWORK: type(config).__name__,
        "settings": config.to_dict(),
        PROVENANCE: source.provenance.model_dump(mode="json"),
        "source_revision": metadata.source_revision,
    }
    weights = {name: weight.detach().contiguous().clone() for name, weight in network.state_dict().items()}
    with new_folder(folder) as partial:
        partial.mkdir(parents=True)
        write_bytes(partial / WEIGHTS, _safetensors().save(weights, {"format": "pt"}))
        write_json(partial / CONFIG, settings)
        write_text(partial / CARD, card(metadata, licence))


def card(metadata: ExportedMetadata, licence: str) -> str:
    """The model card with the metadata of the Hub, as YAML, above it."""
    use = _USE.format(pixels=metadata.process.pixels, wavelengths=len(metadata.wavelengths_nm))
    return f"---\n{yaml.safe_dump(front_matter(metadata, licence), sort_keys=False)}---\n{model_card(metadata)}{use}"


def front_matter(metadata: ExportedMetadata, licence: str) -> dict[str, Any]:
    """Metadata of the card."""
    names = [source.name if isinstance(source, DataSource) else source["name"] for source in metadata.training.data]
    results = [
        {
            "task": {"type": "other", "name": "spectra of metasurfaces"},
            "dataset": {"type": metadata.evaluated_on, "name": metadata.evaluated_on, "split": split},
            "metrics": [
                {"type": kind, "name": meaning, "value": measured[_MEASURED[kind]]}
                for kind, meaning in _METRICS.items()
            ],
        }
        for split, measured in metadata.metrics.items()
    ]
    return {
        "license": licence,
        "library_name": "metaspec-lab",
        "pipeline_tag": "other",
        "tags": _TAGS,
        "datasets": names,
        "metrics": list(_METRICS),
        "model-index": [{"name": metadata.name, "results": results}],
    }


def load(folder: str | Path) -> nn.Module:
    """The network of such a folder, as it is served: with one mean for G1 and G2 if nothing else was taught. No code is run.

    Returns:
        A network in evaluation mode, from structures (B, 1, y, x) to spectra (B, 2, 2, wavelengths).

    Raises:
        ValueError: a file is missing, damaged, or does not fit the others.
    """
    folder, safetensors = Path(folder), _safetensors()
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = safetensors.load((folder / WEIGHTS).read_bytes())
        state = {NETWORK: (settings[NETWORK], settings["settings"]), "state_dict": weights}
        state[PROVENANCE] = settings[PROVENANCE]
    except OSError as error:
        raise ValueError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of JSON, and whatever safetensors raises for damaged files
        raise ValueError(f"{folder} is not a network that metaspec-export wrote: {error!r}") from None
    trained = rebuild(state, str(folder))
    merged = trained.provenance is not None and trained.provenance.merged_greens
    return MeanGreens(trained.network).eval() if merged else trained.network


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError('safetensors is not installed: pip install "metaspec-lab[huggingface]"') from None
    return safetensors.torch
