"""What the other workers' beats tell this one: the largest event time that any of them has seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import structlog

from streams import connection, following

log = structlog.get_logger()


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells of itself once a second; counts are since it started. `streams.schema` says what each is."""

    worker: str = ""
    at_ms: int = 0
    partitions: dict[str, int] = {}
    lag: int = 0
    watermark_ms: int = 0
    horizon_ms: int = 0
    lateness_ms: int = 0
    open_sessions: int = 0
    events: int = 0
    nothing: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0
    missing: int = 0
    unkeyed: int = 0
    dead_letters: int = 0
    predictions: int = 0
    version: str = ""
    swaps: int = 0
    outcomes: dict[str, Any] = {}
    catalogue: dict[str, int] = {}
    memory: dict[str, int] = {}
    bots: dict[str, dict[str, int]] = {}
    busy_s: dict[str, float] = {}
    latency_ms: dict[str, float] | None = None


class Beats(following.Follower):
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
