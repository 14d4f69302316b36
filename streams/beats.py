"""What the other workers' beats tell this one: the largest event time that any of them has seen."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import structlog

from streams import connection, control

log = structlog.get_logger()


class Beat(msgspec.Struct, frozen=True):
    """Of a beat what matters to others; `partitions` are named `<topic>@<log id>|<number>`."""

    partitions: dict[str, int] = {}
    watermark_ms: int = 0


class Beats(control.Follower):
    """Follows the state topic; `watermark_ms` is the largest that a worker of these logs told, dead ones included.

    That an event time was seen stays true when its worker is gone; a partition that nobody owns is raised by nobody.
    """

    def __init__(self, kafka_: str | connection.Connection, topic: str, logs: Collection[str]) -> None:
        super().__init__(kafka_, topic)
        self.logs = frozenset(logs)
        self.watermark_ms = 0

    def take(self, values: list[bytes]) -> None:
        for value in values:
            try:
                beat = msgspec.json.decode(value, type=Beat)
            except msgspec.MsgspecError as error:
                log.warning("A beat cannot be read and is passed over.", error=str(error))
                continue
            if any(name.rpartition("|")[0] in self.logs for name in beat.partitions):  # else another log's clock
                self.watermark_ms = max(self.watermark_ms, beat.watermark_ms)
