"""DIGINETICA in the 17 periods of ADER (Mi et al., RecSys 2020): train on what came before a period, test on all of it.

Ids only, no text and no time of day: an event's instant is its place within its week. Items that are new in a period
are dropped from its test, then sessions of length 1. ADER counts an item that follows itself as a case ("with
repeats"); production asks for the next different item ("different"), so both are told.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.events import Event, Origin, Row
from trainer.neighbours import WEEK_MS

FILE = Path(__file__).parents[4] / "shared" / "data" / "ader-diginetica.csv.gz"
PERIODS = 17


@dataclass(frozen=True, kw_only=True)
class Period:
    """One week: its rows in order, and the sessions that are tested, each as row numbers."""

    number: int
    rows: list[Row]
    tested: list[list[int]]

    @property
    def ends_ms(self) -> int:
        """Where training on it may begin."""
        return (self.number + 1) * WEEK_MS


def read(file: Path = FILE) -> list[Period]:
    """The periods in order; the first is for training only."""
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, np.int64, delimiter=",", skiprows=1)
    periods, seen = [], set[str]()
    for number in range(PERIODS):
        part = table[table[:, 0] == number]
        rows = [_row(number, i, len(part), s, item) for i, (_, s, item) in enumerate(part.tolist())]
        sessions = defaultdict[str, list[int]](list)
        for i, row in enumerate(rows):
            if row.event.item_id in seen:
                sessions[row.session_id].append(i)
        periods.append(Period(number=number, rows=rows, tested=[s for s in sessions.values() if len(s) > 1]))
        seen |= {str(row.event.item_id) for row in rows}
    return periods


def parted(period: Period, share: float = 0.8) -> tuple[Period, Period]:
    """A period up to an instant, and what came after it, tested on the sessions that began then."""
    border = int(share * len(period.rows))
    early, late = period.rows[:border], period.rows[border:]
    begun, known = {row.session_id for row in early}, {row.event.item_id for row in early}
    sessions = defaultdict[str, list[int]](list)
    for i, row in enumerate(late):
        if row.session_id not in begun and row.event.item_id in known:
            sessions[row.session_id].append(i)
    tested = [s for s in sessions.values() if len(s) > 1]
    return Period(number=period.number, rows=early, tested=[]), Period(number=period.number, rows=late, tested=tested)


def _row(period: int, i: int, n: int, session: int, item: int) -> Row:
    at_ms = period * WEEK_MS + i * WEEK_MS // n
    name = f"s{period}-{session}"
    event = Event(event_id=f"{period}-{i}", type="view", user_id=name, ts_ms=at_ms, item_id=str(item))
    return Row(event, Origin("diginetica@file", 0, period * 1_000_000 + i, 0, at_ms), name)
