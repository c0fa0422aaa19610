"""Settings of a job: the options of `metaspec optimise` or `metaspec polish`, by their names, as one JSON object.

They are read from the commands' own signatures and checked by the commands themselves: what a command takes, a job takes.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from metaspec import objectives, optimise
from metaspec._cli.main import app, design
from metaspec._cli.polish import polish
from metaspec._working_folder import SHOWN, WorkingFolder

Command = Literal["optimise", "polish"]
COMMANDS: tuple[Command, ...] = get_args(Command)

_FUNCTIONS: dict[Command, Callable[..., None]] = {"optimise": design, "polish": polish}
_OURS = {"out", "url", "api_key", "check"}  # what the service decides
_KINDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a file in the working folder",
    bool: "true or false",
}
_CHOICES = {"objective": objectives.NAMES, "optimiser": optimise.NAMES, "symmetry": ("none", "diagonal")}


class WrongSetting(ValueError):
    """A setting that the command does not take.

    Args:
        message: the field, what was expected and what came.
        field: name of the field; None where the message names none.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Field(NamedTuple):
    """A setting of a command.

    Attributes:
        name: its name in JSON.
        kind: int, float, str, bool, or Path for a file in the working folder.
        many: whether it is a list.
        option: the option of the command; None for an argument without one.
        default: default of the command; None for none.
        required: whether it must be given.
        help: the command's own description.
    """

    name: str
    kind: type
    many: bool
    option: str | None
    default: Any
    required: bool
    help: str

    def document(self) -> dict[str, Any]:
        """The field as JSON, for a form."""
        return {
            "name": self.name,
            "kind": "file" if self.kind is Path else self.kind.__name__,
            "many": self.many,
            "default": self.default,
            "required": self.required,
            "help": " ".join(self.help.partition("[default:")[0].split()),
            "choices": list(_CHOICES.get(self.name, ())),
        }


@cache
def fields(command: Command) -> dict[str, Field]:
    """The settings of a command, by name, in the order of its options."""
    function = _FUNCTIONS[command]
    parameters = inspect.signature(function).parameters
    found = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is not Annotated or name in _OURS:
            continue
        kind, about = get_args(hint)[:2]
        if get_origin(kind) in (Union, UnionType):
            kind = next(one for one in get_args(kind) if one is not NoneType)
        many = get_origin(kind) is list
        default, spelt = parameters[name].default, [one for one in about.param_decls or () if one.startswith("--")]
        required = default is inspect.Parameter.empty
        found[name] = Field(
            name,
            get_args(kind)[0] if many else kind,
            many,
            None if type(about).__name__ == "ArgumentInfo" else next(iter(spelt), f"--{name.replace('_', '-')}"),
            None if required else default,
            required,
            about.help or "",
        )
    return found


def arguments(command: Command, settings: Mapping[str, Any], working: WorkingFolder) -> list[str]:
    """Arguments of the command for settings; files are given by their whole paths.

    Args:
        command: the command.
        settings: JSON values by name; null is as if the setting were left out.
        working: folder in which the files lie.

    Raises:
        WrongSetting: a setting is unknown, missing, of another type, or names a file that is missing or lies elsewhere.
    """
    known = fields(command)
    for name in settings:
        if name not in known:
            raise WrongSetting(f"{name[:SHOWN]}: unknown field, expected some of {', '.join(known)}", name[:SHOWN])
    options, positional = [], []
    for name, field in known.items():
        value = settings.get(name)
        if value is None:
            if field.required:
                raise WrongSetting(f"{name}: missing, expected {_KINDS[field.kind]}", name)
            continue
        if field.many and not isinstance(value, list):
            raise WrongSetting(f"{name}: expected a list, got {_shown(value)}", name)
        for one in value if field.many else [value]:
            text = _text(field, one, working)
            if field.kind is bool:
                options += [str(field.option)] if one else []
            elif field.option is None:
                positional.append(text)
            else:
                options.append(f"{field.option}={text}")
    return [*options, *(["--", *positional] if positional else [])]


def check(command: Command, settings: Mapping[str, Any], working: WorkingFolder, out: Path) -> None:
    """Let the command check settings: it reads the files that they name, and asks and writes nothing.

    Args:
        command: the command.
        settings: JSON values by name.
        working: folder in which the files lie.
        out: run folder, which need not exist.

    Raises:
        WrongSetting: the command refuses them.
    """
    given = [command, "--check", f"--out={out}", *arguments(command, settings, working)]
    try:
        app(given, prog_name="metaspec", standalone_mode=False)
    except (ValueError, OSError, ImportError) as error:
        raise _refused(str(error), settings, fields(command)) from error
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error: not all versions of typer export its class
            raise
        raise _refused(" ".join(error.format_message().split()), settings, fields(command)) from error


def _refused(message: str, settings: Mapping[str, Any], known: Mapping[str, Field]) -> WrongSetting:
    """The error for a message of the command, which names an option or begins with a setting."""
    found = re.search(r"--([a-z]+(?:-[a-z]+)*)", message) or re.match(r"([a-z_]+)\b", message)
    name = found[1].replace("-", "_") if found else ""
    if name not in known:
        return WrongSetting(message)
    came = "" if "got " in message or name not in settings else f", got {_shown(settings[name])}"
    return WrongSetting(f"{message}{came}", name)


def _text(field: Field, value: Any, working: WorkingFolder) -> str:
    """A JSON value as an argument of the command."""
    wanted, name = field.kind, field.name
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, int),
        float: number and math.isfinite(value),
        bool: isinstance(value, bool),
    }.get(wanted, isinstance(value, str) and "\0" not in value)
    if not fits:
        raise WrongSetting(f"{name}: expected {_KINDS[wanted]}, got {_shown(value)}", name)
    if wanted is not Path:
        return str(value)
    try:
        path = working.inside(value, name)
    except ValueError as error:
        raise WrongSetting(str(error), name) from None
    if not path.exists():
        raise WrongSetting(
            f"{name}: expected a file or folder in the working folder, got {_shown(value)}: missing", name
        )
    return str(path)


def _shown(value: Any) -> str:
    """A value of JSON in a message."""
    if isinstance(value, dict | list):
        return f"a value of type {type(value).__name__}"
    return f"{value!r:.{SHOWN}}"
