"""Logs: one line a sentence, plain where nobody looks, no secret in them, the standard library's alike."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import structlog

from deploy import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the logging of other tests as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def written(form: str) -> str:
    """What three kinds of lines look like."""
    out = io.StringIO()
    logs.configure(form, out)
    log = structlog.get_logger()
    log.debug("Not said.")
    log.info("Judged.", n=7, sasl_plain_password="hunter2", of={"api_key": "hunter2"}, tokens=5)
    logging.getLogger("kafka").warning("no broker at %s", "sasl://ann:hunter2@host")
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        log.exception("Stopping.")
    return out.getvalue()


def test_text_is_plain_without_a_terminal() -> None:
    """No colours, tracebacks as Python writes them, the error last; no secret anywhere."""
    said = written("text")
    assert "\x1b" not in said
    assert "Judged." in said
    assert "n=7" in said
    assert "Traceback (most recent call last):" in said
    assert said.splitlines()[-1] == "ValueError: password=***"
    assert "Not said." not in said
    assert "hunter2" not in said


def test_a_library_that_repeats_itself_is_heard_once_a_minute() -> None:
    """Whatever the values in it; the next line that is let through says how many were not; other lines pass."""
    clock = [0.0]
    seldom = logs.Seldom(lambda: clock[0])

    def passes(text: str, *values: object) -> str | None:
        record = logging.LogRecord("kafka", logging.WARNING, "", 0, text, values, None)
        return record.getMessage() if seldom.filter(record) else None

    assert passes("no broker at %s", "a") == "no broker at a"
    assert passes("no broker at %s", "b") is None
    assert passes("left the group") == "left the group"
    clock[0] = 61.0
    assert passes("no broker at %s", "c") == "no broker at c (1 more like it before)"


def test_cancelled_agent_is_no_crash() -> None:
    """What Faust cancels at a stop or a rebalance is not told as a crash; what fails is."""
    for error, told in ((asyncio.CancelledError(), False), (ValueError(), True)):
        record = logging.LogRecord("faust", logging.ERROR, "", 0, "Crashed", (), (type(error), error, None))
        assert logs.Seldom().filter(record) == told


def test_json_is_one_object_a_line() -> None:
    """Each line has its sentence, level and time, a traceback included; no secret anywhere."""
    said = written("json")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [(x["event"], x["level"]) for x in lines] == [
        ("Judged.", "info"), ("no broker at sasl://ann:***@host", "warning"), ("Stopping.", "error"),
    ]  # fmt: skip
    assert (lines[0]["n"], lines[0]["tokens"], lines[0]["of"]) == (7, 5, {"api_key": "***"})
    assert lines[2]["exception"].endswith("ValueError: password=***")
    assert "hunter2" not in said


def said_by_a_library(step: Callable[[], object]) -> list[str]:
    """The lines of a library that catches what a step raises; as it sees it, without the frames of this test."""
    out = io.StringIO()
    logs.configure("text", out)
    try:
        step()
    except Exception as error:
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        logging.getLogger("kafka.net").error("Error receiving", exc_info=(type(error), error, trace))
    return out.getvalue().splitlines()


def test_error_of_a_library_is_one_line_and_ours_keeps_its_traceback() -> None:
    """A connection that closes under a library says so; what went through our code says where."""
    library: dict[str, Any] = {"__name__": "kafka.net"}
    exec("def receive():\n    raise OSError('closed by the other side')", library)
    (line,) = said_by_a_library(library["receive"])
    assert "Error receiving (OSError: closed by the other side)" in line
    lines = said_by_a_library(lambda: logs.masked(None, "", cast(Any, None)))
    assert "Traceback (most recent call last):" in lines[1]
    assert lines[-1].startswith("AttributeError")
