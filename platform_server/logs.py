"""Logs: one line each on standard error, as JSON for machines or as text for a terminal.

What a line belongs to is bound to the context (structlog.contextvars): `request_id` for a request, and
`correlation_id` for everything that becomes of one delivery, from its request to its last event. Whatever
comes from outside is escaped, so that nobody writes a line of his own.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from enum import StrEnum
from typing import Any, TextIO

from structlog import contextvars, processors, stdlib
from structlog.typing import EventDict, WrappedLogger

from platform_server.metrics import LOG_LINES

# Their lines at INFO and below name URLs with what is secret in them, or every step that they take.
_QUIET = ("alembic", "httpx", "httpcore", "mcp")
_FIRST = ("time", "level", "logger", "message")


class LogFormat(StrEnum):
    """How lines look."""

    JSON = "json"
    TEXT = "text"


def start_log(form: LogFormat, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Log to `stream`, standard error by default, from here on; what others log and warn of included."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                contextvars.merge_contextvars,
                stdlib.add_log_level,
                stdlib.add_logger_name,
                processors.TimeStamper(fmt="iso", utc=True, key="time"),
                stdlib.ExtraAdder(),
                _count,
            ],
            processors=[
                stdlib.ProcessorFormatter.remove_processors_meta,
                processors.format_exc_info,
                processors.EventRenamer("message"),
                _render_json if form is LogFormat.JSON else _render_text,
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def default_format(stream: TextIO | None = None) -> LogFormat:
    """Text where somebody looks on."""
    return LogFormat.TEXT if (stream or sys.stderr).isatty() else LogFormat.JSON


def escaped(text: str) -> str:
    """A text in which whatever is not printed as itself is an escape: control characters, line ends, what
    turns a terminal's direction of writing, and what can't be written in UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _count(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    # uvicorn's message once more, for terminals
    line.pop("color_message", None)
    LOG_LINES.labels(line["level"]).inc()
    return line


def _render_json(logger: WrappedLogger, method: str, line: EventDict) -> str:
    ordered: dict[str, Any] = {name: line.pop(name) for name in _FIRST}
    return json.dumps({**ordered, **line}, default=str).replace("\x7f", "\\u007f")


def _render_text(logger: WrappedLogger, method: str, line: EventDict) -> str:
    time, level, name, message = (str(line.pop(each)) for each in _FIRST)
    trace = line.pop("exception", None)
    fields = "".join(f" {key}={value}" for key, value in line.items())
    lines = [escaped(f"{time[:19]}Z {level.upper()} {name}: {message}{fields}")]
    lines += [f"    {escaped(each)}" for each in (trace or "").splitlines()]
    return "\n".join(lines)


def _thread_ended(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None:
        logging.getLogger(__name__).critical("a thread ended", exc_info=found.exc_value)
