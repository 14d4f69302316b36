"""How processes log: a sentence with its fields, one line each on stderr; coloured on a terminal, JSON where asked."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

SECRET = re.compile(r"passw|secret|token(?!s)|credential|api_?key|authorization|sasl_jaas", re.IGNORECASE)
IN_TEXT = re.compile(r"(://[^:/@\s]*:)[^@\s]+(?=@)|((?:password|secret|token)\s*[=:]\s*)[^\s,;]+", re.IGNORECASE)

OURS = frozenset({"featurestore", "trainer", "streams", "deploy", "__main__"})
EVERY_S = 60.0
KIND = 80  # characters of a text that tell its kind


def configure(form: str = "text", stream: TextIO | None = None, *, libraries: bool = True) -> None:
    """Set up structlog and the standard library's logging (from WARNING on) alike; once, where a process begins.

    Without `libraries` what we log alone: a command's own words are its result, on stdout, and its errors.
    """
    out = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # a traceback as Python writes it
        masked,
    ]
    render: list[Processor] = [structlog.processors.JSONRenderer(default=str)]
    if form != "json":
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain, pad_event_to=0)]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: structlog.PrintLogger(stream or sys.stderr),
    )
    if not libraries:
        return
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(out)
    handler.addFilter(Seldom())
    handler.addFilter(brief)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[drop, *render]))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class Seldom(logging.Filter):
    """Lets one line of a kind through a minute: libraries repeat themselves while a broker is down."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.now = now
        self.said: dict[tuple[str, str], tuple[float, int]] = {}  # when last, and how often in vain since

    def filter(self, record: logging.LogRecord) -> bool:
        """A line's kind is who says it and its text before the values come in."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False  # Faust calls it a crash when it stops an agent, or lets it begin anew after a rebalance
        kind, now = (record.name, str(record.msg)[:KIND]), self.now()
        last_s, more = self.said.get(kind, (-EVERY_S, 0))
        again = now - last_s >= EVERY_S
        self.said[kind] = (now, 0) if again else (last_s, more + 1)
        if again and more:
            record.msg = f"{record.msg} ({more} more like it before)"
        return again


def brief(record: logging.LogRecord) -> bool:
    """A library's own error becomes one line; a traceback is for what went through our code. Lets everything pass.

    A connection that closes under a library is nothing that a traceback explains.
    """
    if not record.exc_info or record.exc_info[1] is None or _ours(record.exc_info[2]):
        return True
    error = record.exc_info[1]
    record.msg, record.args = f"{record.getMessage()} ({type(error).__name__}: {error})", ()
    record.exc_info = record.exc_text = None
    return True


def _ours(trace: TracebackType | None) -> bool:
    """Whether an error came through one of the product's packages."""
    frames = (frame for frame, _ in traceback.walk_tb(trace))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in OURS for frame in frames)


def masked(logger: Any, method: str, said: EventDict) -> EventDict:
    """Fields that may be secrets, and what looks like one within a text, are not written.

    >>> masked(None, "info", {"sasl_plain_password": "x", "url": "http://ann:x@host"})
    {'sasl_plain_password': '***', 'url': 'http://ann:***@host'}
    """
    return {name: "***" if SECRET.search(name) else _masked(value) for name, value in said.items()}


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return IN_TEXT.sub(lambda m: f"{m[1] or m[2]}***", value)
    return masked(None, "", value) if type(value) is dict else value
