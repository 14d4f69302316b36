"""The control log as commands use it: read to its end once, or one entry more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from deploy.cli import options
from deploy.settings import Settings
from streams import control, topics


def state(settings: Settings) -> control.ControlState:
    """What the control log says now; raises where no broker answers or the topic is not there."""
    with following(settings) as log:
        return log.state


@contextlib.contextmanager
def following(settings: Settings) -> Iterator[control.ControlLog]:
    """The control log, read up to now."""
    names = settings.topics()
    topics.log_ids(settings.kafka, [names.control])  # one clear message where there is no broker or no topic
    log = control.ControlLog(settings.kafka, topic=names.control)
    log.start()
    try:
        if not log.caught_up(20):
            raise options.NothingThere(f"the control log on {settings.kafka} could not be read within 20 s: try again")
        yield log
    finally:
        log.close()


def append(settings: Settings, kind: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """One entry more in the control log; what was written."""
    names = settings.topics()
    topics.log_ids(settings.kafka, [names.control])
    writer = control.ControlWriter(settings.kafka, topic=names.control)
    try:
        entry = writer.append(kind, data or {}, by=options.me())
    finally:
        writer.close()
    return {"id": entry.id, "kind": entry.kind, "at_ms": entry.at_ms, "by": entry.by, "data": entry.data}
