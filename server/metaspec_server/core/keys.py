"""API keys and the roles of their holders, from a file that is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from metaspec_contract.files import stamp

__all__ = ["ApiKeyError", "ApiKeys", "Caller", "Role"]

log = logging.getLogger(__name__)

_SHORTEST = 16  # characters of a key
_INTERVAL = 1.0  # seconds between checks of the file


class Role(StrEnum):
    """What a caller may do."""

    INFER = "infer"
    """Compute models, and read what they are."""
    CONTROL = "control"
    """Load and unload models."""
    METRICS = "metrics"
    """Read the metrics."""


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

    The file is read again within a second of a change. One that cannot be used, or is gone, leaves the keys as they were.

    Args:
        path: file of the keys, see `docs/server.md`; None if callers need no key.

    Raises:
        ApiKeyError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = None if path is None else _stamp(path)
        self._callers = {} if path is None else _read(path)
        self._checked = time.monotonic()
        self._problem: str | None = None

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return self._path is not None

    def find(self, key: bytes) -> Caller | None:
        """The holder of a key; None if it is not valid."""
        self._refresh()
        digest = _digest(key)
        # All keys are compared, each in constant time: the duration reveals nothing about a guess.
        found = [caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    def _refresh(self) -> None:
        """Read the file again, if it has changed since it was read."""
        now = time.monotonic()
        if self._path is None or now - self._checked < _INTERVAL:
            return
        self._checked = now
        changed = _stamp(self._path)
        if changed == self._stamp:
            return
        self._stamp = changed  # before it is read: a change meanwhile is noticed next time
        try:
            self._callers = _read(self._path)
        except ApiKeyError as error:
            if str(error) != self._problem:
                log.error("%s; the keys that it had before stay valid", error)
            self._problem = str(error)
            return
        log.log(logging.WARNING if self._problem else logging.INFO, "%s: API keys read again", self._path)
        self._problem = None


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        return stamp(path)
    except OSError:
        return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _read(path: Path) -> dict[bytes, Caller]:
    """Holders by the SHA-256 of their keys.

    Raises:
        ApiKeyError: the file cannot be read, or a line is not understood.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ApiKeyError(f"--api-keys: {path} cannot be read: {error.strerror}") from None
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
    words = line.split()
    name = words.pop(0)[:-1] if len(words) > 1 and words[0].endswith(":") else None
    key, roles = words[0], " ".join(words[1:]).replace(",", " ").split()
    if not set(roles) <= set(Role):
        raise ValueError(f"has an unknown role; expected KEY, or NAME: KEY ROLE,ROLE of the roles {', '.join(Role)}")
    if len(key) < _SHORTEST:
        raise ValueError(f"has a key shorter than {_SHORTEST} characters")
    return key.encode(), Caller(name, frozenset(map(Role, roles or Role)))
