"""`--source`: the surrogate, or a source of another distribution, with the options that were given for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from metaspec._cli.conditions import read_conditions
from metaspec._surrogate.client import Surrogate
from metaspec.conditions import at_conditions
from metaspec_contract.conditions import stated_conditions
from metaspec_contract.process import Process, read_process
from metaspec_contract.source import Source, find_source, source_names

SURROGATE = "surrogate"

OPTIONS = ("url", "model", "api_key", "wait", "cells", "workers", "process")
"""Options of the command that are arguments of sources; which of them a source has is read from its signature."""

_BATCH = 32  # structures per request: answered within seconds by a server without a GPU
_FIXED = {
    "batch_size": _BATCH,
    "timeout": 120,
    "progress": False,
}  # settings of the command, for sources that have them

SourceOption = Annotated[
    str, typer.Option(help="surrogate: a model on a server. solver: simulation on this machine (metaspec-lab).")
]
Url = Annotated[str, typer.Option(help="Address of the server.", envvar="METASPEC_URL", show_envvar=True)]
Model = Annotated[str, typer.Option(help="Name of the model.")]
ApiKey = Annotated[
    str | None, typer.Option(help="API key, if the server requires one.", envvar="METASPEC_API_KEY", show_envvar=True)
]
Cells = Annotated[int | None, typer.Option(help="Grid cells of the solver per period.  [default: 64]", min=24, max=512)]
Workers = Annotated[int | None, typer.Option(help="Processes of the solver.  [default: one per core]", min=1)]
ProcessFile = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with the fields of the solver's process that differ from the default.",
        exists=True,
        dir_okay=False,
    ),
]


LONGEST_WAIT = 600.0
"""Seconds to wait for a server by default: enough for a restart that loads and tries large models."""

Wait = Annotated[
    float, typer.Option(help="Seconds to wait for a server that goes away, or stays busy, during the command.", min=0)
]


@dataclass(frozen=True)
class ChosenSource:
    """The source that a command was given.

    Attributes:
        name: its name, the value of `--source`.
        make: function that makes it.
        arguments: arguments of that function, by the names of the options.
        conditions: values of its conditions, as JSON.
    """

    name: str
    make: Callable[..., Source]
    arguments: dict[str, Any]
    conditions: Mapping[str, float | list[float]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What the spectra depend on, as JSON, for the settings of a run."""
        at = {"conditions": dict(self.conditions)} if self.conditions else {}
        if self.name == SURROGATE:
            return {"model": self.arguments["model"], **at}
        default = Process().model_dump(mode="json")
        device = self.arguments.get("process", Process()).model_dump(mode="json")
        changed = {field: value for field, value in device.items() if value != default[field]}
        cells = self.arguments.get("cells", _parameters(self.make).get("cells"))
        return {"source": self.name, "cells": cells, "process": changed, **at}

    @property
    def stated(self) -> str:
        """Conditions in words, such as ", distance_um 1.25"; "" where none were given."""
        return f", {stated_conditions(self.conditions)}" if self.conditions else ""

    def open(self, **more: Any) -> Source:
        """Make the source, at its conditions.

        Args:
            **more: further arguments, of which the source takes those that it has.

        Raises:
            InvalidCondition: it does not take a condition, or not at this value.
            SourceError: conditions were given, and the description that says which there are could not be requested.
        """
        known = _parameters(self.make)
        further = {name: value for name, value in (_FIXED | more).items() if name in known}
        source = self.make(**further, **self.arguments)
        try:
            return at_conditions(source, self.conditions)
        except BaseException:
            source.close()
            raise


def choose_source(
    context: typer.Context,
    name: str,
    process: Process | None = None,
    conditions: Mapping[str, float | list[float]] | None = None,
) -> ChosenSource:
    """The source of a command, from its options.

    Args:
        context: context of the command, which has the options of `OPTIONS`, and may have those of conditions.
        name: name of the source.
        process: process of a source that has this argument, if the option is not given.
        conditions: values of conditions; by default, those of the options.

    Raises:
        ValueError: there is no such source, it does not have an option that was given, the file of a process is invalid, or a
            condition is not NAME=VALUE.
        ImportError: the source is not installed; the distribution to install is named.
    """
    names = [SURROGATE, *source_names()]
    if name not in names:
        raise ValueError(f"--source must be one of {', '.join(names)}, got {name!r}")
    try:
        make = Surrogate if name == SURROGATE else find_source(name)
    except ImportError as error:
        raise ImportError(f"--{error}") from error
    known, arguments = _parameters(make), {}
    if process is not None and "process" in known:
        arguments["process"] = process
    for option in OPTIONS:
        value, origin = context.params[option], context.get_parameter_source(option)
        if option in known:
            if value is not None:
                arguments[option] = read_process(value) if option == "process" else value
        elif origin is not None and origin.name == "COMMANDLINE":
            raise ValueError(f"--{option.replace('_', '-')} is not an option of --source {name}")
    if conditions is None:
        conditions = read_conditions(context.params.get("condition"), context.params.get("distance_um"))
    return ChosenSource(name, make, arguments, conditions)


def _parameters(make: Callable[..., Source]) -> dict[str, Any]:
    """Names and defaults of the arguments of a function."""
    return {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
