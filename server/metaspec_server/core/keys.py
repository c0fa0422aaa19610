"""API keys and the roles of their holders, from a file that is read again when it changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from metaspec_server.blocking import in_thread, read_file

__all__ = ["ApiKeyError", "ApiKeys", "Caller", "Role"]

log = logging.getLogger(__name__)

_SHORTEST = 16  # characters of a key
_LARGEST = 2**20  # bytes of the file
_INTERVAL = 1.0  # seconds between checks of the file
_QUIET, _QUIET_IF_CUT = (
    2.0,
    10.0,
)  # seconds for which a new content must stay the same, the second if its last line has no end

_LINE = re.compile(r"(?:(\S*):\s+)?(\S+)(?:\s+(.+))?")  # name, key, roles


class Role(StrEnum):
    """What a caller may do."""

    INFER = "infer"
    """Compute models, and read what they are."""
    CONTROL = "control"
    """Load and unload models."""
    METRICS = "metrics"
    """Read the metrics."""


_SEPARATOR = re.compile(rf"[:,;|]|=({'|'.join(Role)})$")  # in a key: it would be one of more than was meant
_EXPECTED = f"expected KEY, or NAME: KEY ROLE,ROLE with these spaces, of the roles {', '.join(Role)}"


@dataclass(frozen=True)
class Caller:
    """The holder of a key.

    Attributes:
        name: name for the log; None if the file has none.
        roles: what it may do.
    """

    name: str | None
    roles: frozenset[Role]


class ApiKeyError(ValueError):
    """A file of API keys that cannot be used. The message names the line, and holds nothing of a key."""


class ApiKeys:
    """The valid keys. They are kept as SHA-256 only.

    Args:
        path: file of the keys, see `docs/server.md`; None if callers need no key.

    Raises:
        ApiKeyError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        content = b"" if path is None else _content(path)
        self._callers = {} if path is None else _callers(content, path)
        self._in_use = self._seen = _digest(
            content
        )  # of the content that the keys are from, and of the last that was seen
        self._since = 0.0  # time at which that was first seen
        self._problem: str | None = None

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return self._path is not None

    def find(self, key: bytes) -> Caller | None:
        """The holder of a key; None if it is not valid."""
        digest = _digest(key)
        # All keys are compared, each in constant time: the duration reveals nothing about a guess.
        found = [caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    async def watch(self) -> None:
        """Use what the file holds once it has changed, until cancelled.

        A new content counts when it has stayed the same for two seconds, or for ten if its last line has no end: a file that is
        just being written gives nobody the rights that a line without its end has. A file that cannot be used, or is gone,
        leaves the keys as they were. Both are said once.
        """
        while self._path is not None:
            await asyncio.sleep(_INTERVAL)
            try:
                self._look(await asyncio.wrap_future(in_thread(_content, self._path)), self._path)
            except ApiKeyError as error:
                if str(error) != self._problem:
                    log.error("%s; the keys that it had before stay valid", error)
                self._problem = str(error)

    def _look(self, content: bytes, path: Path) -> None:
        """Take over the content of the file, if it is new and has not changed for long enough."""
        digest, now = _digest(content), time.monotonic()
        if digest != self._seen:
            self._seen, self._since = digest, now
        if digest != self._in_use:
            is_cut = content != b"" and not content.endswith((b"\n", b"\r"))
            if now - self._since < (_QUIET_IF_CUT if is_cut else _QUIET):
                if is_cut:
                    raise ApiKeyError(f"--api-keys: the last line of {path} has no end, as if it were being written")
                return
            self._callers = _callers(content, path)
            self._in_use = digest
        elif self._problem is None:
            return
        level = logging.INFO if self._problem is None else logging.WARNING
        unlimited = sum(caller.roles == set(Role) for caller in self._callers.values())
        log.log(level, "%s: API keys read again: %d, %d of them with all roles", path, len(self._callers), unlimited)
        self._problem = None


def _content(path: Path) -> bytes:
    """Content of a file of keys.

    Raises:
        ApiKeyError: it cannot be read.
    """
    try:
        return read_file(path, _LARGEST)
    except OSError as error:
        raise ApiKeyError(f"--api-keys: {path} cannot be read: {error.strerror}") from None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _callers(content: bytes, path: Path) -> dict[bytes, Caller]:
    """Holders by the SHA-256 of their keys.

    Args:
        content: content of the file of keys.
        path: its path, for messages.

    Raises:
        ApiKeyError: a line is not understood.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ApiKeyError(f"--api-keys: {path} cannot be read: it is not in UTF-8") from None
    callers: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key, caller = _parse(line)
            if _digest(key) in callers:
                raise ValueError("has the key of a line before it")
        except ValueError as error:
            raise ApiKeyError(f"--api-keys: line {number} of {path} {error}") from None
        callers[_digest(key)] = caller
    if not callers:
        raise ApiKeyError(f"--api-keys: {path} has no keys in it, expected one per line")
    return callers


def _parse(line: str) -> tuple[bytes, Caller]:
    """Key and holder of a line: KEY, or NAME: KEY, and then its roles, by default all.

    Raises:
        ValueError: it is something else; the message follows "line 3".
    """
    match = _LINE.fullmatch(line.strip())
    name, key, roles = match.groups() if match else ("", "", None)
    if name == "":
        raise ValueError(f"has an empty name; {_EXPECTED}")
    if _SEPARATOR.search(key) or not key.isprintable():
        raise ValueError(f"has a colon, a comma or the like in its key; {_EXPECTED}")
    if len(key) < _SHORTEST:
        raise ValueError(f"has a key shorter than {_SHORTEST} characters; {_EXPECTED}")
    if roles is None:
        return key.encode(), Caller(name, frozenset(Role))
    named = re.split(r"\s*,\s*|\s+", roles)
    if not set(named) <= set(Role):
        raise ValueError(f"has {'an unknown role' if all(named) else 'an empty role'}; {_EXPECTED}")
    return key.encode(), Caller(name, frozenset(map(Role, named)))
