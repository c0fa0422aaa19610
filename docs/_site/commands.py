"""Writes `docs/reference/commands.md`, the options of every command, from the commands: run it after a change of one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from jsonargparse import auto_cli, capture_parser

import metaspec_export.cli
import metaspec_simulation.cli
from metaspec._cli import main as metaspec_cli
from metaspec_server.environment import PREFIX
from metaspec_server.settings import Settings
from metaspec_training.designs import make_designs
from metaspec_training.fit.weights import change_weights
from metaspec_training.report.report import write_report

PAGE = Path(__file__).parents[1] / "reference" / "commands.md"
INTRODUCTION = """\
# Command line

<!-- Written by docs/_site/commands.py -->

Each command has `--help` with the same text. Defaults in code font are values; an option without one is left open.
"""
TYPER = {
    "metaspec": metaspec_cli.app,
    "metaspec-simulate": metaspec_simulation.cli.app,
    "metaspec-export": metaspec_export.cli.app,
}
TRAINING: dict[str, Callable[..., Any]] = {
    "report": write_report,
    "weights": change_weights,
    "designs": make_designs,
}
TRAINING_OTHERS = """
## metaspec-train

`metaspec-train fit` takes the arguments of Lightning's trainer (`--trainer.`), of [the module](training.md) (`--model.`) and of
the data (`--data.`), in YAML files or as flags; `--help` lists them.
`metaspec-train convert` is described in `docs/own-data.md`.
"""


def cell(text: str) -> str:
    """Text as it stands in a table: in one line, without bars."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(rows: list[tuple[str, str, str]], head: str) -> str:
    """Rows of a name, a default and what it means."""
    lines = [f"| {head} | default | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {cell(name)} | {default} | {cell(text)} |" for name, default, text in rows)])


def typer_command(command: Any, name: str) -> Iterator[str]:
    """A command of Typer and, below it, its own commands. Which click its objects are from depends on Typer's version."""
    yield f"## {name}\n\n{cell(command.help or '')}"
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or getattr(parameter, "is_eager", False):  # --help and --version are
            continue
        names = (
            parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name.upper()]
        )
        variable = [parameter.envvar] if parameter.envvar else []
        spelt = ", ".join(f"`{option}`" for option in [*names, *parameter.secondary_opts, *variable])
        text, _, stated = (getattr(parameter, "help", None) or "").partition(" [default: ")
        rows.append((spelt, stated.rstrip("]") or _typer_default(parameter), text))
    if rows:
        yield table(rows, "option")
    if hasattr(command, "commands"):
        for below, child in command.commands.items():
            yield from typer_command(child, f"{name} {below}")


def _typer_default(parameter: Any) -> str:
    stated = getattr(parameter, "show_default", None)
    if isinstance(stated, str):
        return cell(stated)
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value in ((), [], "") or callable(value) else f"`{value}`"


def serve_settings() -> str:
    """Settings of the server, as flags and environment variables."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "" if default is None or default in ([], "") or field.default_factory else f"`{default}`"
        rows.append((f"`--{name.replace('_', '-')}`, `{PREFIX}{name.upper()}`", shown, field.description or ""))
    return table(rows, "flag, environment variable")


def training_command(function: Callable[..., Any]) -> str:
    """Options of a command that jsonargparse makes of a function."""
    parser = capture_parser(lambda: auto_cli(function, args=[], as_positional=function is not make_designs))
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest in ("help", "config", "print_config"):
            continue
        names = action.option_strings or [action.dest.upper()]
        required = action.required or not action.option_strings
        default = "required" if required else "" if action.default is None else f"`{action.default}`"
        rows.append((", ".join(f"`{name}`" for name in names), default, (action.help or "").partition(" (type:")[0]))
    return table(rows, "option")


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, app in TYPER.items():
        parts += typer_command(typer.main.get_command(app), name)
    parts += ["## metaspec-serve", serve_settings(), TRAINING_OTHERS.strip()]
    for name, function in TRAINING.items():
        parts += [f"## metaspec-train {name}", training_command(function)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
