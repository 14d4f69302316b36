"""Stretches in which a shop's purchases were not recorded though its people went on: who bought then is unknown."""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]

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
            f"some {self.expected:,.0f} buy: is the event sent? Who bought in these hours is taken as unknown"
        )


def outages(ts_ms: Ints, kinds: pa.ChunkedArray, session: Ints, least_ms: int) -> tuple[Outage, ...]:
    """Stretches of `least_ms` and more without a purchase where chance cannot be the reason, oldest first.

    Of each row [n]: its time, what was done, its session's number. As many sessions buy of those that come to a
    checkout as on the whole; where nobody tells checkouts, carts stand for them. A shop without purchases has no
    outage: nothing is expected of it.
    """
    bought, asked, carts = (pc.equal(kinds, kind).to_numpy() for kind in ("purchase", "checkout", "cart"))
    asked = asked if asked.any() else carts
    if not bought.any() or not asked.any():
        return ()
    begun = _first(ts_ms[asked], session[asked])
    share = len(np.unique(session[bought])) / len(begun)
    bounds = np.unique([ts_ms.min(), *ts_ms[bought], ts_ms.max()])
    here = np.diff(np.searchsorted(begun, bounds))
    found = zip(bounds[:-1].tolist(), bounds[1:].tolist(), here.tolist(), strict=True)
    made = [Outage(begin, end, n, n * share) for begin, end, n in found]
    return tuple(one for one in made if one.to_ms - one.from_ms >= least_ms and one.expected >= EXPECTED)


def _first(ts_ms: Ints, session: Ints) -> Ints:
    """When each session's first row was, in order."""
    order = np.argsort(ts_ms, kind="stable")
    _, begins = np.unique(session[order], return_index=True)
    made: Ints = ts_ms[order][np.sort(begins)]
    return made
