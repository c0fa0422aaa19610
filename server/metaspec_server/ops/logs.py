"""The log: one event per line, as text or JSON, with the id of the request that it belongs to."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog

__all__ = ["caller_name", "request_id", "set_up_logging"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being answered."""

caller_name: ContextVar[str | None] = ContextVar("caller_name", default=None)
"""Name of the caller whose request is being answered, where the file of API keys has one."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def set_up_logging(level: str, style: str) -> None:
    """Send all log events, those of libraries included, to standard error.

    Args:
        level: lowest level that is written: debug, info, warning or error.
        style: format of the lines: text or json.
    """
    shared: list[Any] = [
        _add_request,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    plain = structlog.dev.plain_traceback  # tracebacks are text here; of other formatters structlog 25 warns
    text: list[Any] = [
        _escape,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),
    ]
    final = [structlog.processors.JSONRenderer()] if style == "json" else text
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _add_request(logger: object, method: str, event: dict[str, Any]) -> dict[str, Any]:
    values = {"request_id": request_id.get(), "caller": caller_name.get()}
    return event | {name: value for name, value in values.items() if value is not None}


def _escape(logger: object, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape control characters: what callers send cannot forge a line, nor command a terminal. Tracebacks are indented."""
    escaped = dict(event)
    for name, value in event.items():
        if name in ("exception", "stack"):
            escaped[name] = "\n".join(f"    {_CONTROL.sub(_visible, line)}" for line in str(value).split("\n"))
        elif isinstance(value, str) and _CONTROL.search(value):
            escaped[name] = _CONTROL.sub(_visible, value) if name == "event" else _Quoted(value)
    return escaped


def _visible(character: re.Match[str]) -> str:
    return ascii(character[0])[1:-1]


@dataclass(frozen=True)
class _Quoted:
    """Text that the renderer shows in quotes, with escapes: other values than text are shown by their `repr`."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)
