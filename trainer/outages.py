"""Stretches in which a shop's purchases were not recorded though its people went on: labels of theirs are unknown."""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurestore.events import Row

EXPECTED = 20.0  # purchases that are missing at least: where they come by chance, e^-20 is that of none


class Outage(NamedTuple):
    """Between two purchases, or between one and an end of what is known."""

    from_ms: int
    to_ms: int
    sessions: int  # that came to a checkout meanwhile
    expected: float  # of those as many would have bought

    def __str__(self) -> str:
        begin, end = (f"{datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC):%Y-%m-%d %H:%M}" for ms in self[:2])
        return (
            f"no purchase from {begin} to {end} UTC, though {self.sessions:,} sessions came to a checkout, of which "
            f"some {self.expected:,.0f} buy: is the event sent? Purchases of these hours are taken as unknown"
        )


def outages(rows: list[Row], least_ms: int) -> list[Outage]:
    """Stretches of `least_ms` and more without a purchase where chance cannot be the reason, oldest first.

    As many sessions buy of those that come to a checkout as on the whole; where nobody tells checkouts, carts stand
    for them. A shop without purchases has no outage: nothing is expected of it.
    """
    bought, asked = first(rows, "purchase"), first(rows, "checkout")
    asked = asked if len(asked) else first(rows, "cart")
    if not len(asked) or not len(bought):
        return []
    times = [row.event.ts_ms for row in rows]
    bounds = np.unique([min(times), *(row.event.ts_ms for row in rows if row.event.type == "purchase"), max(times)])
    here = np.diff(np.searchsorted(asked, bounds))
    found = zip(bounds[:-1].tolist(), bounds[1:].tolist(), here.tolist(), strict=True)
    made = [Outage(begin, end, n, n * len(bought) / len(asked)) for begin, end, n in found]
    return [one for one in made if one.to_ms - one.from_ms >= least_ms and one.expected >= EXPECTED]


def first(rows: list[Row], kind: str) -> NDArray[np.int64]:
    """When each session first did something, ms, in order."""
    at: dict[str, int] = {}
    for row in rows:
        if row.event.type == kind:
            at[row.session_id] = min(row.event.ts_ms, at.get(row.session_id, row.event.ts_ms))
    return np.sort(np.array(list(at.values()), np.int64))
