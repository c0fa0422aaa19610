"""The server's variables, of the environment and of the file .env: which set something, and which are refused."""

from __future__ import annotations

import codecs
import difflib
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic_settings import SettingsError

__all__ = ["PREFIX", "own_variables", "read_dotenv"]

PREFIX = "METASPEC_"
"""What the names of the server's variables begin with."""

_CLIENT = {"METASPEC_URL", "METASPEC_API_KEY"}  # the client's

# Kubernetes describes each service of a namespace to each pod: for one named "metaspec", METASPEC_SERVICE_HOST=10.0.0.1,
# METASPEC_PORT=tcp://10.0.0.1:8000 and so on. None of them is meant for the server.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")  # the value of a service's _PORT

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_UNDECODED = re.compile(r"[\ud800-\udfff]")  # bytes that are not UTF-8, as surrogateescape leaves them
_NAME = re.compile(r"[\w.-]+")
_VARIABLE = re.compile(rf"^[^#\n]*?\b({PREFIX}\w*)", re.MULTILINE | re.IGNORECASE)  # not in a comment
_LATER_LINE = re.compile(rf"\n[^\S\n]*(?:export\s+)?({PREFIX}\w*)\s*=", re.IGNORECASE)  # of a value of several lines


def own_variables(
    variables: Mapping[str, str | None], settings: Iterable[str], place: str = ""
) -> dict[str, str | None]:
    """The variables that set something, names in lower case. Kubernetes' service links and the client's are left out.

    Args:
        variables: variables by name, in any case.
        settings: names of the settings.
        place: what precedes a variable's name in messages, such as the file that it comes from.

    Raises:
        SettingsError: a variable with the server's prefix is none of these; near matches are named.
    """
    known = [name.upper() for name in settings]
    own = {}
    for name, value in variables.items():
        variable = name.upper()
        if not variable.startswith(PREFIX) or _is_foreign(variable, value or ""):
            continue
        if (setting := variable.removeprefix(PREFIX)) not in known:
            near = " or ".join(PREFIX + match for match in difflib.get_close_matches(setting, known))
            advice = f"did you mean {near}?" if near else "metaspec-serve --help lists them all"
            raise SettingsError(f"{place}{variable}: no such setting; {advice}")
        own[name.lower()] = value
    return own


def read_dotenv(path: Path) -> dict[str, str | None]:
    """Variables of a .env file; none if there is no file.

    It is read as UTF-8, or as UTF-16 where a byte order mark says so. What other programs keep in it may be in any encoding.

    Raises:
        SettingsError: a line with a variable of the server is not understood, or is in another encoding, or the whole file is.
        OSError: the file cannot be read.
    """
    if not (path.is_file() or path.is_fifo()):
        return {}
    content = path.read_bytes()
    mark, encoding = next((item for item in _BYTE_ORDER_MARKS.items() if content.startswith(item[0])), (b"", "utf-8"))
    try:
        text = content.removeprefix(mark).decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: begins as {encoding.upper()}, but is not: {error.reason}") from None
    if "\0" in text:
        raise SettingsError(f"{path}: expected text in UTF-8, got null characters (UTF-16 without a byte order mark?)")
    _check_lines(path, text)
    variables = dotenv_values(stream=io.StringIO(text))
    for name, value in variables.items():
        if name.upper().startswith(PREFIX) and _UNDECODED.search(f"{name}{value}"):
            raise SettingsError(f"{path}: {ascii(name)[1:-1]} is not in UTF-8; save the file in that encoding")
    return variables


def _check_lines(path: Path, text: str) -> None:
    """Check that each variable of the server is set by a line of its own; comments do not count.

    Raises:
        SettingsError: one is not, as after a quote that is not closed. Its line is named.
    """
    for binding in parse_stream(io.StringIO(text)):
        statement = binding.original.string
        is_clear = not binding.error and binding.value is not None and _NAME.fullmatch(binding.key or "")
        if (found := (_LATER_LINE if is_clear else _VARIABLE).search(statement)) is not None:
            number = binding.original.line + statement.count("\n", 0, found.start(1))
            raise SettingsError(f"{path}: line {number} is not understood, expected {found[1]}=VALUE, or a # before it")


def _is_foreign(variable: str, value: str) -> bool:
    if variable in _CLIENT or _SERVICE_LINK.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_ADDRESS.match(value) is not None
