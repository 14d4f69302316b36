"""What a worker holds of a partition that it owns, and of a poll that is not committed yet."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from faust.types import TP

from featurestore import sessions, store
from featurestore.events import Row, Session
from featurestore.lake import PartitionKey
from streams import codec, outcomes

KEYED_WINDOW = 10_000  # events of a partition over which wrong keys are judged
KEYED_SHARE = 0.01  # of the window; a smaller number never stops a worker, so that a handful in a small topic does not


class Keys:
    """Which of a partition's newest events were not keyed by their user, counted since it was assigned."""

    def __init__(self) -> None:
        self.judged = 0
        self.wrong: deque[int] = deque()

    def wrong_one(self) -> bool:
        """The newest event that was `judged` has a wrong one; whether they are still few enough to go on."""
        while self.wrong and self.wrong[0] <= self.judged - KEYED_WINDOW:
            self.wrong.popleft()
        self.wrong.append(self.judged)
        return len(self.wrong) <= KEYED_WINDOW * KEYED_SHARE


@dataclass(kw_only=True, slots=True)
class Part:
    """A partition while this worker owns it: one object an assignment epoch, so identity tells epochs apart."""

    key: PartitionKey
    open: sessions.OpenSessions
    read: int  # folded up to here
    flushed: int  # in the lake up to here
    end: int = 0  # the log's end when last heard of
    behind: int = 0  # so many beats in a row the log ended below `read`
    raised_ms: int = 0  # the largest watermark known anywhere while this partition had no lag
    missing: int = 0  # offsets that Kafka had already dropped
    keys: Keys = field(default_factory=Keys)
    predicted: outcomes.Open = field(default_factory=outcomes.Open)  # what still waits for its outcome

    def progress(self) -> store.Progress:
        o = self.open
        return store.Progress(
            next=self.read,
            watermark_ms=o.watermark_ms,
            stored=o.stored,
            duplicates=o.duplicates,
            rejected=o.rejected,
        )


@dataclass(kw_only=True, slots=True)
class Batch:
    """What one poll left behind: waits for its acknowledgements, then is committed."""

    seq: int
    rows: list[Row] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)  # of each row the one that it joined, alive
    progress: dict[TP, tuple[Part, store.Progress]] = field(default_factory=dict)
    dead: list[codec.DeadLetter] = field(default_factory=list)

    @property
    def size(self) -> int:
        """What it holds in memory, in rows and dead letters."""
        return 1 + len(self.rows) + len(self.dead)
