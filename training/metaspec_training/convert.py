"""`metaspec-train convert`: a checkpoint of one's own implementation of a network becomes one of MetaSpec's.

Only tensors are read: no code in the file is run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from metaspec_contract.files import replacing
from metaspec_contract.process import Process, read_process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_simulation.data.recipe import SCHEMA_VERSION
from metaspec_simulation.dataset import Samples, load, provenance
from metaspec_training.fit.checkpoint import read_checkpoint, saved_by_torch, write_checkpoint
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.layers import NetworkConfig
from metaspec_training.networks.query import DiffractionNetConfig
from metaspec_training.report.evaluation import mean_spectrum, predict, with_merged_greens
from metaspec_training.weight_matching import Match, match_weights

PRESETS: dict[str, NetworkConfig] = {"baseline": DiffractionNetConfig.baseline(), "full": DiffractionNetConfig()}
"""Networks by the name of their preset."""

COMPARED = 64
"""Structures that the converted network is tried on, at most."""

_WRAPPERS = ("module.", "model.", "network.", "_orig_mod.")
"""Prefixes of DistributedDataParallel, Lightning, MetaSpec and torch.compile."""

_NESTED = ("state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which training scripts keep the weights, beside the optimiser's state."""

_PACKED = ("query", "key", "value")
"""Order of the rows of in_proj_weight and in_proj_bias of `torch.nn.MultiheadAttention`."""

Weights = dict[str, Tensor]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def convert(arguments: list[str]) -> None:
    """Convert as a command line says.

    Raises:
        ValueError: a file cannot be read, or weights do not fit; nothing is written.
    """
    options = _parser().parse_args(arguments)
    if options.out is None and not options.dry_run:
        raise ValueError("give --out FILE, the checkpoint to write, or --dry-run")
    if options.state_dict.exists() and not options.state_dict.is_file():
        raise ValueError(f"{options.state_dict} is no regular file")
    if options.out is not None and options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder, expected a file")
    if options.out is not None and options.out.resolve() == options.state_dict.resolve():
        raise ValueError(f"--out {options.out} is the file with your weights: choose another one")
    samples = None if options.data is None else load(options.data)
    known = _provenance(options, samples)
    config = _config(options).for_process(known.process)
    theirs = read_weights(options.state_dict)
    torch.manual_seed(0)  # of the weights that start from scratch
    network = config.build()
    matches = match_weights(_shapes(network.state_dict()), _shapes(theirs), _read_map(options.map))
    print(table(matches, network.state_dict(), theirs))
    _require_all(matches, options.partial or options.dry_run)
    _fill(network, matches, theirs)
    if samples is not None:
        print(_tried(network, samples, options.data))
    if options.dry_run:
        print("Nothing was written.")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as partial:
        write_checkpoint(partial, config, network.state_dict(), known)
        read_checkpoint(partial)
    print(f"Wrote {options.out}.")


def _parser() -> _Parser:
    parser = _Parser(
        "metaspec-train convert",
        description="Convert a state dict of another implementation of a network into a checkpoint of MetaSpec.",
    )
    parser.add_argument("state_dict", type=Path, help="file of torch.save or safetensors with the weights")
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--preset", choices=PRESETS, help="network whose weights these are")
    network.add_argument(
        "--config", type=Path, help="training configuration (YAML) of that network, if it is no preset"
    )
    parser.add_argument("--out", type=Path, help="checkpoint to write")
    parser.add_argument(
        "--map",
        type=Path,
        help="JSON object: names of weights or layers in the file, each with its name in MetaSpec's network, or null to leave "
        "it out. Equal names and guesses fill in the others",
    )
    device = parser.add_mutually_exclusive_group(required=True)
    device.add_argument(
        "--data",
        type=Path,
        help="data set that the network was trained on, such as an imported one; the result is tried on it",
    )
    device.add_argument(
        "--process",
        help="without a data set: JSON file with the fields of the process that differ from the default, or the word default",
    )
    parser.add_argument(
        "--merged-greens",
        action="store_true",
        help="with --process: only the mean of G1 and G2 was taught (3 channels)",
    )
    parser.add_argument("--partial", action="store_true", help="let weights without a partner start from scratch")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write nothing")
    return parser


def _provenance(options: argparse.Namespace, samples: Samples | None) -> Provenance:
    """What the network was trained on, as far as it is known."""
    preset = options.preset or options.config.stem
    if samples is not None:
        if options.merged_greens:
            raise ValueError("--merged-greens is for --process: a data set says it itself")
        return provenance({options.data.resolve().name: samples}, preset)
    unknown = DataSource(
        name=options.state_dict.stem,
        schema_version=SCHEMA_VERSION,
        structures=0,
        solver={"name": "unknown"},
        made_with="unknown",
    )
    process = Process() if options.process == "default" else read_process(Path(options.process))
    return Provenance(process=process, merged_greens=options.merged_greens, preset=preset, data=(unknown,))


def _config(options: argparse.Namespace) -> NetworkConfig:
    if options.preset is not None:
        return PRESETS[options.preset]
    path = options.config
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["config"]
        kinds = {kind.__name__: kind for kind in (DiffractionNetConfig, DiffractionFieldNetConfig)}
        kind: type[NetworkConfig] = kinds[given["class_path"].rpartition(".")[2]]
        return kind.from_dict({"process": None} | given.get("init_args", {}))
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} has no network in model.config: {type(error).__name__} {error}") from None


def _read_map(path: Path | None) -> dict[str, str | None]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(value, str | None) for value in given.values()):
        raise ValueError(f"{path} must be a JSON object of names to names or null")
    return given


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of names given twice, the parser would keep the last."""
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{repeated[0]} is named more than once")
    return dict(pairs)


def read_weights(path: Path) -> Weights:
    """Read the weights in a file, without the prefixes of wrappers; no code in it is run.

    Complex weights become real ones with a last axis of two, packed projections of `torch.nn.MultiheadAttention` become
    in_proj.query, in_proj.key and in_proj.value.

    Args:
        path: file of torch.save (a state dict, or a dict that holds one), or of safetensors.

    Raises:
        ValueError: it cannot be read, holds more than tensors and plain values, or no weights.
    """
    weights: Weights = {}
    for given, tensor in _tensors(_load(path), path).items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{path} must hold plain tensors, got a sparse, quantised or empty one in {given}")
        name = given.replace("_orig_mod.", "")
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        for part, value in _unpacked(name, tensor):
            if part in weights:
                raise ValueError(
                    f"{path} holds {part} more than once, under different prefixes: save one network alone"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"{path} has weights that are not finite, in {given}")
            weights[part] = value
    return weights


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(path)
        if not saved_by_torch(path):
            raise ValueError("it is neither one of torch.save nor named .safetensors")
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected pickle protocol"
            )  # of files that are refused below, or harmless
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except ImportError:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which is not read because it could run code: "
            "save the weights alone, torch.save(network.state_dict(), FILE)"
        ) from None
    except Exception as error:  # whatever torch and safetensors raise for a file that is none of theirs
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a file of weights: {first}") from None


def _tensors(state: Any, path: Path) -> Weights:
    """The tensors of a state dict, or of the first of `_NESTED` that is one."""
    if isinstance(state, Mapping):
        for candidate in (state, *(state.get(name) for name in _NESTED)):
            if isinstance(candidate, Mapping):
                found = {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}
                if found:
                    return found
    raise ValueError(f"{path} holds no state dict, neither itself nor under {', '.join(_NESTED)}")


def _unpacked(name: str, tensor: Tensor) -> Sequence[tuple[str, Tensor]]:
    start, packed, leaf = name.rpartition("in_proj_")
    if packed and leaf in ("weight", "bias") and tensor.ndim and len(tensor) % len(_PACKED) == 0:
        return [
            (f"{start}in_proj.{part}.{leaf}", rows)
            for part, rows in zip(_PACKED, tensor.chunk(len(_PACKED)), strict=True)
        ]
    return [(name, torch.view_as_real(tensor) if tensor.is_complex() else tensor)]


def table(matches: Sequence[Match], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The matches, one in a line, and how many there are of each kind."""
    rows = [("MetaSpec", "shape", "file", "shape", "matched by")]
    for match in matches:
        mine, other = (
            ("-", "") if name is None else (name, "x".join(map(str, side[name].shape)))
            for name, side in ((match.ours, ours), (match.theirs, theirs))
        )
        rows.append((*mine, *other, match.how or "nothing"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    counts = Counter(match.how for match in matches)
    fitting = sum(counts[how] for how in ("name", "map", "guess", "order"))
    kinds = ", ".join(f"{counts[how]} by {how}" for how in ("name", "map", "guess", "order") if counts[how])
    lines.append(f"{fitting} of {len(ours)} weights have a partner{f': {kinds}' if kinds else ''}.")
    if counts["order"]:
        lines.append("Those by order were matched among layers of one shape in the order of the file: check them.")
    return "\n".join(lines)


def _require_all(matches: Sequence[Match], partial: bool) -> None:
    """Refuse weights without a partner, or name them."""
    if not any(match.ours and match.theirs for match in matches):
        raise ValueError("no weight fits: is it another network, or of another size? Give --config for other sizes")
    lonely = [
        (what, [name for name in names if name])
        for what, names in (
            ("of the network here", [match.ours for match in matches if match.theirs is None]),
            ("in the file", [match.theirs for match in matches if match.ours is None and not match.how]),
        )
    ]
    texts = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' * (len(names) > 5)}" for what, names in lonely if names
    ]
    if not texts:
        return
    text = "weights without a partner: " + "; ".join(texts)
    if not partial:
        raise ValueError(f"{text}. Name them in a --map, or give --partial: ours then start from scratch")
    print(f"{text[0].upper()}{text[1:]}. Those of the network here start from scratch.")


def _fill(network: nn.Module, matches: Sequence[Match], theirs: Weights) -> None:
    own = network.state_dict()
    for match in matches:
        if match.ours is not None and match.theirs is not None:
            own[match.ours] = theirs[match.theirs].reshape(own[match.ours].shape).to(own[match.ours].dtype)
    network.load_state_dict(own)


def _tried(network: nn.Module, samples: Samples, data: Path) -> str:
    """The converted network's error on some structures, beside that of their mean spectrum: what the shapes cannot tell."""
    some = samples.of("validation", COMPARED)
    if not len(some):
        some = samples.take(np.arange(min(COMPARED, len(samples))))
    split = "train" if "train" in samples.split else str(samples.split[0])
    predicted, mean = predict(network, some.structures), mean_spectrum(samples, split)
    if samples.attributes.get("merged_greens"):
        predicted = with_merged_greens(predicted)
    error, trivial = (float(np.abs(values - some.spectra).mean()) for values in (predicted, mean))
    return (
        f"Mean absolute error on {len(some)} structures of {data}: {error:.4f}; that of the mean spectrum is {trivial:.4f}. A "
        "network that was trained on these data must be far below it; otherwise weights are mixed up."
    )


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
